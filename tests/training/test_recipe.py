"""Recipes: YAML, extends, overrides, and one clear message for everything that is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfdistill.errors import RecipeError
from selfdistill.training.recipe import (
    differing_settings,
    load_recipe,
    parse_recipe,
    resume_conflicts,
)
from selfdistill.training.recipe_file import dump_yaml, merged, parse_yaml


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str, name: str = "mine.yaml") -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        return file

    return write


def message(path: Path, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_method_is_all_that_a_recipe_needs(write) -> None:
    recipe = load_recipe(write("method: paint"))
    assert (recipe.name, recipe.method.name) == ("mine", "paint")
    assert recipe.folder == Path("runs/mine")


def test_the_resolved_recipe_loads_as_an_equal_one(write) -> None:
    text = "method: {name: sc_sdpo, alpha: 1.0}\nmodel: {lora: {r: 4}, revision: '1e5'}\ntrain: {learning_rate: 3e-6}\n"
    recipe = load_recipe(write(text), ["notes='-1e-5: a, #b'", "train.betas=[0.8, 0.95]"])
    assert load_recipe(write(recipe.to_yaml(), "again.yaml")) == recipe


def test_a_recipe_extends_another_one_relative_to_itself(write) -> None:
    write("model: {dtype: bfloat16}\ntrain: {steps: 7, seed: 3}\n", "common/base.yaml")
    write("extends: ../common/base.yaml\ntrain: {steps: 8}\nname: middle\n", "own/middle.yaml")
    recipe = load_recipe(write("extends: middle.yaml\nmethod: sft\n", "own/mine.yaml"))
    assert (recipe.model.dtype, recipe.train.steps, recipe.train.seed) == ("bfloat16", 8, 3)
    assert (recipe.method.name, recipe.name) == ("sft", "middle")


@pytest.mark.parametrize(
    ("override", "read", "expected"),
    [
        ("train.learning_rate=1e-5", lambda r: r.train.learning_rate, 1e-5),
        ("train.learning_rate=2E-06", lambda r: r.train.learning_rate, 2e-6),
        ("train.grad_clip=null", lambda r: r.train.grad_clip, None),
        ("train.grad_clip=", lambda r: r.train.grad_clip, None),
        ("train.betas=[0.8, 0.99]", lambda r: r.train.betas, (0.8, 0.99)),
        ("model.lora.targets=[q_proj, v_proj]", lambda r: r.model.lora.targets, ("q_proj", "v_proj")),
        ("model.lora={r: 4}", lambda r: r.model.lora.r, 4),
        ("train.evaluate_first=false", lambda r: r.train.evaluate_first, False),
        ("data.prompt_template=Q: {prompt}: A", lambda r: r.data.prompt_template, "Q: {prompt}: A"),
        ("data.system=a=b", lambda r: r.data.system, "a=b"),
        ("method.context.hidden_wrong=0.25", lambda r: r.method.context.hidden_wrong, 0.25),
        ("method.context=full_solution", lambda r: r.method.context.kind, "full_solution"),
        ("method.context.kind=full_solution", lambda r: r.method.context.kind, "full_solution"),
        ("method.teacher={kind: moving_average, rate: 0.1}", lambda r: r.method.teacher.rate, 0.1),
        ("method.distillation.entry_clip=null", lambda r: r.method.distillation.entry_clip, None),
        ("method=grpo", lambda r: r.method.name, "grpo"),
        ("method.name=sdpo", lambda r: r.method.name, "sdpo"),
        ("rollouts.sampling.top_p=0.9", lambda r: r.rollouts.sampling.top_p, 0.9),
        ("evaluation.sampling.temperature=0.6", lambda r: r.evaluation.sampling.temperature, 0.6),
    ],
)
@pytest.mark.parametrize(
    "text",
    [
        "method: paint",
        "method: {name: paint, context: {hidden_wrong: 0.1, kind: partial_solution}, distillation: {entry_clip: 0.5}}",
    ],
)
def test_an_override_changes_one_setting(write, text, override, read, expected) -> None:
    assert read(load_recipe(write(text), [override])) == expected


def test_later_overrides_win(write) -> None:
    assert load_recipe(write("method: paint"), ["train.steps=3", "train.steps=4"]).train.steps == 4


def test_a_part_of_another_kind_starts_from_its_own_defaults(write) -> None:
    file = write("method: {name: sdpo, weighting: {kind: pass_rate, alpha: 2}, teacher: {kind: live}}")
    recipe = load_recipe(file, ["method.weighting.kind=hard_filter", "method.teacher.kind=moving_average"])
    assert recipe.method.weighting.kind == "hard_filter"
    assert recipe.method.teacher.rate == 0.05


def test_changes_lie_between_the_file_and_the_overrides(write) -> None:
    file, changes = write("method: paint\ntrain: {steps: 1, seed: 1}"), {"train": {"steps": 2, "seed": 2}}
    recipe = load_recipe(file, ["train.seed=3"], changes=changes)
    assert (recipe.train.steps, recipe.train.seed) == (2, 3)


def test_exponents_without_a_dot_are_numbers_and_strings_that_look_like_them_are_quoted() -> None:
    assert parse_yaml("[1e-5, -2E3, '1e5']") == [1e-5, -2000.0, "1e5"]
    assert parse_yaml(dump_yaml({"a": "1e5", "b": 1e-5})) == {"a": "1e5", "b": 1e-5}


def test_merging_leaves_its_arguments_alone() -> None:
    data, changes = {"a": {"b": 1}}, {"a": {"c": 2}}
    assert merged(data, changes) == {"a": {"b": 1, "c": 2}}
    assert (data, changes) == ({"a": {"b": 1}}, {"a": {"c": 2}})


def test_a_missing_file_names_the_nearest_recipe(write) -> None:
    file = write("method: paint", "recipes/embedded/paint.yaml")
    wrong = file.with_name("piant.yaml")
    assert f"there is no recipe {str(wrong)!r} (did you mean {str(file)!r}?)" in message(wrong)
    folder = file.parents[1] / "embeded" / "paint.yaml"
    assert "did you mean" in message(folder)


def test_a_folder_is_no_recipe(tmp_path) -> None:
    assert "cannot be read (Is a directory)" in message(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("method: paint\ntrain: [1, 2\n", "line 3"),
        ("method: paint\ntrain:\n  steps: 1\n steps: 2\n", "line 4"),
        ("method: paint\ntrain: {steps: 1}\ntrain: {seed: 1}\n", "line 3 is not a valid recipe: the key 'train' comes"),
        ("- method\n", "must hold a mapping with at least `method:`, for example `method: paint`; this is a list"),
        ("", "it is empty"),
    ],
)
def test_malformed_yaml_names_the_file_and_the_line(write, text, expected) -> None:
    file = write(text)
    assert str(file) in message(file)
    assert expected in message(file)


def test_a_file_that_is_not_text_is_refused(write, tmp_path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in message(tmp_path / "binary.yaml")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("method: paint\ntrian: {steps: 1}", "unknown setting 'trian' (did you mean 'train'?)"),
        ("method: paint\ntrain: {step: 1}", "unknown setting 'train.step' (did you mean 'steps'?)"),
        ("method: paint\ndata: {columns: {promt: x}}", "unknown setting 'data.columns.promt' (did you mean 'prompt'?)"),
        ("method: paint\nmodel: {lora: {rank: 4, aplha: 3}}", "unknown setting 'model.lora."),
        (
            "method: paint\nrollouts: {sampling: {max_tokens: 4}}",
            "unknown setting 'rollouts.sampling.max_tokens' (did you mean 'max_new_tokens'?)",
        ),
        ("method: {name: paint, contxt: {}}", "did you mean 'context'?"),
        ("method: {name: paint, context: {hiden_wrong: 0.2}}", "(did you mean 'hidden_wrong'?)"),
        ("method: {name: paint, context: {template: {headnig: x}}}", "(did you mean 'heading'?)"),
        ("method: {name: paint, context: partial_solutoin}", "(did you mean 'partial_solution'?)"),
        ("train: {steps: 1}", "there is no `method:`; write for example `method: paint`"),
        ("method: null", "there is no `method:`"),
        ("method: 3", "method is 3; write a method's name"),
        ("method: pain", "unknown method 'pain' (did you mean 'paint'?)"),
        ("method: {nam: paint}", "write a method's name, or a mapping with at least `name:`"),
        ("method: paint\ntrain: {steps: many}", "train.steps is 'many'"),
        ("method: paint\ntrain: {steps: 0}", "train.steps is 0"),
        ("method: paint\ntrain: {steps: 2.5}", "train.steps is 2.5"),
        ("method: paint\ntrain: 5", "train is 5"),
        ("method: paint\ntrain: {learning_rate: .inf}", "train.learning_rate is inf"),
        ("method: paint\ntrain: {learning_rate: .nan}", "train.learning_rate is nan"),
        ("method: paint\ntrain: {betas: [0.9, 1.0]}", "1.0"),
        ("method: paint\ntrain: {schedule: cosin}", "(did you mean 'cosine'?)"),
        ("method: paint\ntrain: {updates_per_batch: 9, questions_per_step: 8}", "each update needs at least one"),
        ("method: paint\nrollouts: {sampling: {temperature: 0, max_new_tokens: 4}}", "temperature"),
        ("method: paint\nname: a/b", "name: 'a/b' names the run folder"),
        ("method: paint\nname: ..", "name: '..' names"),
        ("method: sc_sdpo\nsource: {group_size: 1}", "unknown setting 'source'"),
        ("method: {name: sc_sdpo, group_size: 1}", "source.group_size is 1"),
    ],
)
def test_a_wrong_setting_is_one_sentence_that_names_it_and_its_neighbour(write, text, expected) -> None:
    file = write(text)
    assert expected in message(file)
    assert message(file).startswith(str(file))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.steps", "'train.steps' is no setting; write section.key=value, for example train.steps=50"),
        ("=3", "'=3' is no setting"),
        ("trian.steps=3", "a recipe has no section 'trian' (did you mean 'train'?)"),
        ("train.stesp=3", "unknown setting 'train.stesp' (did you mean 'steps'?)"),
        ("train.steps.more=3", "train.steps"),
        ("method.context.hidden_wrong=2", "hidden_wrong is 2"),
        ("method.alpha=0.5", "'alpha'"),
        ("extends=x.yaml", "a recipe has no section 'extends'"),
    ],
)
def test_a_wrong_override_is_one_sentence_too(write, override, expected) -> None:
    assert expected in message(write("method: paint"), override)


def test_recipes_that_extend_each_other_in_a_circle_are_refused(write) -> None:
    first = write("extends: b.yaml\nmethod: paint", "a.yaml")
    second = write("extends: a.yaml", "b.yaml")
    own = write("extends: own.yaml", "own.yaml")
    for file in (first, second, own):
        assert "goes round in a circle; remove one of the extends" in message(file)


def test_extends_names_a_file_that_exists(write) -> None:
    assert "there is no recipe" in message(write("extends: nowhere.yaml\nmethod: paint"))
    assert "extends is 3; write the path" in message(write("extends: 3\nmethod: paint"))


def test_differing_settings_are_named_with_both_values_apart_from_output_and_notes(write) -> None:
    first = load_recipe(write("method: paint"))
    second = load_recipe(write("method: paint"), ["train.seed=4", "output.folder=x", "notes=y", "model.lora.r=2"])
    differing = differing_settings(first, second)
    assert differing["train.seed"] == ("0", "4")
    assert {name.split(".")[0] for name in differing} == {"train", "model"}
    assert differing_settings(first, first) == {}


def test_the_number_of_steps_may_change_on_resuming_unless_a_cosine_depends_on_it() -> None:
    def recipe(schedule: str, steps: int, seed: int = 0):
        return parse_recipe({"method": "paint", "train": {"schedule": schedule, "steps": steps, "seed": seed}})

    assert resume_conflicts(recipe("constant", 2), recipe("constant", 3)) == {}
    assert list(resume_conflicts(recipe("cosine", 2), recipe("cosine", 3))) == ["train.steps"]
    assert list(resume_conflicts(recipe("constant", 2), recipe("constant", 3, seed=1))) == ["train.seed"]
