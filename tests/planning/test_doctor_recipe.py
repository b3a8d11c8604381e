"""`selfdistill doctor RECIPE`, as a user meets it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from selfdistill import cli
from selfdistill.planning import plan as planning
from selfdistill.planning.page import amount, render
from selfdistill.planning.plan import Request, make_plan
from selfdistill.training.recipe import Recipe, load_recipe

EMBEDDED = Path(__file__).resolve().parents[2] / "recipes" / "embedded"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that runs the doctor in an empty folder and returns exit code, output and errors."""
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        code = cli.main(["doctor", *(str(argument) for argument in arguments)])
        return (code, *capsys.readouterr())

    return run


def test_a_recipe_is_planned_and_measured_and_nothing_is_left_behind(run) -> None:
    code, out, _ = run(EMBEDDED / "paint.yaml", "--measure", "0.5", "--json", "plan.json")
    assert code == 0
    for heading in ("model\n", "memory\n", "tokens per step\n", "time per step\n"):
        assert heading in out
    assert "870,400" in out and "Fits: " in out and "a step of the recipe" in out
    assert [path.name for path in Path.cwd().iterdir()] == ["plan.json"]
    data = json.loads(Path("plan.json").read_text())
    assert data["fits"] and data["parameters"] == {"all": 870_400, "trained": 870_400}
    assert data["step_seconds"]["total"] > 0 and data["measured"] and data["changes"] == []


@pytest.mark.parametrize("method", ["sc_sdpo", "paced", "grpo", "srpo", "sft"])
def test_every_kind_of_method_can_be_measured(run, method: str) -> None:
    small = ("train.questions_per_step=2", "rollouts.sampling.max_new_tokens=16", "data.train_limit=8")
    code, out, _ = run(EMBEDDED / f"{method}.yaml", *small, "--measure", "0.2", "--json", "plan.json")
    assert code == 0 and "a step of the recipe" in out
    assert json.loads(Path("plan.json").read_text())["measured"][-1]["scored_rows"] > 0


def test_measuring_leaves_the_random_generators_alone(run) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    run(EMBEDDED / "paint.yaml", "train.questions_per_step=1", "--measure", "0.1")
    assert torch.equal(torch.get_rng_state(), before)


def test_what_does_not_fit_ends_with_code_1_and_says_what_to_change(run) -> None:
    code, out, _ = run(EMBEDDED / "paint.yaml", "--gpu-memory", "1.1", "--no-measure")
    assert code == 1
    assert "what to change, in this order\n  train.micro_batch_tokens=" in out
    assert out.splitlines()[-1].startswith("Does not fit: the update needs 1.")
    assert "not asked for (--no-measure)" in out


def test_several_gpus_divide_the_work(run) -> None:
    code, out, _ = run(EMBEDDED / "sc_sdpo.yaml", "--gpus", "4", "--gpu-memory", "24", "--no-measure")
    assert code == 0 and "memory per GPU, 4 of them" in out and "1/4 of them, float32" in out


def test_a_gpu_that_is_not_here_is_not_measured(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, out, err = run(EMBEDDED / "paint.yaml", "model.device=cuda")
    assert code == 1 and out == "" and "--gpu-memory" in err
    code, out, _ = run(EMBEDDED / "paint.yaml", "model.device=cuda", "--gpu-memory", "24")
    assert code == 0 and "there is no GPU here" in out


def test_a_model_without_weights_is_planned_and_not_measured(
    recipe: Callable[..., Recipe], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "model.safetensors").unlink()
    made = make_plan(recipe(), Request())
    assert made.fits and made.step is None and "weights are not in a folder" in made.unmeasured


def test_what_does_not_fit_here_is_not_loaded(recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "_capacity", lambda device: (1000, "this machine's memory"))
    made = make_plan(recipe(), Request())
    assert not made.fits and "would not fit this machine" in made.unmeasured


@pytest.mark.parametrize("option", [("--gpus", "2"), ("--gpu-memory", "24"), ("--no-measure",), ("--json", "x")])
def test_options_of_a_plan_need_a_recipe(run, option: tuple[str, ...]) -> None:
    code, out, err = run(*option)
    assert (code, out) == (1, "") and f"doctor RECIPE {option[0]}" in err


@pytest.mark.parametrize("option", [("--gpus", "0"), ("--gpu-memory", "-1"), ("--measure", "x")])
def test_numbers_that_cannot_be_are_wrong_usage(run, option: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(EMBEDDED / "paint.yaml", *option)
    assert ended.value.code == 2


def test_a_misspelt_setting_names_the_nearest(run) -> None:
    code, _, err = run(EMBEDDED / "paint.yaml", "train.micro_batch_token=1")
    assert code == 1 and "micro_batch_tokens" in err


def test_on_a_terminal_the_plan_is_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    render(make_plan(load_recipe(EMBEDDED / "paint.yaml"), Request(gpu_memory=1.1, seconds=0)), stream)
    assert "\x1b[" in stream.getvalue() and "tile of the head" in stream.getvalue()
    assert "train.micro_batch_tokens=" in stream.getvalue()


def test_amounts_are_readable() -> None:
    assert (amount(3 * 2**20), amount(2**30), amount(2**29)) == ("3.0 MiB", "1.00 GiB", "0.50 GiB")
