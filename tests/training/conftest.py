"""Recipes small enough for a second: the embedded model and task, two questions a step, 24 new tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from selfdistill.training.recipe import Recipe, load_recipe

EMBEDDED = Path(__file__).resolve().parents[2] / "recipes" / "embedded"
TINY = (
    "data.train_limit=8",
    "data.eval_limit=4",
    "rollouts.sampling.max_new_tokens=24",
    "train.steps=2",
    "train.questions_per_step=2",
    "train.learning_rate=1e-3",
    "train.warmup_steps=2",
    "evaluation.samples=2",
    "evaluation.sampling.max_new_tokens=24",
)

MakeRecipe = Callable[..., Recipe]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A tiny model is fastest on one thread, and the machine may be shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make_recipe(tmp_path: Path) -> MakeRecipe:
    """Return a function of a method's name and overrides; the run folder is ``tmp_path / folder``."""

    def make(method: str = "paint", *overrides: str, folder: str = "run") -> Recipe:
        own = f"output.folder={json.dumps(str(tmp_path / folder))}"
        return load_recipe(EMBEDDED / f"{method}.yaml", [*TINY, own, *overrides])

    return make


@pytest.fixture
def read_lines() -> Callable[[Path], list[dict[str, Any]]]:
    """Return a function that reads JSON lines, strictly: NaN and Infinity are no JSON."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return lambda path: [json.loads(line, parse_constant=refuse) for line in path.read_text("utf-8").splitlines()]
