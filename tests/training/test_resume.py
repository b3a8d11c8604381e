"""A run stopped after any step and resumed is, bit for bit, the run that was never disturbed."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from selfdistill.checkpoints import CheckpointFolder, read_checkpoint
from selfdistill.errors import TrainingError
from selfdistill.training.progress import NullProgress
from selfdistill.training.run import train
from selfdistill.training.run_folder import RunFolder

STEPS = 4
RUNS: dict[str, tuple[str, ...]] = {
    "paint": ("paint",),
    "sc_sdpo": ("sc_sdpo", "method.teacher.rate=0.5", "train.questions_per_step=3", "method.source.group_size=6"),
    "lora_paint": ("paint", "model.lora={r: 4, alpha: 8, dropout: 0.1}"),
    "lora_sdpo": ("sdpo", "method.source.group_size=4", "model.lora={r: 4, alpha: 8}", "method.teacher.rate=0.5"),
    "paced": ("paced", "method.weighting.rollouts=4", "train.seed=1"),
    "grpo": ("grpo", "train.schedule=cosine", "train.weight_decay=0.1", "train.updates_per_batch=2"),
    "trust_region": ("sdpo", "method.source.group_size=4", "method.teacher={kind: trust_region, rate: 0.3}"),
    "bf16": (
        "sdpo",
        "method.source.group_size=4",
        "model.dtype=bfloat16",
        "method.teacher={kind: moving_average, rate: 0.5, every: step}",
    ),
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of runs that were never stopped, made when they are first asked for."""
    return {"root": tmp_path_factory.mktemp("undisturbed")}


@pytest.fixture
def reference(undisturbed, make_recipe):
    def reference(name: str) -> RunFolder:
        if name not in undisturbed:
            recipe = _recipe(make_recipe, name)
            folder = undisturbed["root"] / name
            train(recipe)
            shutil.move(recipe.folder, folder)
            undisturbed[name] = folder
        return RunFolder(undisturbed[name])

    return reference


@pytest.mark.parametrize("stop", [1, 2, 3])
@pytest.mark.parametrize("name", list(RUNS))
def test_a_stopped_and_resumed_run_equals_an_undisturbed_one(name, stop, make_recipe, reference, read_lines) -> None:
    recipe = _recipe(make_recipe, name)
    expected = reference(name)
    stopped = train(recipe, stop_after=stop)
    assert (stopped.step, stopped.finished) == (stop, False)
    resumed = train(recipe, resume=True)
    assert (resumed.step, resumed.finished) == (STEPS, True)
    assert_same_run(RunFolder(recipe.folder), expected, read_lines)
    rows = read_lines(expected.metrics)
    assert any(row["grad_norm"] > 0 for row in rows[:stop]) and any(row["grad_norm"] > 0 for row in rows[stop:])


def test_a_run_stopped_after_every_single_step_equals_it_too(make_recipe, reference, read_lines) -> None:
    recipe, expected = _recipe(make_recipe, "sc_sdpo"), reference("sc_sdpo")
    train(recipe, stop_after=1)
    for step in range(2, STEPS + 1):
        train(recipe, resume=True, stop_after=step)
    assert train(recipe, resume=True).finished
    assert_same_run(RunFolder(recipe.folder), expected, read_lines)


def test_a_run_that_died_between_checkpoints_goes_on_from_the_last_one(
    make_recipe, reference, read_lines, monkeypatch
) -> None:
    """As after SIGKILL: the folder has steps, and half a line, from after the newest checkpoint."""
    recipe, expected = _recipe(make_recipe, "paint", "train.save_every=2"), reference("paint")
    _die_after(monkeypatch, 3)
    with pytest.raises(Died):
        train(recipe)
    monkeypatch.undo()
    folder = RunFolder(recipe.folder)
    assert CheckpointFolder(folder.checkpoints).steps() == [2]
    assert len(read_lines(folder.metrics)) == 3
    for file in (folder.metrics, folder.rollouts):
        with file.open("ab") as stream:
            stream.write('{"step": 4, "prompt": "\N{BLACK HEART SUIT}'.encode()[:-1])
    train(recipe, resume=True)
    assert_same_run(folder, expected, read_lines)


def test_a_run_that_died_before_its_first_checkpoint_starts_over(
    make_recipe, reference, read_lines, monkeypatch
) -> None:
    recipe, expected = _recipe(make_recipe, "paced"), reference("paced")
    _die_after(monkeypatch, 2)
    with pytest.raises(Died):
        train(recipe)
    monkeypatch.undo()
    train(recipe, resume=True)
    assert_same_run(RunFolder(recipe.folder), expected, read_lines)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_after_the_step_that_is_going_on(number, make_recipe, reference, read_lines) -> None:
    class Interrupting(NullProgress):
        def step_line(self, metrics, total=None) -> None:
            if metrics["step"] == 2:
                signal.raise_signal(number)

    before = signal.getsignal(number)
    recipe, expected = _recipe(make_recipe, "paint"), reference("paint")
    result = train(recipe, progress=Interrupting())
    assert (result.step, result.finished) == (2, False)
    assert signal.getsignal(number) is before
    train(recipe, resume=True)
    assert_same_run(RunFolder(recipe.folder), expected, read_lines)


@pytest.mark.parametrize("phase", [1, 2, 3])
def test_a_signal_during_an_evaluation_stops_there_and_the_evaluation_is_made_up(
    phase, make_recipe, reference, read_lines
) -> None:
    class Interrupting(NullProgress):
        evaluations = 0

        def phase(self, name, total=None, unit="tokens"):
            if name == "evaluating":
                self.evaluations += 1
                if self.evaluations == phase:
                    signal.raise_signal(signal.SIGTERM)
            return super().phase(name, total, unit)

    recipe, expected = _recipe(make_recipe, "paint"), reference("paint")
    result = train(recipe, progress=Interrupting())
    assert (result.step, result.finished) == ({1: 0, 2: 2, 3: 4}[phase], False)
    assert len(result.evaluations) == phase - 1
    assert train(recipe, resume=True).finished
    assert_same_run(RunFolder(recipe.folder), expected, read_lines)


def test_a_second_signal_interrupts_at_once(make_recipe) -> None:
    class Impatient(NullProgress):
        def step_line(self, metrics, total=None) -> None:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(make_recipe(), progress=Impatient())


def test_the_moving_average_and_the_initial_weights_are_in_the_checkpoint(make_recipe) -> None:
    for name in ("sc_sdpo", "paint"):
        recipe = _recipe(make_recipe, name)
        train(recipe, stop_after=2)
        saved = read_checkpoint(CheckpointFolder(RunFolder(recipe.folder).checkpoints).newest)
        assert saved.teacher.keys() == saved.weights.keys()
        assert any(not torch.equal(saved.teacher[name], saved.weights[name]) for name in saved.weights)
        assert {value.dtype for value in saved.teacher.values()} == {torch.float32}
        shutil.rmtree(recipe.folder)


def test_a_folder_that_holds_a_run_is_not_overwritten(make_recipe) -> None:
    recipe = make_recipe("sft")
    train(recipe, stop_after=1)
    before = RunFolder(recipe.folder).metrics.read_bytes()
    with pytest.raises(
        TrainingError, match=r"already holds a run; add --resume to go on with it, or set output.folder"
    ):
        train(recipe)
    assert RunFolder(recipe.folder).metrics.read_bytes() == before


def test_training_twice_is_refused_and_resuming_a_finished_run_changes_nothing(make_recipe, read_lines) -> None:
    recipe = make_recipe("sft")
    train(recipe)
    folder = RunFolder(recipe.folder)
    weights, rows = (folder.final / "model.safetensors").read_bytes(), read_lines(folder.metrics)
    with pytest.raises(TrainingError, match=r"already holds a run"):
        train(recipe)
    again = train(recipe, resume=True)
    assert again.finished and again.step == 2
    assert (folder.final / "model.safetensors").read_bytes() == weights
    assert read_lines(folder.metrics) == rows


def test_a_finished_run_can_be_given_more_steps(make_recipe, reference, read_lines) -> None:
    train(_recipe(make_recipe, "sc_sdpo", "train.steps=2"))
    recipe = _recipe(make_recipe, "sc_sdpo")
    train(recipe, resume=True)
    assert_same_run(RunFolder(recipe.folder), reference("sc_sdpo"), read_lines)


def test_fewer_steps_than_were_done_are_refused(make_recipe) -> None:
    train(make_recipe("sft"))
    before = RunFolder(make_recipe("sft").folder).recipe.read_text()
    with pytest.raises(TrainingError, match=r"has already done 2 steps; set train.steps to 2 or more"):
        train(make_recipe("sft", "train.steps=1"), resume=True)
    assert RunFolder(make_recipe("sft").folder).recipe.read_text() == before


def test_resuming_with_other_settings_names_them_and_their_values(make_recipe) -> None:
    train(make_recipe("sft"), stop_after=1)
    with pytest.raises(TrainingError) as caught:
        train(make_recipe("sft", "train.seed=9", "model.lora={r: 2}"), resume=True)
    assert "was started with another" in str(caught.value)
    assert "train.seed (0, now 9)" in str(caught.value)
    assert "model.lora" in str(caught.value)


def test_resuming_where_there_is_no_run_says_so(make_recipe) -> None:
    with pytest.raises(TrainingError, match=r"there is no run to resume in .* leave out --resume"):
        train(make_recipe(), resume=True)


@pytest.fixture(scope="module")
def three_steps(tmp_path_factory) -> Path:
    """Return where a run that was stopped after three steps is kept, once it has been made."""
    return tmp_path_factory.mktemp("stopped") / "run"


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "pickle"])
@pytest.mark.parametrize("name", ["state.json", "__0_0.distcp", ".metadata"])
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one_and_says_so(
    damage, name, make_recipe, reference, read_lines, three_steps
) -> None:
    recipe, expected = _recipe(make_recipe, "paint", "train.save_every=1"), reference("paint")
    if not three_steps.exists():
        train(recipe, stop_after=3)
        shutil.move(recipe.folder, three_steps)
    folder = RunFolder(recipe.folder)
    shutil.copytree(three_steps, recipe.folder)
    newest = CheckpointFolder(folder.checkpoints).newest
    _damage(newest / name, damage)
    said = Said()
    train(recipe, resume=True, progress=said)
    assert f"the checkpoint {str(newest)!r} cannot be used" in said.messages[0]
    assert "resuming after step 2 of 4" in said.messages
    assert not any("\n" in message for message in said.messages)
    assert_same_run(folder, expected, read_lines)


def test_a_metrics_line_that_is_no_record_is_named(make_recipe) -> None:
    recipe = make_recipe("sft")
    train(recipe, stop_after=1)
    metrics = RunFolder(recipe.folder).metrics
    metrics.write_text("hello\n" + metrics.read_text())
    with pytest.raises(TrainingError, match=r"metrics.jsonl line 1 is not a step's record; remove that line"):
        train(recipe, resume=True)


def assert_same_run(folder: RunFolder, expected: RunFolder, read_lines) -> None:
    """Compare everything that a run leaves, apart from times."""
    assert _untimed(read_lines(folder.metrics)) == _untimed(read_lines(expected.metrics))
    assert folder.rollouts.read_bytes() == expected.rollouts.read_bytes()
    own, other = (read_checkpoint(CheckpointFolder(one.checkpoints).newest) for one in (folder, expected))
    assert_same(own.tensors, other.tensors)
    assert replace(own.manifest, files={}) == replace(other.manifest, files={})
    assert folder.evaluated_steps() == expected.evaluated_steps()
    assert folder.read_evaluations() == expected.read_evaluations()
    assert folder.result.read_bytes() == expected.result.read_bytes()
    for file in expected.final.glob("*.safetensors"):
        assert (folder.final / file.name).read_bytes() == file.read_bytes()


def assert_same(first: Any, second: Any) -> None:
    """Compare nested state bit by bit."""
    assert type(first) is type(second)
    if isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype and torch.equal(first, second)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, list | tuple):
        assert len(first) == len(second)
        for one, two in zip(first, second, strict=True):
            assert_same(one, two)
    else:
        assert first == second


def _recipe(make_recipe, name: str, *more: str):
    method, *overrides = RUNS[name]
    return make_recipe(method, f"train.steps={STEPS}", "train.evaluate_every=2", "data.eval_limit=2", *overrides, *more)


def _untimed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in row.items() if not key.startswith(("seconds/", "tokens_per_second/"))}
        for row in rows
    ]


class Said(NullProgress):
    """Keeps the messages."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


class Died(BaseException):
    """Stands for a process that is gone."""


def _die_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    def step_line(self, metrics, total=None) -> None:
        if metrics["step"] == step:
            raise Died

    monkeypatch.setattr(NullProgress, "step_line", step_line)


def _damage(file: Path, how: str) -> None:
    content = file.read_bytes()
    if how == "cut":
        file.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "garbage":
        file.write_bytes(b"no checkpoint at all\n" * 50)
    else:
        with file.open("wb") as stream:
            torch.save(["something else"], stream)


def test_resuming_on_a_data_file_that_has_changed_is_refused(make_recipe, tmp_path) -> None:
    rows = [{"prompt": f"{n}+{n}", "solution": f"#### {2 * n}", "answer": str(2 * n)} for n in range(2, 8)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = make_recipe(
        "sft", "data.task=maths", f"data.train={json.dumps(str(data))}", "data.eval_limit=null", "data.eval_questions=2"
    )
    train(recipe, stop_after=1)
    data.write_text("".join(json.dumps(row) + "\n" for row in rows[:-1]))
    with pytest.raises(TrainingError, match=r"the questions are not those .* a data file has changed"):
        train(recipe, resume=True)
