"""Real signals to real processes: a run that was asked to stop, or was killed, goes on as if nothing had been."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
REDUCED = (
    "train.questions_per_step=2",
    "data.train_limit=8",
    "data.eval_limit=2",
    "rollouts.sampling.max_new_tokens=16",
    "evaluation.samples=1",
    "evaluation.sampling.max_new_tokens=16",
    "train.evaluate_first=false",
)
MANY = "train.steps=100000"


class Process:
    """`selfdistill train` on the embedded PAINT recipe, without an end of its own."""

    def __init__(self, folder: Path, *more: str) -> None:
        self.folder = folder
        recipe = ROOT / "recipes" / "embedded" / "paint.yaml"
        arguments = ["train", str(recipe), *REDUCED, MANY, f"output.folder={folder}", *more]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "selfdistill", *arguments],
            env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_for_steps(self, count: int) -> None:
        deadline = time.monotonic() + 120
        metrics = self.folder / "metrics.jsonl"
        while not metrics.exists() or metrics.read_bytes().count(b"\n") < count:
            assert self.process.poll() is None, self.process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def end(self, number: signal.Signals) -> tuple[int, str, str]:
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=120)
        return self.process.returncode, out, err


@pytest.fixture
def undisturbed(tmp_path: Path):
    """Return a function that makes, in this process, the weights and metrics of a run of so many steps."""

    def undisturbed(steps: int) -> tuple[bytes, list[dict]]:
        from selfdistill.training.recipe import load_recipe
        from selfdistill.training.run import train

        folder = tmp_path / "undisturbed"
        own = [*REDUCED, f"train.steps={steps}", f"output.folder={folder}"]
        train(load_recipe(ROOT / "recipes" / "embedded" / "paint.yaml", own))
        return outcome(folder)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield undisturbed
    torch.set_num_threads(threads)


def finish(folder: Path, steps: int) -> None:
    from selfdistill.training.recipe import load_recipe
    from selfdistill.training.run import train

    own = [*REDUCED, f"train.steps={steps}", f"output.folder={folder}"]
    result = train(load_recipe(ROOT / "recipes" / "embedded" / "paint.yaml", own), resume=True)
    assert result.finished


def outcome(folder: Path) -> tuple[bytes, list[dict]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = ("seconds/", "tokens_per_second/")
    kept = [{key: value for key, value in row.items() if not key.startswith(timed)} for row in rows]
    return (folder / "final" / "model.safetensors").read_bytes(), kept


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_asked_to_stop_says_how_to_go_on_and_does(tmp_path, undisturbed, number) -> None:
    process = Process(tmp_path / "run")
    process.wait_for_steps(2)
    code, out, err = process.end(number)
    assert (code, "Traceback" in err) == (0, False)
    assert out.startswith("stopped after step ") and out.endswith(f"output.folder={tmp_path / 'run'} --resume\n")
    done = int(out.split()[3])
    finish(tmp_path / "run", done + 1)
    assert outcome(tmp_path / "run") == undisturbed(done + 1)


def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path, undisturbed) -> None:
    process = Process(tmp_path / "run", "train.save_every=2")
    process.wait_for_steps(5)
    process.end(signal.SIGKILL)
    steps = (tmp_path / "run" / "metrics.jsonl").read_bytes().count(b"\n") + 2
    finish(tmp_path / "run", steps)
    assert outcome(tmp_path / "run") == undisturbed(steps)
