"""The training loop. One step reads like the line in the architecture.

::

    Question --sample--> Rollout --verify--> Verdict --contextualise--> PrivilegedPrompt | None
             --weigh--> weight --score--> hidden states --compare--> per-token record --> loss --> update
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch

from selfdistill.checkpoints import TrainState
from selfdistill.contexts.rendering import PromptFrame
from selfdistill.contexts.success_buffer import SuccessBuffer
from selfdistill.methods.sources import ReferenceSolutions
from selfdistill.models.loading import Policy
from selfdistill.parallel.sharding import drawing
from selfdistill.parallel.share import own_siblings
from selfdistill.parallel.world import ALONE, World
from selfdistill.questions.question import Question
from selfdistill.randomness import derive, python_random
from selfdistill.rollouts.collect import reference_rollouts, stream_siblings
from selfdistill.rollouts.journal import Journaled, Journals
from selfdistill.rollouts.rollout import Rollout
from selfdistill.rollouts.sampler import Engine, Place, Sampler, draws_from_policy
from selfdistill.rollouts.verifying import Results, Verifying, for_others, groups_of, joined, verifying
from selfdistill.teachers.weights import trainable
from selfdistill.training.ahead import Ahead, Pending
from selfdistill.training.budget import Budget
from selfdistill.training.metrics import Metrics, TokenMeans, batch_metrics, buffer_metrics
from selfdistill.training.optimizer import learning_rate
from selfdistill.training.plan import Plan, Row, make_plan
from selfdistill.training.progress import Progress
from selfdistill.training.recipe import Recipe
from selfdistill.training.syncing import Synced
from selfdistill.training.update import Scoring, accumulate_gradients, gradient_norm
from selfdistill.verifiers.verdict import Group, Verdict, Verifier


@dataclass(frozen=True, slots=True)
class Trainer:
    """Everything that a step needs. What it changes is in the :class:`TrainState`, apart from what concerns the engine.

    A resumed run finds the latter anew: which weights the engine has, and which batch it is sampling ahead.
    """

    recipe: Recipe
    policy: Policy
    sampler: Engine
    verifier: Verifier
    questions: Sequence[Question]
    frame: PromptFrame
    progress: Progress
    journals: Journals
    synced: Synced = field(default_factory=Synced)
    pending: Pending = field(default_factory=Pending)
    prior: Mapping[str, float] | None = None
    """Pass rates from before training, by question id (PACED)."""
    world: World = ALONE
    """The processes that share the work."""
    budget: Budget | None = None
    """Positions of one forward pass; None: always as the recipe says."""
    check: Callable[[], None] = lambda: None
    """Called often; raises StopRequested when a stop is wanted."""

    def step(self, state: TrainState) -> tuple[Metrics, Plan]:
        """Take one step: a batch of questions, its rollouts, the update(s) on them. Counts ``state.step`` up.

        Raises:
            RolloutError: the engine fails; nothing has been updated then, and what had finished is in the journal.
            StopRequested: ``check`` asked for a stop; nothing has been updated, and what had finished is kept as well.
            PeerError: another process of the run has failed.
        """
        clock = Clock(self.progress)
        batch = self.sample(state.step, clock, state.rollout_tokens)
        plan = self.plan(batch.groups, state.step, state.successes)
        metrics = batch_metrics(plan, self.recipe.method.source) | batch.metrics | self.synced.metrics(state.step)
        metrics |= buffer_metrics(plan.rows, state.successes)
        metrics |= self.update(plan, state, clock, batch.age)
        state.successes.add(batch.groups)
        state.rollout_tokens += batch.tokens
        self.journals.forget(f"{state.step:06d}")
        state.step += 1
        counts = {"step": state.step, "rollout_tokens": state.rollout_tokens}
        return {**counts, **metrics, **clock.metrics()}, plan

    def sample(self, step: int, clock: Clock, rollout_tokens: int = 0) -> Batch:
        """Question --sample--> Rollout --verify--> Verdict; with ``rollouts.ahead``, begin the batch after it.

        What has finished is verified while the rest is drawn. ``rollout_tokens`` were sampled before this step. With
        several processes each draws and verifies its share, and all return the whole batch.
        """
        recipe, questions = self.recipe, self.batch(step)
        if isinstance(recipe.method.source, ReferenceSolutions):
            references = reference_rollouts(questions, self.policy.chat, thinking=recipe.rollouts.thinking)
            return Batch([Group(one.question, (one,), (Verdict(1.0, True),)) for one in references])
        ahead = self.pending.take(step)
        if ahead is None:
            self.sync(step, clock)
        source = self._journaled(step, weights=step) if ahead is None else ahead.source
        with verifying(self.verifier) as verified:
            drawn = self._draw(step, source, source if ahead is None else ahead, verified, clock)
            if recipe.rollouts.ahead and not recipe.train.ends_after(step + 1, rollout_tokens + drawn.tokens):
                self._begin(step + 1, clock)
            with clock.phase("verifying", None):
                done = self._exchanged(verified)
        groups = groups_of(done, questions, self._group_size)
        metrics: Metrics = {"seconds/verifying_hidden": max(0.0, verified.seconds - clock.seconds["verifying"])}
        age = 0 if drawn.oldest is None else step - drawn.oldest
        if recipe.rollouts.ahead:
            metrics |= {"rollout_age": age, "seconds/sampling_ahead": ahead.seconds if ahead else 0.0}
        return Batch(groups, drawn.tokens, age, metrics)

    def _exchanged(self, verified: Verifying) -> Results:
        """Return what all processes have drawn and verified."""

        def own() -> Results:
            return for_others(verified.results())

        return joined(self.world.each(own)) if draws_from_policy(self.sampler) else self.world.main(own)

    def _draw(self, step: int, source: Journaled, sampler: Sampler, verified: Verifying, clock: Clock) -> _Drawn:
        """Draw this process's share of the batch, handing it on as it finishes; say what all processes have drawn."""
        share = sum(len(siblings) for _, siblings in self._wanted(step))

        def draw() -> _Drawn:
            with closing(self._responses(step, sampler, verified.watching(self._heeding(count)))) as responses:
                for (question, _), rollout in responses:
                    verified.add((question, rollout.sibling), rollout)
            return _Drawn(verified.tokens, source.oldest)

        with clock.phase("sampling", share * self.recipe.rollouts.sampling.max_new_tokens) as count, self.drawing():
            drawn = self.world.each(draw)
        known = [one.oldest for one in drawn if one.oldest is not None]
        return _Drawn(sum(one.tokens for one in drawn), min(known, default=None))

    def drawing(self) -> AbstractContextManager[None]:
        """Return a block in which the engine can draw: one that draws from the policy itself needs all its weights."""
        return drawing(self.policy.model) if draws_from_policy(self.sampler) else nullcontext()

    def _heeding(self, on_tokens: Callable[[int], None]) -> Callable[[int], None]:
        """Return ``on_tokens``, which also raises when a stop is wanted."""

        def heed(tokens: int) -> None:
            self.check()
            on_tokens(tokens)

        return heed

    def _wanted(self, step: int) -> list[tuple[Question, list[int]]]:
        """Return the questions of a step, each with the siblings that this process draws."""
        questions = self.batch(step)
        return list(zip(questions, self.own(len(questions), range(self._group_size)), strict=True))

    def own(self, questions: int, siblings: Sequence[int]) -> list[list[int]]:
        """Return, per question, the siblings that this process draws: all on the main one if the engine is outside."""
        size = self.world.size if draws_from_policy(self.sampler) else 1
        return own_siblings(questions, siblings, self.world.rank, size, self.recipe.parallel.groups)

    @property
    def _group_size(self) -> int:
        source = self.recipe.method.source
        return 1 if isinstance(source, ReferenceSolutions) else source.group_size

    def sync(self, step: int, clock: Clock) -> None:
        """Give the engine the weights as they are after ``step`` steps, unless it has them."""
        if not self.synced.has(step):
            with clock.phase("syncing", None):
                self.synced.bring(self.sampler, step)

    def _begin(self, step: int, clock: Clock) -> None:
        """Have the batch of ``step`` sampled in the background, from the weights as they are one step before it."""
        self.sync(step - 1, clock)  # here, and before the thread starts: the weights are about to move
        self.pending.batch = Ahead(self._journaled(step, weights=step - 1))
        for _ in self._responses(step, self.pending.batch, None):
            raise AssertionError("a batch that has just begun has nothing to show")

    def _journaled(self, step: int, weights: int) -> Journaled:
        others = self.journals.all_of(f"{step:06d}")
        return Journaled(self.sampler, self.journals.of_step(step), step, weights, others=others)

    def _responses(
        self, step: int, sampler: Sampler, on_tokens: Callable[[int], None] | None
    ) -> Generator[tuple[Place, Rollout], None, None]:
        recipe = self.recipe
        return stream_siblings(
            self._wanted(step),
            sampler,
            self.policy.chat,
            sampling=recipe.rollouts.sampling,
            seed=recipe.train.seed,
            stream=("train", step),
            thinking=recipe.rollouts.thinking,
            max_prompt_tokens=recipe.rollouts.max_prompt_tokens,
            on_tokens=on_tokens,
        )

    def plan(self, groups: Sequence[Group], step: int, successes: SuccessBuffer | None = None) -> Plan:
        """Verdict --contextualise--> PrivilegedPrompt | None --weigh--> weight; ``successes`` are of earlier steps."""
        seed = derive(self.recipe.train.seed, "contexts", step)
        context, known = self.recipe.method.context, SuccessBuffer() if successes is None else successes
        prompts = [context.contextualise(group, self.frame, seed, known.earlier(group.question.id)) for group in groups]
        return make_plan(self.recipe.method, groups, prompts, self.prior)

    def update(self, plan: Plan, state: TrainState, clock: Clock, age: int = 0) -> Metrics:
        """--score--> hidden states --compare--> per-token record --> loss --> update.

        ``age`` is how many steps old the weights are that the rollouts were drawn from.
        """
        method, train = self.recipe.method, self.recipe.train
        means, outcomes = TokenMeans(), []
        parts = plan.parts(train.updates_per_batch, method.reduction)
        rate = learning_rate(train, state.step)
        expected = sum(len(row.rollout.response_ids) for rows in parts for row in rows)
        with clock.phase("update", expected) as count, _training(self.policy, state.step, train.seed, self.world.rank):
            # After a first update of a batch there is no way back; nor may one of several processes fall out of step.
            heeded = self._heeding(count) if len(parts) == 1 and self.recipe.parallel.reshard == "step" else count
            for number, rows in enumerate(parts):
                scoring = self._scoring(age, number)
                outcomes.append(self._optimizer_step(rows, state, scoring, means, rate, heeded))
                if outcomes[-1].applied and state.teacher is not None:
                    state.teacher.after_step()
        skipped = sum(not outcome.applied for outcome in outcomes)
        if skipped < len(outcomes) and state.teacher is not None:
            state.teacher.after_batch()
        state.bad_steps = state.bad_steps + 1 if skipped else 0
        state.skipped_updates += skipped
        counted = self.world.gather((means.state(), clock.seconds, clock.tokens))
        clock.all = [(seconds, tokens) for _, seconds, tokens in counted]
        return TokenMeans.joined([state for state, _, _ in counted]).means() | {
            "loss": sum(outcome.loss for outcome in outcomes) / len(outcomes),
            "grad_norm": sum(outcome.grad_norm for outcome in outcomes) / len(outcomes),
            "learning_rate": rate,
            "skipped_updates": state.skipped_updates,
        }

    def _scoring(self, age: int, number: int) -> Scoring:
        """Return how the ``number``-th update of a batch is scored, counted from 0."""
        recipe = self.recipe
        return Scoring(
            recipe.rollouts.sampling.temperature,
            recipe.train.micro_batch_tokens,
            recipe.scoring,
            on_policy=recipe.train.updates_per_batch == 1 and age == 0,
            drawn="within_batch" if number else "before" if age else "now",
            world=self.world,
            groups=recipe.parallel.groups,
        )

    def _optimizer_step(
        self,
        rows: Sequence[Row],
        state: TrainState,
        scoring: Scoring,
        means: TokenMeans,
        rate: float,
        on_tokens: OnTokens,
    ) -> Outcome:
        """Take one optimiser step; leave the weights alone when nothing has signal or something is not finite."""
        recipe = self.recipe
        state.optimizer.zero_grad(set_to_none=True)
        if not rows:
            return Outcome(loss=0.0, grad_norm=0.0, applied=True)
        loss = accumulate_gradients(
            rows, recipe.method, self.policy, state.teacher, scoring, means, on_tokens, self.budget
        )
        norm = gradient_norm(list(trainable(self.policy.model).values()), recipe.train.grad_clip)
        applied = math.isfinite(loss) and math.isfinite(norm)
        if applied:
            for group in state.optimizer.param_groups:
                group["lr"] = rate
            state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        return Outcome(loss, norm, applied)

    def batch(self, step: int) -> list[Question]:
        """Return the questions of a step: every epoch is a new seeded order of the data, batches run across epochs."""
        size, total = self.recipe.train.questions_per_step, len(self.questions)
        places = [divmod(position, total) for position in range(step * size, (step + 1) * size)]
        orders = {epoch: self._order(epoch) for epoch, _ in places}
        return [self.questions[orders[epoch][place]] for epoch, place in places]

    def _order(self, epoch: int) -> list[int]:
        order = list(range(len(self.questions)))
        python_random(self.recipe.train.seed, "order", epoch).shuffle(order)
        return order


OnTokens = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Batch:
    """The verified rollouts of one step."""

    groups: list[Group]
    tokens: int = 0
    """Sampled for it."""
    age: int = 0
    """Steps that were taken since the oldest weights that one of them was drawn from."""
    metrics: Metrics = field(default_factory=dict)
    """What is logged about how they came about."""


@dataclass(frozen=True, slots=True)
class _Drawn:
    """What has been drawn for a batch."""

    tokens: int
    oldest: int | None
    """Steps that the oldest weights had taken that something was drawn from; None: nothing was."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one optimiser step came to."""

    loss: float
    grad_norm: float
    applied: bool
    """False: loss or gradient was not finite, the weights were left alone."""


class Count:
    """Counts tokens of a phase and passes them on to the display."""

    def __init__(self, progress: Progress) -> None:
        self.tokens = 0
        self._progress = progress

    def __call__(self, tokens: int) -> None:
        """Add ``tokens``."""
        self.tokens += tokens
        self._progress.advance(tokens)


@dataclass(slots=True)
class Clock:
    """Seconds and tokens of each phase of a step."""

    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    all: list[tuple[dict[str, float], dict[str, int]]] = field(default_factory=list)
    """Of all processes, once they have told each other."""

    @contextmanager
    def phase(self, name: str, total: int | None) -> Iterator[Count]:
        """Time a block and show it; the block may count tokens."""
        started, count = time.perf_counter(), Count(self.progress)
        with self.progress.phase(name, total):
            yield count
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
        self.tokens[name] = self.tokens.get(name, 0) + count.tokens

    def metrics(self) -> Metrics:
        """Return ``seconds/<phase>``, ``tokens_per_second/<phase>`` and the whole step's.

        Seconds are those of the slowest process, waiting for others included; tokens those of all together.
        """
        clocks = self.all or [(self.seconds, self.tokens)]
        seconds = {name: max(own[name] for own, _ in clocks) for name in self.seconds}
        metrics: Metrics = {f"seconds/{name}": value for name, value in seconds.items()}
        for name in self.tokens:
            if tokens := sum(own[name] for _, own in clocks):
                metrics[f"tokens_per_second/{name}"] = tokens / max(seconds[name], 1e-9)
        metrics["seconds/step"] = sum(seconds.values())
        return metrics


@contextmanager
def _training(policy: Policy, step: int, seed: int, rank: int) -> Iterator[None]:
    """Train with the step's own dropout stream inside the block; leave mode and global generators as they were.

    Processes drop different units: they have different rows.
    """
    was_training = policy.model.training
    with torch.random.fork_rng(devices=[policy.device] if policy.device.type == "cuda" else []):
        torch.manual_seed(derive(seed, "dropout", step, *([rank] if rank else [])))
        policy.model.train()
        try:
            yield
        finally:
            policy.model.train(was_training)
