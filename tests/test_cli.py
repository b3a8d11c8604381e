"""The command line, as a user meets it: what it prints, where, and with which exit code."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from selfdistill import __version__, cli, commands
from selfdistill.methods import names

ROOT = Path(__file__).resolve().parents[1]
EMBEDDED = ROOT / "recipes" / "embedded"
REDUCED = (
    "data.train_limit=8",
    "data.eval_limit=4",
    "rollouts.sampling.max_new_tokens=24",
    "train.steps=2",
    "train.questions_per_step=2",
    "evaluation.samples=2",
    "evaluation.sampling.max_new_tokens=24",
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that runs a command in an empty folder and returns exit code, output and errors."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        code = cli.main([str(argument) for argument in arguments])
        return (code, *capsys.readouterr())

    return run


@pytest.fixture
def refused(run):
    """Return a function that runs a command which must fail with one line on standard error, and returns that line."""

    def refused(*arguments: str | Path) -> str:
        code, out, err = run(*arguments)
        assert (code, out) == (1, "")
        assert err.startswith("selfdistill: ") and err.count("\n") == 1
        assert "Traceback" not in err
        return err

    return refused


def test_the_version_is_printed(capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"selfdistill {__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["trian"], ["train"], ["doctor", "--fast"], ["methods", "paint", "--fast"]])
def test_wrong_usage_ends_with_code_2(arguments, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert "usage: selfdistill" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["0", "-1", "x", "1.5"])
def test_numbers_of_seeds_and_jobs_are_positive(value, capsys) -> None:
    with pytest.raises(SystemExit):
        cli.main(["compare", "a.yaml", f"--seeds={value}"])
    assert "is not a whole number of at least 1" in capsys.readouterr().err


def test_methods_lists_all_ten(run) -> None:
    code, out, _ = run("methods")
    assert code == 0
    rows = [line.split("|")[1].strip() for line in out.splitlines() if line.startswith("| ")]
    assert rows[2:] == names()


def test_a_methods_parts_are_printed_with_overrides_applied(run) -> None:
    code, out, _ = run("methods", "paint")
    assert code == 0 and re.search(r"hidden_wrong: 0\.3\b", out) and "arXiv 2604.26573" in out
    code, out, _ = run("methods", "paint", "context.hidden_wrong=0.25")
    assert code == 0 and "hidden_wrong: 0.25" in out
    code, out, _ = run("methods", "sc_sdpo", "alpha=1e-1")
    assert code == 0 and "alpha: 0.1" in out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("pain",), "unknown method 'pain' (did you mean 'paint'?)"),
        (("paint", "context.hiden_wrong=0.25"), "(did you mean 'hidden_wrong'?)"),
        (("paint", "contxt.hidden_wrong=0.25"), "(did you mean 'context'?)"),
        (("paint", "hidden_wrong=[0.25"), "hidden_wrong"),
        (("paint", "hidden_wrong"), "'hidden_wrong' is no setting"),
        (("paint", "hidden_wrong=3"), "hidden_wrong is 3"),
    ],
)
def test_a_wrong_method_or_setting_names_the_nearest(refused, arguments, expected) -> None:
    assert expected in refused("methods", *arguments)


def test_doctor_reports(run) -> None:
    code, out, _ = run("doctor")
    assert code == 0
    assert "torch" in out and "embedded model" in out


def test_train_says_what_it_reached_and_where_and_evaluate_takes_the_run_folder(run, tmp_path) -> None:
    code, out, err = run("train", EMBEDDED / "paint.yaml", *REDUCED)
    assert code == 0
    lines = out.splitlines()
    assert re.match(r"step +0  4 problems: avg@2 \d", lines[0]) and re.match(r"step +2  4 problems", lines[1])
    assert re.match(r"step 2 against step 0: .* on 4 problems, 95% interval .*distinguishable", lines[2])
    assert lines[3] == "run folder: runs/paint"
    assert re.search(r"step 1 of 2 .*loss", err)
    code, out, _ = run("evaluate", "runs/paint")
    assert code == 0
    trained, where = out.splitlines()
    assert lines[1].endswith(trained)  # the same weights under the same random numbers
    result = Path(where.removeprefix("result: "))
    assert json.loads(result.read_text())["problems"] == 4
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_evaluating_again_reuses_what_is_there_until_weights_or_settings_change(run) -> None:
    from selfdistill.rollouts.transformers_sampler import TransformersSampler

    def evaluated(*overrides: str) -> str:
        code, out, _ = run("evaluate", "runs/sft", *overrides)
        assert code == 0
        return out.splitlines()[-1]

    assert run("train", EMBEDDED / "sft.yaml", *REDUCED)[0] == 0
    first = evaluated()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransformersSampler, "sample", None)
        assert evaluated() == first
    assert evaluated("evaluation.samples=1") != first
    assert run("train", EMBEDDED / "sft.yaml", *REDUCED, "train.steps=3", "--resume")[0] == 0
    assert evaluated() != first


def test_evaluate_takes_a_recipe_and_scores_its_generations_again(run, tmp_path) -> None:
    code, out, _ = run("evaluate", EMBEDDED / "paint.yaml", *REDUCED, "--out", "base")
    assert code == 0 and out.splitlines()[-1] == "result: base/result.json"
    result, generations = tmp_path / "base" / "result.json", tmp_path / "base" / "generations.jsonl"
    before = json.loads(result.read_text())
    rows = [json.loads(line) for line in generations.read_text().splitlines()]
    assert len(rows) == 8
    generations.write_text("".join(json.dumps({**row, "success": False, "reward": 0.0}) + "\n" for row in rows))
    code, out, _ = run("evaluate", EMBEDDED / "paint.yaml", *REDUCED, "--rescore", generations)
    assert code == 0 and str(result) in out
    assert json.loads(result.read_text())["avg"] == before["avg"]


def test_adapters_are_evaluated_from_their_run_folder(run) -> None:
    assert run("train", EMBEDDED / "paint.yaml", *REDUCED, "model.lora={r: 2}")[0] == 0
    code, out, _ = run("evaluate", "runs/paint")
    assert code == 0 and "4 problems" in out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("train", EMBEDDED / "piant.yaml"), "did you mean"),
        (("train", EMBEDDED / "paint.yaml", "train.stesp=3"), "unknown setting 'train.stesp' (did you mean 'steps'?)"),
        (("train", EMBEDDED / "paint.yaml", "train.steps"), "'train.steps' is no setting"),
        (("train", EMBEDDED / "paint.yaml", "--resume"), "there is no run to resume in 'runs/paint'"),
        (("train", EMBEDDED / "paint.yaml", "rollouts.sampling.max_new_tokens=99999"), "lower it"),
        (("evaluate", "nowhere.yaml"), "there is no recipe 'nowhere.yaml'"),
        (("evaluate", "."), "'.' is no run folder: it has no recipe.yaml"),
        (
            ("evaluate", EMBEDDED / "sft.yaml", "--rescore", "nowhere.jsonl"),
            "cannot read the generations nowhere.jsonl",
        ),
        (("compare", "train.steps=3"), "compare needs at least one recipe file"),
        (("compare", "nowhere.yaml"), "there is no recipe 'nowhere.yaml'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_without_a_traceback(refused, arguments, expected) -> None:
    assert expected in refused(*arguments)


def test_a_run_that_is_not_finished_cannot_be_evaluated(run, refused) -> None:
    from selfdistill.training.recipe import load_recipe
    from selfdistill.training.run import train

    train(load_recipe(EMBEDDED / "sft.yaml", REDUCED), stop_after=1)
    assert "the run in 'runs/sft' has no final model yet; finish it" in refused("evaluate", "runs/sft")


def test_an_evaluation_never_goes_into_a_training_run(run, refused) -> None:
    run("train", EMBEDDED / "sft.yaml", *REDUCED)
    said = refused("evaluate", EMBEDDED / "sft.yaml", *REDUCED, "--out", "runs/sft")
    assert "--out 'runs/sft' holds a training run; choose another folder" in said


def test_settings_may_stand_behind_options() -> None:
    parsed = cli.parse(["train", "a.yaml", "x=1", "--resume", "train.steps=3", "train.seed=1"])
    assert (parsed.resume, parsed.overrides) == (True, ["x=1", "train.steps=3", "train.seed=1"])
    parsed = cli.parse(["compare", "a.yaml", "--seeds", "2", "b.yaml", "x=1"])
    assert (parsed.seeds, parsed.recipes) == (2, ["a.yaml", "b.yaml", "x=1"])
    parsed = cli.parse(["methods", "paint", "x=1"])
    assert (parsed.name, parsed.overrides) == ("paint", ["x=1"])


def test_a_stopped_run_prints_a_command_that_a_shell_understands(run, monkeypatch) -> None:
    from selfdistill.training import run as module

    real = module.train
    monkeypatch.setattr(module, "train", lambda recipe, **settings: real(recipe, stop_after=1, **settings))
    code, out, _ = run("train", EMBEDDED / "sft.yaml", *REDUCED, "notes=it's a test")
    assert code == 0
    assert out.startswith("stopped after step 1 of 2; go on with: selfdistill train ")
    assert out.endswith("""'notes=it'"'"'s a test' --resume\n""")


def test_a_users_reward_function_in_a_file_trains_a_step(run, tmp_path) -> None:
    (tmp_path / "rewards.py").write_text(
        "def score(completions, level, **kwargs):\n"
        "    return [float(len(text) % 2 == wanted % 2) for text, wanted in zip(completions, level)]\n"
    )
    rows = [{"prompt": f"{n}+{n + 1}", "level": n} for n in range(1, 7)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.yaml").write_text(
        "method: grpo\nmodel: {path: embedded}\nrollouts: {sampling: {max_new_tokens: 24}}\n"
        "data: {task: custom, train: rows.jsonl, reward: rewards.py:score, eval_questions: 2}\n"
        "train: {steps: 1, questions_per_step: 4}\nevaluation: {samples: 2, sampling: {max_new_tokens: 24}}\n"
    )
    code, out, err = run("train", "mine.yaml")
    assert code == 0 and "run folder: runs/mine" in out
    metrics = json.loads((tmp_path / "runs" / "mine" / "metrics.jsonl").read_text())
    assert 0 < metrics["reward"] < 1 and metrics["grad_norm"] > 0
    (tmp_path / "rewards.py").write_text("def score(completions, **kwargs):\n    return 1 / 0\n")
    code, _, err = run("train", "mine.yaml", "output.folder=again")
    assert code == 1 and "ZeroDivisionError" in err and "Traceback" not in err


def test_output_that_is_no_terminal_is_plain(run) -> None:
    for arguments in (("train", EMBEDDED / "sc_sdpo.yaml", *REDUCED), ("methods",), ("doctor",)):
        code, out, err = run(*arguments)
        assert code == 0
        assert "\x1b" not in out + err and "\r" not in out + err


def test_a_message_with_line_breaks_and_escapes_is_one_plain_line(refused, monkeypatch) -> None:
    from selfdistill.errors import DataError

    def fail(arguments) -> int:
        raise DataError("row 3:\nthe answer \x1b[31mred\x1b[0m is empty")

    monkeypatch.setattr(commands, "methods", fail)
    assert refused("methods") == "selfdistill: row 3: the answer [31mred[0m is empty\n"


def test_a_full_disk_is_no_bug_and_a_bug_keeps_its_traceback(refused, run, monkeypatch) -> None:
    def fail(error: Exception):
        def command(arguments) -> int:
            raise error

        return command

    monkeypatch.setattr(commands, "methods", fail(OSError(28, "No space left on device", "x.jsonl")))
    assert refused("methods") == "selfdistill: x.jsonl cannot be written or read: No space left on device\n"
    monkeypatch.setattr(commands, "methods", fail(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        run("methods")
    monkeypatch.setattr(commands, "methods", fail(KeyboardInterrupt()))
    assert run("methods") == (130, "", "selfdistill: interrupted\n")


def test_the_demo_starts_over_when_finished_and_touches_nothing_that_is_not_its_own(tmp_path, refused) -> None:
    demo = tmp_path / "demo"
    for name in ("base", "paint-seed0"):
        (demo / name).mkdir(parents=True)
    commands._clear_finished_demo(demo)
    assert (demo / "base").exists()  # interrupted: goes on
    (demo / "table.json").write_text("[]")
    (demo / "grpo-seed0").mkdir()
    assert "holds 'grpo-seed0', which is not the demo's; choose another folder" in refused("demo", "--out", demo)
    assert (demo / "base").exists()
    (demo / "grpo-seed0").rmdir()
    commands._clear_finished_demo(demo)
    assert not demo.exists()


def test_listing_the_methods_imports_neither_torch_nor_transformers_beyond_need() -> None:
    script = (
        "import sys; from selfdistill import cli; code = cli.main(['methods', 'paint']);"
        "print(code, 'transformers' in sys.modules, 'datasets' in sys.modules, 'peft' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT / "src", check=True)
    assert done.stdout.splitlines()[-1] == "0 False False False"
