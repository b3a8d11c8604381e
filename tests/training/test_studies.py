"""Studies: rows from files, recipes and grids, and what is refused before anything runs."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import yaml

from selfdistill import cli
from selfdistill.errors import RecipeError
from selfdistill.training.comparison import make_plan
from selfdistill.training.studies import Study, is_study, of_grid, read_study

PAINT = "recipes/embedded/paint.yaml"
STUDY = {
    "caption": "Two ways",
    "published": "a paper",
    "seeds": 2,
    "against": "plain",
    "recipe": "base.yaml",
    "set": {"train.steps": 3},
    "base": {"score": 1.5},
    "rows": {
        "plain": None,
        "other": {"set": {"method.context.hidden_wrong": 0.25, "method.context.placement": "random"}},
        "grpo": {"recipe": "deep/grpo.yaml", "published": {"score": 2}},
    },
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two recipes."""
    (tmp_path / "base.yaml").write_text("method: paint\nmodel: {path: embedded}\n")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "grpo.yaml").write_text("method: grpo\n")
    return tmp_path


def write(folder: Path, **changes: object) -> Path:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**STUDY, **changes}, sort_keys=False))
    return path


def jobs_of(study: Study, out: Path, *overrides: str):
    plan = make_plan(study, overrides, out=out)
    return {job.label: job for job in plan.jobs}


def test_a_study_names_its_rows_and_sets_their_settings(folder: Path) -> None:
    study = read_study(write(folder))
    assert (study.caption, study.published, study.seeds, study.against) == ("Two ways", "a paper", 2, "plain")
    jobs = jobs_of(study, folder / "out", "train.questions_per_step=4")
    assert list(jobs) == ["base", *(f"{row} seed {seed}" for row in ("plain", "other", "grpo") for seed in (0, 1))]
    other = jobs["other seed 1"]
    assert other.folder == folder / "out" / "other-seed1"
    assert (other.recipe.name, other.recipe.train.seed, other.steps) == ("other", 1, 3)
    assert (other.recipe.method.context.hidden_wrong, other.recipe.method.context.placement) == (0.25, "random")
    assert jobs["grpo seed 0"].recipe.method.name == "grpo"
    assert all(job.recipe.train.questions_per_step == 4 for job in jobs.values())
    assert "train" in other.command() and str(folder / "base.yaml") in other.command()
    assert study.groups[0].published == {"score": 1.5}


def test_groups_have_a_base_and_folders_each(folder: Path) -> None:
    rows = {"one": {"set": {"data.seed": 1}}, "two": {"set": {"data.seed": 1}}}
    study = read_study(write(folder, rows={}, base={}, groups={"a": {"rows": rows}, "b": {"rows": {"one": {}}}}))
    jobs = jobs_of(Study(study.groups, seeds=1), folder / "out")
    assert list(jobs) == ["a/base", "a/one seed 0", "a/two seed 0", "b/base", "b/one seed 0"]
    assert jobs["b/one seed 0"].folder == folder / "out" / "b" / "one-seed0"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rows": {"one": {"recip": "x"}}}, "study.yaml: row one: unknown setting 'recip' (did you mean 'recipe'?)"),
        ({"rows": {"one": "x"}}, "row one is 'x'; write a mapping of settings (recipe, set, published)"),
        ({"rows": {"base": {}}}, "a row is named 'base', as is the untrained model's"),
        ({"rows": {"one": {}}, "recipe": None}, "row one has no recipe; add `recipe: FILE`"),
        ({"rows": {1: {}}}, "1 is no name; put it in quotes"),
        ({"rows": {}}, "must have `rows:`, or `groups:`"),
        ({"groups": {"a": {"rows": {"one": {}}}}}, "must have `rows:`, or `groups:`"),
        ({"rows": {}, "base": {}, "groups": {"a/b": {"rows": {"one": {}}}}}, "the group 'a/b' names a folder"),
        ({"rows": {}, "groups": {"a": {"rows": {"one": {}}}}}, "base stands beside groups"),
        ({"rows": {}, "base": {}, "groups": {"a": {"rows": {}}}}, "group a: rows is a mapping"),
        ({"seeds": 0}, "seeds is 0: input should be greater than or equal to 1"),
        ({"sedes": 1}, "unknown setting 'sedes' (did you mean 'seeds'?)"),
    ],
)
def test_what_is_wrong_with_a_study_is_said_in_one_sentence(folder: Path, changes: dict, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read_study(write(folder, **changes))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_row_s_mistake_is_found_before_anything_runs(folder: Path) -> None:
    study = read_study(write(folder, rows={"one": {"set": {"method.context.hiden_wrong": 0.1}}}, against=None))
    with pytest.raises(RecipeError, match=r"base\.yaml: .*unknown setting 'context\.hiden_wrong'"):
        make_plan(study, [], out=folder / "out")


@pytest.mark.parametrize("override", ["method.context.hidden_wrong=0.5", "method.context={}", "name=x"])
def test_an_override_that_would_undo_the_rows_is_refused(folder: Path, override: str) -> None:
    with pytest.raises(RecipeError, match="would undo what the rows of the study differ in"):
        make_plan(read_study(write(folder)), [override], out=folder / "out")


def test_rows_on_other_questions_are_refused_with_their_names(folder: Path) -> None:
    study = read_study(write(folder, rows={"one": {}, "two": {"set": {"data.seed": 5}}}, against=None))
    with pytest.raises(RecipeError) as caught:
        make_plan(study, [], out=folder / "out")
    assert "one (" in str(caught.value) and "they differ in data.seed (0, now 5)" in str(caught.value)


def test_a_grid_is_every_combination_and_its_rows_are_named_after_it(folder: Path) -> None:
    recipe = str(folder / "base.yaml")
    study = of_grid(recipe, ["method.context.hidden_wrong=0.25,0.3", "method.context.placement=suffix,random"])
    names = [row.name for row in study.groups[0].rows]
    assert names == [
        "hidden_wrong-0.25_placement-suffix",
        "hidden_wrong-0.25_placement-random",
        "hidden_wrong-0.3_placement-suffix",
        "hidden_wrong-0.3_placement-random",
    ]
    jobs = jobs_of(study, folder / "out")
    context = jobs["hidden_wrong-0.3_placement-random seed 0"].recipe.method.context
    assert (context.hidden_wrong, context.placement) == (0.3, "random")


def test_a_grid_can_be_paired(folder: Path) -> None:
    grids = ["method.context.hidden_wrong=0.25,0.3", "method.context.hidden_correct=0.5,0.4"]
    rows = of_grid(str(folder / "base.yaml"), grids, pairwise=True).groups[0].rows
    assert [row.name for row in rows] == ["hidden_wrong-0.25_hidden_correct-0.5", "hidden_wrong-0.3_hidden_correct-0.4"]
    with pytest.raises(RecipeError, match=r"--zip needs as many values .*hidden_wrong \(2\), train\.steps \(1\)"):
        of_grid("x", [grids[0], "train.steps=5"], pairwise=True)


def test_settings_of_one_name_are_told_apart_and_values_are_yaml(folder: Path) -> None:
    grids = [
        "rollouts.sampling.temperature=1.0,1.1",
        "evaluation.sampling.temperature=1.0",
        "method.distillation.entry_clip=null,1e-2",
    ]
    rows = of_grid("x.yaml", grids).groups[0].rows
    assert rows[1].name == "rollouts.sampling.temperature-1.0_evaluation.sampling.temperature-1.0_entry_clip-0.01"
    assert "method.distillation.entry_clip=null" in rows[0].settings


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        ("steps", "gives no values; write key=value,value"),
        ("train.steps=", "gives no values"),
        ("train.steps=[1", "the values are not YAML"),
        ("train.steps=1,1", "two rows would be named 'steps-1'"),
    ],
)
def test_a_malformed_grid_is_refused(grid: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        of_grid("x.yaml", [grid])
    assert said in str(caught.value)
    with pytest.raises(RecipeError, match=r"train\.steps is varied twice"):
        of_grid("x.yaml", ["train.steps=1", "train.steps=2"])


def test_a_study_is_told_from_a_recipe_by_its_keys(folder: Path) -> None:
    assert is_study(str(write(folder)))
    assert not is_study(str(folder / "base.yaml"))
    assert not is_study(str(folder / "nowhere.yaml"))


def printed(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, list[str], str]:
    code = cli.main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return code, said.out.splitlines(), said.err


def test_the_list_is_one_command_per_run_that_the_command_line_understands(folder, capsys, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    code, lines, _ = printed(capsys, "ablate", write(folder), "notes=a b", "--out", "out", "--list")
    assert code == 0 and len(lines) == 7
    assert lines[0].endswith("study.yaml 'notes=a b' --out out --row base --seed 0")
    assert lines[-1].endswith("--row grpo --seed 1")
    parsed = cli.parse(shlex.split(lines[-1])[1:])
    assert (parsed.row, parsed.seed, parsed.overrides, parsed.out) == ("grpo", 1, ["notes=a b"], "out")
    grid = ["ablate", "base.yaml", "--over", "train.steps=1,2", "--seeds", "1", "--list"]
    code, lines, _ = printed(capsys, *grid)
    assert lines[1] == (
        "selfdistill ablate base.yaml --over train.steps=1,2 --out runs/base --seeds 1 --row steps-1 --seed 0"
    )
    code, lines, _ = printed(capsys, "compare", "base.yaml", "deep/grpo.yaml", "--seeds", "2", "--list")
    assert lines[3] == ("selfdistill compare base.yaml deep/grpo.yaml --out runs/compare --seeds 2 --row grpo --seed 0")
    assert not (folder / "runs").exists() and not (folder / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ablate", "base.yaml"], "what is to be varied in base.yaml? add --over key=value,value"),
        (["ablate", "study.yaml", "--over", "train.steps=1"], "study.yaml is a study, which has its rows"),
        (["compare", "study.yaml"], "study.yaml is a study, not a recipe; run it with: selfdistill ablate study.yaml"),
        (["ablate", "nowhere.yaml", "--over", "train.steps=1"], "there is no recipe 'nowhere.yaml'"),
        (["ablate", "study.yaml", "--row", "plian"], "there is no row 'plian' (did you mean 'plain'?)"),
        (["ablate", "study.yaml", "--collect"], "no run of this study is finished in 'runs/study'; base (0 of 1 runs"),
    ],
)
def test_what_cannot_be_run_is_said_in_one_line(folder, capsys, monkeypatch, arguments, said) -> None:
    write(folder)
    monkeypatch.chdir(folder)
    code, _, err = printed(capsys, *arguments)
    assert code == 1 and err.startswith(f"selfdistill: {said}") and err.count("\n") == 1
