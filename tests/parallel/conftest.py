"""Small runs of several processes, one of which can be made to die."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes" / "embedded" / "grpo.yaml"
REWARDS = """
import os, signal
from pathlib import Path

HERE = Path(__file__).parent
calls = 0

def plain(completions):
    return [float(len(text) % 2) for text in completions]

def deadly(completions):
    global calls
    calls += 1
    if os.environ.get("RANK") == "1" and calls == 4 and not (HERE / "killed").exists():
        (HERE / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(completions)

def wrong(completions):
    if os.environ.get("RANK") == "1":
        raise KeyError("no such column")
    return plain(completions)
"""


@pytest.fixture
def run_words(tmp_path: Path) -> Callable[..., list[str]]:
    """Return a function that gives recipe and settings of a quick run with a reward function of the test's."""
    (tmp_path / "rewards.py").write_text(REWARDS)
    rows = [{"prompt": f"{number}+{number}", "answer": str(2 * number)} for number in range(1, 9)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def words(folder: str, *more: str, reward: str = "plain", steps: int = 2) -> list[str]:
        return [
            str(RECIPE),
            "data.task=custom",
            "data.train=rows.jsonl",
            f"data.reward=rewards.py:{reward}",
            "train.questions_per_step=2",
            "rollouts.sampling.max_new_tokens=8",
            "train.save_every=2",
            f"train.steps={steps}",
            "output.save_model=false",
            f"output.folder={folder}",
            *more,
        ]

    return words


@pytest.fixture
def quiet_environment() -> dict[str, str]:
    """Return what processes of a test get: one thread each, nothing of another launcher, loopback only."""
    others = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    kept = {name: value for name, value in os.environ.items() if name not in others}
    own = {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "HF_HUB_OFFLINE": "1"}
    return kept | own | {"PYTHONUNBUFFERED": "1"}


@pytest.fixture
def logged_steps() -> Callable[[Path], list[int]]:
    """Return a function that gives the steps that a run has logged, in the order of the file."""

    def steps(folder: Path) -> list[int]:
        return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]

    return steps
