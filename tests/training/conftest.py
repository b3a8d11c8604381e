"""Recipes small enough for a second: the embedded model and task, two questions a step, 24 new tokens."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from selfdistill.errors import RolloutError
from selfdistill.rollouts import TransformersSampler
from selfdistill.rollouts.sampler import Engine, SyncReport
from selfdistill.training import evaluating
from selfdistill.training import start as start_module
from selfdistill.training.evaluating import fingerprint
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


class Remote(Engine):
    """Draws from a copy of the policy, and notes what happens.

    ``faults`` are numbers of calls of ``stream`` that die, with how many completions they yield before.
    """

    def __init__(self, policy, recipe, faults: dict[int, int] | None = None) -> None:
        self.policy, self.recipe, self.faults = policy, recipe, faults or {}
        self.events: list[tuple[str, Any]] = []
        self.asked: list[int] = []
        self.own: Any = None
        self.closed = 0
        self.before = lambda call: None
        self.sync_fails = False

    def sync(self, version):
        if self.sync_fails:
            raise RolloutError("the server http://x does not have the weights")
        self.own = copy.deepcopy(self.policy.model)
        self.events.append(("sync", version))
        return SyncReport(version, 1000, 0.5, 1e-6, 2e-6)

    def stream(self, prompts, seeds, sampling, *, logprobs=True, on_tokens=None):
        call = len(self.asked)
        self.asked.append(sum(map(len, seeds)))
        self.events.append(("draw", fingerprint(self.own)))
        self.before(call)
        # One after the other: what is drawn does not depend on what else is, not even in the last bit.
        sampler = TransformersSampler(self.own, self.policy.chat, max_rows=1)
        for count, done in enumerate(sampler.stream(prompts, seeds, sampling, on_tokens=on_tokens)):
            if count == self.faults.get(call):
                raise RolloutError("the server http://x has died.")
            yield done

    def close(self):
        self.closed += 1

    @property
    def versions(self) -> list[str]:
        return [what for kind, what in self.events if kind == "sync"]


@pytest.fixture
def engines(monkeypatch):
    """Let runs have a :class:`Remote` each; the list of those that were made, and what the next one gets."""
    made: list[Remote] = []

    def make(policy, recipe, folder, world=None):
        made.append(Remote(policy, recipe, made_with.pop("faults", None)))
        made_with.pop("then", lambda engine: None)(made[-1])
        return made[-1]

    made_with: dict[str, Any] = {}
    monkeypatch.setattr(start_module, "make_engine", make)
    monkeypatch.setattr(evaluating, "make_engine", make)
    return made, made_with
