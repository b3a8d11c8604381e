"""Warnings of whole runs: written, shown, the same after a resume; and runs that they end before their last step."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from selfdistill.checkpoints import CheckpointFolder
from selfdistill.commands import print_result
from selfdistill.evaluation.bootstrap import Interval
from selfdistill.training import run as run_module
from selfdistill.training.auto_resume import finished_result
from selfdistill.training.jobs import Job
from selfdistill.training.progress import NullProgress
from selfdistill.training.run import train
from selfdistill.training.run_folder import RunFolder

TOUCHY = ("paint", "rollouts.mismatch_warning=1e-12", "train.steps=6", "warnings.repeat_after=1", "warnings.patience=2")
"""Rounding alone is a mismatch then, at every step."""
STOPS = (*TOUCHY, "warnings.stop_on=mismatch", "train.evaluate_every=1")


class Listening(NullProgress):
    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.messages: list[str] = []

    def warning(self, text: str) -> None:
        self.warnings.append(text)

    def message(self, text: str) -> None:
        self.messages.append(text)


def test_warnings_are_shown_written_with_their_evidence_and_counted(make_recipe, read_lines) -> None:
    recipe, heard = make_recipe(*TOUCHY), Listening()
    result = train(recipe, progress=heard)
    assert (result.step, result.finished, result.stopped_early) == (6, True, None)
    rows = read_lines(RunFolder(recipe.folder).warnings)
    keys = ["step", "name", "measure", "value", "threshold", "window", "text", "remedy"]
    assert rows and all(list(row) == keys for row in rows)
    assert rows[0]["step"] == 1 and rows[0]["window"] == [1, 1] and rows[0]["value"] > rows[0]["threshold"] == 1e-12
    assert heard.warnings == [f"{row['text']}; {row['remedy']}" for row in rows]
    metrics = read_lines(RunFolder(recipe.folder).metrics)
    assert [row["warnings"] for row in metrics] == [sum(one["step"] <= row["step"] for one in rows) for row in metrics]


def test_a_run_without_trouble_has_no_file_of_warnings(make_recipe) -> None:
    recipe = make_recipe("sft")
    train(recipe)
    assert not RunFolder(recipe.folder).warnings.exists()


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_resumed_run_warns_as_one_that_was_not_stopped(stop, make_recipe, read_lines) -> None:
    settings = (*TOUCHY, "train.evaluate_every=2", "warnings.window=2", "warnings.accuracy_drop=0.0")
    whole, parts = make_recipe(*settings, folder="whole"), make_recipe(*settings, folder="parts")
    train(whole)
    train(parts, stop_after=stop)
    train(parts, resume=True)
    one, other = (RunFolder(recipe.folder) for recipe in (whole, parts))
    assert one.warnings.read_bytes() == other.warnings.read_bytes() != b""
    counts = [[row["warnings"] for row in read_lines(folder.metrics)] for folder in (one, other)]
    assert counts[0] == counts[1]


def test_a_run_killed_between_an_evaluation_and_its_warning_says_it_when_resumed(make_recipe, monkeypatch) -> None:
    recipe = make_recipe("paint", "train.evaluate_every=1", "warnings.accuracy_drop=0.0")
    folder = RunFolder(recipe.folder)
    _evaluating(monkeypatch, iter([0.9, 0.1, 0.1]))
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "say", lambda run, due: run.alarms.stop)
        train(recipe, stop_after=1)
    assert folder.evaluated_steps() == [0, 1] and not folder.warnings.exists()
    train(recipe, resume=True)
    rows = [json.loads(line) for line in folder.warnings.read_text().splitlines()]
    assert [(row["step"], row["measure"]) for row in rows] == [(1, "evaluation/avg@2")]


def test_a_warning_ends_the_run_with_the_best_checkpoint_kept(make_recipe, read_lines, capsys, monkeypatch) -> None:
    _evaluating(monkeypatch, iter([0.5, 0.8, 0.3]))
    recipe, heard = make_recipe(*STOPS), Listening()
    result = train(recipe, progress=heard)
    assert (result.step, result.finished, result.best_step) == (2, True, 1)
    alarm = result.stopped_early
    assert alarm is not None and (alarm.name, alarm.step) == ("mismatch", 2)
    assert any(text.startswith("ending after step 2, by warnings.stop_on: step 2:") for text in heard.messages)
    folder = RunFolder(recipe.folder)
    assert CheckpointFolder(folder.checkpoints).steps() == [1, 2] and folder.final.is_dir()
    assert sorted(result.evaluations) == [0, 1, 2]
    summary = json.loads(folder.result.read_text())
    assert (summary["finished"], summary["step"], summary["best_step"]) == (True, 2, 1)
    assert summary["stopped_early"] == alarm.to_json()
    print_result(recipe, result, "again")
    said = capsys.readouterr().out
    assert "stopped early, after step 2 of 6: warnings.stop_on has 'mismatch'" in said
    assert f"selfdistill export {folder.path} --checkpoint best --out {folder.path}-best" in said
    assert "--resume with warnings.stop_on=[]" in said and "no worse" not in said


def test_it_is_said_if_no_checkpoint_is_better_than_the_untrained_model(make_recipe, capsys, monkeypatch) -> None:
    _evaluating(monkeypatch, iter([0.5, 0.4, 0.3]))
    recipe = make_recipe(*STOPS)
    print_result(recipe, train(recipe), "again")
    assert "but the model before training, with 50.0%, is no worse" in capsys.readouterr().out


def test_a_run_that_was_ended_is_finished_until_its_warnings_are_changed(make_recipe) -> None:
    recipe = make_recipe(*STOPS)
    result = train(recipe)
    again = finished_result(recipe)
    assert again is not None and (again.step, again.stopped_early) == (2, result.stopped_early)
    job = Job("a", recipe.folder, "recipe.yaml", (), recipe, steps=6)
    assert job.finished
    resumed = train(recipe, resume=True)
    assert (resumed.step, resumed.stopped_early) == (2, result.stopped_early)
    free = make_recipe(*STOPS, "warnings.stop_on=[]")
    assert finished_result(free) is None
    assert (train(free, resume=True).step, finished_result(free).stopped_early) == (6, None)


def test_a_warning_at_the_last_step_ends_nothing_early(make_recipe) -> None:
    result = train(make_recipe(*STOPS, "train.steps=2"))
    assert (result.step, result.finished, result.stopped_early) == (2, True, None)


def _evaluating(monkeypatch: pytest.MonkeyPatch, means: Iterator[float]) -> None:
    """Let evaluations come to these means, with a narrow interval."""
    real = run_module.evaluate

    def evaluate(*arguments: Any, **settings: Any) -> Any:
        mean = next(means)
        return replace(real(*arguments, **settings), avg=Interval(mean, mean - 0.01, mean + 0.01))

    monkeypatch.setattr(run_module, "evaluate", evaluate)
