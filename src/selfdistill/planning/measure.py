"""About twenty seconds of the real thing: load the model, draw, score, update, and count seconds.

In: a recipe whose model and questions are on this machine. Out: a :class:`Measurement` per batch. Batches grow until
the next one would take too long, so a small recipe is measured as a whole and a large one on few questions and short
responses. Nothing is kept: no run folder, no journal, no changed weights.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from selfdistill.methods.sources import ReferenceSolutions
from selfdistill.models.loading import Policy, load_policy
from selfdistill.questions import LoadedData
from selfdistill.rollouts.journal import Journals
from selfdistill.rollouts.transformers_sampler import TransformersSampler
from selfdistill.scoring.rows import sequence_length
from selfdistill.teachers import SelfTeacher, start_teacher
from selfdistill.teachers.weights import trainable
from selfdistill.training.loop import Clock, Trainer
from selfdistill.training.metrics import TokenMeans
from selfdistill.training.optimizer import make_optimizer
from selfdistill.training.plan import Row
from selfdistill.training.preflight import check_model
from selfdistill.training.progress import NullProgress
from selfdistill.training.recipe import Recipe
from selfdistill.training.update import Scoring, accumulate_gradients, gradient_norm, student_pair, teacher_pair
from selfdistill.verifiers.verdict import Group, Verdict

GROWTH = 4
"""Largest factor between one batch and the next, in questions and in new tokens."""
LEAST_GROWTH = 1.1
"""A batch that is larger by less tells nothing new."""
THRIFT = 0.7
"""Seconds per token of a larger batch, over those of a smaller one: what is expected, to decide how much larger."""
FIRST_TOKENS = 16
"""New tokens of the first batch."""
CHECKED = 256
"""Questions that are checked and drawn from."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One batch: what it held, and how long each part took (seconds)."""

    questions: int
    rows: int
    new_tokens: int
    """Budget of a response."""
    drawn: int
    """Response tokens that were drawn; 0 for reference solutions."""
    longest: int
    """Tokens of the longest response."""
    cut: float
    """Share of the responses that the budget ended."""
    informative: float
    """Share of the rows that have signal by their true verdicts."""
    scored_rows: int
    """Rows of the update: as if every other sibling had succeeded, so that there is something to do."""
    scored_tokens: int
    """Their response tokens."""
    student: int
    """Positions that the student read in the update."""
    teacher: int
    """Positions that the teacher read."""
    loading: float
    sampling: float
    verifying: float
    update: float
    """Scoring by both sides, and gradients."""
    optimizer: float
    """Clipping, AdamW, and the teacher's following."""
    peak: int | None
    """Most bytes that the device held; None on a CPU."""

    @property
    def seconds(self) -> float:
        """Of the whole batch, without loading."""
        return self.sampling + self.verifying + self.update + self.optimizer


def measure(recipe: Recipe, data: LoadedData, seconds: float) -> tuple[Measurement, ...]:
    """Load the recipe's model, measure batches of growing size, and return them, the largest last.

    Args:
        recipe: its engine is not used: what vLLM does is not measured.
        data: its questions.
        seconds: to spend after the model is loaded; the batch that is under way is finished.

    Raises:
        SelfDistillError: model, data and recipe do not go together.
    """
    started = time.perf_counter()
    data = replace(data, train=data.train[:CHECKED], eval=())
    policy = load_policy(recipe.model, recipe.train.seed)
    bench = _Bench(recipe, policy, data, time.perf_counter() - started)
    return bench.grow(seconds)


class _Bench:
    """A loaded model with its optimizer and teacher, which batches of any size can be run on."""

    def __init__(self, recipe: Recipe, policy: Policy, data: LoadedData, loading: float) -> None:
        self.recipe, self.policy, self.data, self.loading = recipe, policy, data, loading
        self.frame = check_model(policy, recipe, data)
        self.optimizer = make_optimizer(policy.model, recipe.train)
        self.teacher: SelfTeacher | None = start_teacher(recipe.method.teacher, policy.model)
        if policy.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def grow(self, seconds: float) -> tuple[Measurement, ...]:
        """Return the measured batches, the largest last."""
        full = (self.recipe.train.questions_per_step, self.recipe.rollouts.sampling.max_new_tokens)
        until = time.perf_counter() + seconds
        size = (1, min(FIRST_TOKENS, full[1]))
        cold = self.batch(*size)
        batches: list[Measurement] = []
        room = (until - time.perf_counter()) / cold.seconds
        while room > THRIFT:
            batches.append(self.batch(*size))
            room = (until - time.perf_counter()) / batches[-1].seconds
            larger = _next_size(size, full, room)
            if larger == size:
                break
            size = larger
        return tuple(batches) or (cold,)  # the cold one has started libraries too

    def batch(self, questions: int, new_tokens: int) -> Measurement:
        """Draw, verify, score and update once."""
        recipe = _reduced(self.recipe, questions, new_tokens)
        clock = Clock(NullProgress())
        with tempfile.TemporaryDirectory(prefix="selfdistill-doctor-") as folder:
            trainer = self._trainer(recipe, Path(folder))
            groups = trainer.sample(0, clock).groups
        real = [row.has_signal for row in trainer.plan(groups, 0).rows]
        rows = trainer.plan(_as_if_mixed(recipe, groups), 0).parts(1, recipe.method.reduction)[0]
        update, optimizer = self._update(rows)
        responses = [rollout for group in groups for rollout in group.rollouts]
        lengths = [len(one.response_ids) for one in responses]
        draws = not isinstance(recipe.method.source, ReferenceSolutions)
        return Measurement(
            questions=questions,
            rows=len(responses),
            new_tokens=new_tokens,
            drawn=sum(lengths) if draws else 0,
            longest=max(lengths),
            cut=sum(one.finish_reason == "length" for one in responses) / len(responses),
            informative=sum(real) / len(real),
            scored_rows=len(rows),
            scored_tokens=sum(len(row.rollout.response_ids) for row in rows),
            student=sum(sequence_length(student_pair(row)) for row in rows),
            teacher=sum(sequence_length(teacher_pair(row)) for row in rows if row.objective == "distillation"),
            loading=self.loading,
            sampling=clock.seconds.get("sampling", 0.0),
            verifying=clock.seconds.get("verifying", 0.0),
            update=update,
            optimizer=optimizer,
            peak=torch.cuda.max_memory_allocated() if self.policy.device.type == "cuda" else None,
        )

    def _trainer(self, recipe: Recipe, folder: Path) -> Trainer:
        config = recipe.rollouts
        sampler = TransformersSampler(
            self.policy.model, self.policy.chat, batch_tokens=config.batch_tokens, max_rows=config.max_rows
        )
        prior = {one.id: 0.5 for one in self.data.train} if recipe.method.weighting.offline else None
        return Trainer(
            recipe,
            self.policy,
            sampler,
            self.data.verifier,
            self.data.train,
            self.frame,
            NullProgress(),
            journals=Journals(folder),
            prior=prior,
        )

    def _update(self, rows: Sequence[Row]) -> tuple[float, float]:
        """Return the seconds of scoring and gradients, and of the optimiser's step."""
        recipe, model = self.recipe, self.policy.model
        scoring = Scoring(recipe.rollouts.sampling.temperature, recipe.train.micro_batch_tokens, recipe.scoring)
        devices = [self.policy.device] if self.policy.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            model.train()
            started = self._now()
            accumulate_gradients(rows, recipe.method, self.policy, self.teacher, scoring, TokenMeans())
            scored = self._now()
            gradient_norm(list(trainable(model).values()), recipe.train.grad_clip)
            self.optimizer.step()
            self.optimizer.zero_grad()
            if self.teacher is not None:
                self.teacher.after_step()
                self.teacher.after_batch()
            model.eval()
        return scored - started, self._now() - scored

    def _now(self) -> float:
        if self.policy.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def _next_size(size: tuple[int, int], full: tuple[int, int], room: float) -> tuple[int, int]:
    """Return (questions, new tokens) of the next batch; the same if there is no time for a larger one.

    Args:
        size: of the batch before.
        full: of the recipe's own.
        room: how many batches like the one before there is still time for.
    """
    growth = room / THRIFT
    # Rows first: what tells the cost of a token from that of a decoding step.
    more = max(1.0, min(GROWTH, growth, full[0] / size[0]))
    longer = max(1.0, min(GROWTH, growth / more, full[1] / size[1]))
    if longer * more < LEAST_GROWTH:
        return size
    return int(size[0] * more), int(size[1] * longer)


def _reduced(recipe: Recipe, questions: int, new_tokens: int) -> Recipe:
    """Return the recipe with a smaller batch, of which all is drawn here and now."""
    smaller = replace(recipe.rollouts.sampling, max_new_tokens=new_tokens)
    rollouts = recipe.rollouts.model_copy(update={"sampling": smaller, "engine": "transformers", "ahead": 0})
    train = recipe.train.model_copy(update={"questions_per_step": questions, "updates_per_batch": 1})
    return recipe.model_copy(update={"rollouts": rollouts, "train": train})


def _as_if_mixed(recipe: Recipe, groups: Sequence[Group]) -> list[Group]:
    """Return the groups as if every other sibling had succeeded: then every row of every method has signal."""
    if isinstance(recipe.method.source, ReferenceSolutions):
        return list(groups)
    right, wrong = Verdict(reward=1.0, success=True), Verdict(reward=0.0, success=False, feedback="?")
    return [
        Group(group.question, group.rollouts, tuple((right, wrong)[place % 2] for place in range(len(group.rollouts))))
        for group in groups
    ]
