"""Killed, or asked to stop, in the middle of each phase: the resumed run's folder is that of one never disturbed.

`python -m benchmarks.kills` does the same at 25 random places.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch

from selfdistill.training.recipe import Recipe, load_recipe
from selfdistill.training.run import train

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes" / "embedded" / "paint.yaml"
REDUCED = (
    "train.steps=3",
    "train.questions_per_step=3",
    "train.save_every=1",
    "train.evaluate_every=2",
    "data.train_limit=8",
    "data.eval_limit=3",
    "rollouts.sampling.max_new_tokens=24",
    "evaluation.samples=1",
    "evaluation.sampling.max_new_tokens=24",
)
STOP_SECONDS = 60.0
"""Asked to stop, a run of this size is gone within a second on a quiet machine; this one may be busy."""


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT))
    return import_module("benchmarks.kills_compare")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    train(recipe(folder))
    return folder


def recipe(folder: Path) -> Recipe:
    return load_recipe(RECIPE, [*REDUCED, f"output.folder={folder}"])


def disturbed(folder: Path, number: signal.Signals, phase: str, step: int, tick: int) -> tuple[int, str, str, float]:
    """Run until the signal has ended the process; return its code, what it said, and the seconds it took to leave."""
    diary = folder.with_name("diary")
    own = {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    own |= {"SELFDISTILL_DIARY": str(diary), "SELFDISTILL_KILL": json.dumps([phase, step, tick])}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.kill_points", "train", str(RECIPE), *REDUCED, f"output.folder={folder}"],
        env=os.environ | own | {"SELFDISTILL_SIGNAL": number.name},
        capture_output=True,
        text=True,
        timeout=300,
    )
    sent = diary.with_name("diary.sent")
    left = time.monotonic() - float(sent.read_text()) if sent.exists() else 0.0
    return done.returncode, done.stdout, done.stderr, left


@pytest.mark.parametrize(
    ("phase", "step", "tick"),
    [("sampling", 1, 12), ("update", 1, 3), ("writing", 1, 4), ("records", 2, 1), ("export", 2, 3)],
)
def test_a_run_that_is_killed_there_and_resumed_leaves_the_same_folder(
    phase, step, tick, tmp_path, undisturbed, compare
) -> None:
    folder = tmp_path / "run"
    code, *_ = disturbed(folder, signal.SIGKILL, phase, step, tick)
    assert code == -signal.SIGKILL
    assert compare.differences(folder, undisturbed)
    assert train(recipe(folder), resume=True).finished
    assert compare.differences(folder, undisturbed) == []
    assert compare.is_free(folder)


@pytest.mark.parametrize(
    ("phase", "step", "tick"), [("sampling", 1, 12), ("update", 1, 3), ("writing", 1, 4), ("evaluation", 1, 9)]
)
def test_a_run_that_is_asked_to_stop_there_leaves_soon_says_how_to_go_on_and_does(
    phase, step, tick, tmp_path, undisturbed, compare
) -> None:
    folder = tmp_path / "run"
    code, out, err, seconds = disturbed(folder, signal.SIGTERM, phase, step, tick)
    print(f"{phase}: {seconds:.2f} s from the signal to the end")
    assert (code, "Traceback" in err) == (0, False), err
    assert out.startswith("stopped after step ") and out.endswith(f"output.folder={folder} --resume\n")
    assert 0 < seconds < STOP_SECONDS
    assert train(recipe(folder), resume=True).finished
    assert compare.differences(folder, undisturbed) == []
