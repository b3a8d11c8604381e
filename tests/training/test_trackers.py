"""Trackers show what metrics.jsonl has, and no failure of theirs ends a run; with the real packages where there are."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from selfdistill.errors import RecipeError
from selfdistill.evaluation.bootstrap import Interval
from selfdistill.evaluation.result import EvaluationResult
from selfdistill.training import trackers as trackers_module
from selfdistill.training.recipe import load_recipe
from selfdistill.training.trackers import (
    Trackers,
    check_trackers,
    evaluation_metrics,
    histograms,
    scalars,
    start_trackers,
)

METRICS = {
    "step": 3,
    "loss": 0.5,
    "seconds/step": 2,
    "grad_norm": None,
    "divergence": math.nan,
    "overlap": math.inf,
    "note": "text",
    "pass_rate_histogram": [2, 0, 1],
    "odd": [1.0, None],
    "none": [],
}
RESULT = EvaluationResult(
    samples=4,
    problems=2,
    avg=Interval(0.25, 0.1, 0.4),
    maj=Interval(0.5, 0.0, 1.0),
    pass_at={1: Interval(0.25, 0.1, 0.4), 4: Interval(0.75, 0.5, 1.0)},
    truncated=None,
    unparseable=0.125,
    mean_length=17.5,
    outcomes={},
)


def needs(package: str) -> pytest.MarkDecorator:
    found = importlib.util.find_spec(package) is not None
    return pytest.mark.skipif(not found, reason=f"{package} is not installed (pip install selfdistill[trackers])")


class Fake:
    """A tracker that keeps what it is given; ``fails`` are methods that raise."""

    def __init__(self, own_id: str | None = None, fails: tuple[str, ...] = ()) -> None:
        self.own_id, self.fails = own_id, fails
        self.logged: list[tuple[dict[str, Any], int]] = []
        self.closed = 0

    def _try(self, method: str) -> None:
        if method in self.fails:
            raise ConnectionError(f"{method}: no network\nmore about it")

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        self._try("log")
        self.logged.append((dict(metrics), step))

    def run_id(self) -> str | None:
        self._try("run_id")
        return self.own_id

    def close(self) -> None:
        self._try("close")
        self.closed += 1


def started(warned: list[str], run_ids: Mapping[str, str] | None = None, **fakes: Fake) -> Trackers:
    starts: dict[str, Callable[[], Fake]] = {name: lambda fake=fake: fake for name, fake in fakes.items()}  # type: ignore[misc]
    return Trackers(starts, run_ids or {}, warned.append)


def test_finite_numbers_are_scalars_and_lists_of_counts_are_histograms() -> None:
    assert scalars(METRICS) == {"loss": 0.5, "seconds/step": 2.0}
    assert histograms(METRICS) == {"pass_rate_histogram": ([2.0, 0.0, 1.0], [-0.5, 0.5, 1.5, 2.5])}


def test_an_evaluation_is_logged_under_its_own_names_without_what_is_not_known() -> None:
    assert scalars(evaluation_metrics(RESULT)) == {
        "evaluation/avg@4": 0.25,
        "evaluation/maj@4": 0.5,
        "evaluation/pass@1": 0.25,
        "evaluation/pass@4": 0.75,
        "evaluation/unparseable": 0.125,
        "evaluation/mean_length": 17.5,
    }
    assert scalars(evaluation_metrics(replace(RESULT, passed=0.5)))["evaluation/passed"] == 0.5


def test_every_tracker_gets_every_step_and_evaluation_and_is_closed_once() -> None:
    warned: list[str] = []
    one, other = Fake("a1"), Fake()
    with started(warned, one=one, other=other) as trackers:
        trackers.log(METRICS, 3)
        trackers.log_evaluation(RESULT, 3)
        trackers.close()
    assert one.logged == other.logged == [(METRICS, 3), (evaluation_metrics(RESULT), 3)]
    assert (one.closed, other.closed) == (1, 1) and not warned


@pytest.mark.parametrize("method", ["run_id", "log", "close"])
def test_a_tracker_that_fails_is_dropped_with_one_warning_and_the_others_go_on(method: str) -> None:
    warned: list[str] = []
    broken, sound = Fake("b", fails=(method,)), Fake("s")
    with started(warned, broken=broken, sound=sound) as trackers:
        for step in (1, 2):
            trackers.log(METRICS, step)
    assert [step for _, step in sound.logged] == [1, 2] and sound.closed == 1
    assert warned == [
        f"the tracker broken has failed and is left out from now on (ConnectionError: {method}: no network); "
        "metrics.jsonl goes on to have everything"
    ]


def test_a_tracker_that_cannot_start_is_dropped_too() -> None:
    def refuse() -> Fake:
        raise RuntimeError

    warned: list[str] = []
    sound = Fake()
    trackers = Trackers({"broken": refuse, "sound": lambda: sound}, {}, warned.append)
    trackers.log({}, 1)
    assert len(sound.logged) == 1
    assert len(warned) == 1 and "(RuntimeError)" in warned[0]


def test_an_interruption_is_not_taken_for_a_failure() -> None:
    def interrupted() -> Fake:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Trackers({"one": interrupted}, {}, [].append)


def test_run_ids_outlive_trackers_that_failed_or_are_not_asked_for_this_time() -> None:
    before = {"wandb": "w", "trackio": "t", "broken": "kept"}
    trackers = started([], before, wandb=Fake("new"), broken=Fake("x", fails=("run_id",)), files=Fake(None))
    assert trackers.run_ids() == {"wandb": "new", "trackio": "t", "broken": "kept"}


@pytest.mark.parametrize("found", [None, SimpleNamespace(origin=None)])
def test_a_missing_package_is_one_error_with_the_remedy_also_beside_a_folder_of_its_name(found, monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    check_trackers(())
    with pytest.raises(RecipeError) as caught:
        check_trackers(("wandb",))
    assert str(caught.value) == (
        "output.trackers has 'wandb', but the package wandb is not installed; "
        "`pip install selfdistill[trackers]`, or take 'wandb' out of output.trackers"
    )


def test_trackers_are_a_list_or_one_name(make_recipe) -> None:
    assert make_recipe("paint").output.trackers == ()
    assert make_recipe("paint", "output.trackers=wandb").output.trackers == ("wandb",)
    both = make_recipe("paint", "output.trackers=[wandb, tensorboard]")
    assert both.output.trackers == ("wandb", "tensorboard")
    with pytest.raises(RecipeError, match=r"output\.trackers\.0 is 'wandp'.*did you mean 'wandb'"):
        make_recipe("paint", "output.trackers=[wandp]")


class FakePackage(ModuleType):
    """Stands for wandb as well as for trackio: keeps how it was started and what was logged."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.asked: dict[str, Any] = {}
        self.rows: list[tuple[dict[str, Any], int | None]] = []
        self.axes: list[tuple[str, str]] = []
        self.finished = 0

    def Settings(self, **settings: Any) -> dict[str, Any]:
        return settings

    def Histogram(self, *, np_histogram: tuple[list[float], list[float]]) -> str:
        return f"counts {np_histogram[0]}"

    def init(self, *project: str, **asked: Any) -> SimpleNamespace:
        print("chatter")
        self.asked = {**({"project": project[0]} if project else {}), **asked}
        return SimpleNamespace(
            id=asked.get("id") or "made-up",
            log=lambda row, step=None: self.rows.append((row, step)),
            define_metric=lambda name, step_metric: self.axes.append((name, step_metric)),
            finish=self.finish,
        )

    def finish(self) -> None:
        print("chatter")
        self.finished += 1


@pytest.fixture
def package(monkeypatch) -> Callable[[str], FakePackage]:
    def stand_in(name: str) -> FakePackage:
        fake = FakePackage(name)
        monkeypatch.setitem(sys.modules, name, fake)
        return fake

    return stand_in


@pytest.mark.parametrize("run_ids", [{}, {"wandb": "abc"}])
def test_wandb_goes_on_with_the_run_and_has_our_step_as_its_axis(package, tmp_path, monkeypatch, run_ids) -> None:
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    wandb = package("wandb")
    with start_trackers(["wandb"], tmp_path / "run", "paint", {"a": 1}, run_ids, warn=pytest.fail) as trackers:
        trackers.log(METRICS, 3)
        assert trackers.run_ids() == {"wandb": run_ids.get("wandb", "made-up")}
    assert (wandb.asked["project"], wandb.asked["name"], wandb.asked["resume"]) == ("selfdistill", "paint", "allow")
    assert wandb.asked["id"] == run_ids.get("wandb") and wandb.asked["config"] == {"a": 1}
    assert wandb.asked["dir"] == str(tmp_path / "run") and (tmp_path / "run").is_dir()
    assert wandb.asked["settings"] == {"console": "off", "finish_timeout": trackers_module.FINISH_SECONDS}
    row = {"loss": 0.5, "seconds/step": 2.0, "pass_rate_histogram": "counts [2.0, 0.0, 1.0]", "step": 3}
    assert wandb.rows == [(row, None)] and wandb.axes == [("*", "step")] and wandb.finished == 1


def test_trackio_gets_a_name_that_no_other_run_has_and_prints_nothing_among_results(package, tmp_path, capsys) -> None:
    trackio = package("trackio")
    names = []
    for _ in range(2):
        with start_trackers(["trackio"], tmp_path, "paint", {}, {}, warn=pytest.fail) as trackers:
            trackers.log(METRICS, 3)
            names.append(trackers.run_ids()["trackio"])
    assert len(set(names)) == 2 and all(name.startswith("paint-") for name in names)
    with start_trackers(["trackio"], tmp_path, "paint", {}, {"trackio": names[0]}, warn=pytest.fail) as trackers:
        assert trackers.run_ids() == {"trackio": names[0]}
    assert (trackio.asked["name"], trackio.asked["resume"]) == (names[0], "allow")
    assert trackio.rows[0] == (
        {"loss": 0.5, "seconds/step": 2.0, "pass_rate_histogram": "counts [2.0, 0.0, 1.0]"},
        3,
    )
    assert trackio.finished == 3
    assert capsys.readouterr().out == ""


def recipe_data() -> dict[str, Any]:
    embedded = Path(__file__).resolve().parents[2] / "recipes" / "embedded" / "paint.yaml"
    return load_recipe(embedded).model_dump(mode="json")


@needs("tensorboard")
def test_in_tensorboard_steps_that_are_taken_again_replace_the_earlier_ones(tmp_path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first, loss in ((0, 1.0), (2, 9.0)):  # stopped after step 4, resumed from the checkpoint of step 2
        with start_trackers(
            ["tensorboard"], tmp_path, "paint", recipe_data(), {}, step=first, warn=pytest.fail
        ) as trackers:
            assert trackers.run_ids() == {}
            for step in range(first + 1, first + 5):
                trackers.log({**METRICS, "loss": loss}, step)
            trackers.log_evaluation(RESULT, first)
    read = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in read.Scalars("loss")] == [
        *((step, 1.0) for step in (1, 2)),
        *((step, 9.0) for step in (3, 4, 5, 6)),
    ]
    assert read.Scalars("evaluation/avg@4")[0].value == 0.25
    histogram = read.Histograms("pass_rate_histogram")[0].histogram_value
    assert (histogram.num, list(histogram.bucket), list(histogram.bucket_limit)) == (3, [2, 0, 1], [0.5, 1.5, 2.5])
    assert "divergence" not in read.Tags()["scalars"] and "recipe/text_summary" in read.Tags()["tensors"]


@needs("tensorboard")
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full to stand for a full disk")
def test_a_full_disk_costs_the_tracker_and_not_the_run(tmp_path, monkeypatch) -> None:
    from tensorboard.summary.writer import event_file_writer

    full = lambda path, mode: open("/dev/full", mode, buffering=0)  # noqa: E731
    monkeypatch.setattr(event_file_writer.tf.io.gfile, "GFile", full)
    monkeypatch.setattr(threading, "excepthook", lambda error: None)  # tensorboard's own thread dies of it, aloud
    warned: list[str] = []
    with start_trackers(["tensorboard"], tmp_path, "paint", {}, {}, warn=warned.append) as trackers:
        for step in range(50):
            trackers.log(METRICS, step)
    assert len(warned) == 1 and "tracker tensorboard" in warned[0] and "No space left" in warned[0]


def in_a_process_of_its_own(code: str, folder: Path, **environment: str) -> dict[str, Any]:
    """Run ``code`` with the package as it is, offline; what it prints last is JSON."""
    lines = [
        "import json, sys, math",
        "from pathlib import Path",
        "from selfdistill.training.trackers import start_trackers",
        f"METRICS = json.loads({json.dumps(json.dumps(METRICS))})",
        "def fail(text): raise AssertionError(text)",
        code,
    ]
    outcome = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert outcome.returncode == 0, outcome.stderr
    return json.loads(outcome.stdout.splitlines()[-1])


TWICE = """
ids = {}
for first in (0, 2):
    with start_trackers([NAME], Path("run"), "paint", {"train": {"steps": 4}}, ids, step=first, warn=fail) as trackers:
        for step in range(first + 1, first + 4):
            trackers.log(METRICS, step)
        ids = trackers.run_ids()
"""


@needs("wandb")
@pytest.mark.slow
def test_wandb_works_offline_and_keeps_its_files_in_the_run_folder(tmp_path) -> None:
    code = f"NAME = 'wandb'{TWICE}print(json.dumps(ids))"
    ids = in_a_process_of_its_own(code, tmp_path, WANDB_MODE="offline", WANDB_SILENT="true")
    folders = sorted(path.name for path in (tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert len(folders) == 2 and all(name.endswith(ids["wandb"]) for name in folders)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@needs("trackio")
@pytest.mark.slow
def test_trackio_goes_on_with_the_same_run(tmp_path) -> None:
    code = f"""NAME = 'trackio'{TWICE}
import trackio
runs = [run.name for run in trackio.Api().runs('selfdistill')]
print(json.dumps({{"ids": ids, "runs": runs}}))"""
    said = in_a_process_of_its_own(code, tmp_path, TRACKIO_DIR=str(tmp_path / "trackio"))
    assert said["runs"] == [said["ids"]["trackio"]]
