"""The training loop. One step reads like the line in the architecture.

::

    Question --sample--> Rollout --verify--> Verdict --contextualise--> PrivilegedPrompt | None
             --weigh--> weight --score--> hidden states --compare--> per-token record --> loss --> update
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from selfdistill.contexts.rendering import PromptFrame
from selfdistill.methods.sources import ReferenceSolutions
from selfdistill.models.loading import Policy
from selfdistill.questions.question import Question
from selfdistill.randomness import derive, python_random
from selfdistill.rollouts.collect import collect, reference_rollouts, verify_groups
from selfdistill.rollouts.sampler import Sampler
from selfdistill.teachers.weights import trainable
from selfdistill.training.checkpoint import TrainState
from selfdistill.training.metrics import Metrics, TokenMeans, batch_metrics
from selfdistill.training.optimizer import learning_rate
from selfdistill.training.plan import Plan, Row, make_plan
from selfdistill.training.progress import Progress
from selfdistill.training.recipe import Recipe
from selfdistill.training.update import Scoring, accumulate_gradients, gradient_norm
from selfdistill.verifiers.verdict import Group, Verdict, Verifier


@dataclass(frozen=True, slots=True)
class Trainer:
    """Everything that a step needs and does not change; what changes is in the :class:`TrainState`."""

    recipe: Recipe
    policy: Policy
    sampler: Sampler
    verifier: Verifier
    questions: Sequence[Question]
    frame: PromptFrame
    progress: Progress
    prior: Mapping[str, float] | None = None
    """Pass rates from before training, by question id (PACED)."""

    def step(self, state: TrainState) -> tuple[Metrics, Plan]:
        """Take one step: a batch of questions, its rollouts, the update(s) on them. Counts ``state.step`` up."""
        clock = Clock(self.progress)
        groups = self.sample(state.step, clock)
        plan = self.plan(groups, state.step)
        metrics = batch_metrics(plan, self.recipe.method.source) | self.update(plan, state, clock)
        state.step += 1
        return {"step": state.step, **metrics, **clock.metrics()}, plan

    def sample(self, step: int, clock: Clock) -> list[Group]:
        """Question --sample--> Rollout --verify--> Verdict."""
        recipe, questions = self.recipe, self.batch(step)
        if isinstance(recipe.method.source, ReferenceSolutions):
            references = reference_rollouts(questions, self.policy.chat, thinking=recipe.rollouts.thinking)
            return [Group(one.question, (one,), (Verdict(1.0, True),)) for one in references]
        expected = len(questions) * recipe.method.source.group_size
        with clock.phase("sampling", expected * recipe.rollouts.sampling.max_new_tokens) as count:
            rollouts = collect(
                questions,
                self.sampler,
                self.policy.chat,
                group_size=recipe.method.source.group_size,
                sampling=recipe.rollouts.sampling,
                seed=recipe.train.seed,
                stream=("train", step),
                thinking=recipe.rollouts.thinking,
                max_prompt_tokens=recipe.rollouts.max_prompt_tokens,
                on_tokens=count,
            )
        with clock.phase("verifying", None):
            return verify_groups(rollouts, self.verifier)

    def plan(self, groups: Sequence[Group], step: int) -> Plan:
        """Verdict --contextualise--> PrivilegedPrompt | None --weigh--> weight."""
        seed = derive(self.recipe.train.seed, "contexts", step)
        prompts = [self.recipe.method.context.contextualise(group, self.frame, seed) for group in groups]
        return make_plan(self.recipe.method, groups, prompts, self.prior)

    def update(self, plan: Plan, state: TrainState, clock: Clock) -> Metrics:
        """--score--> hidden states --compare--> per-token record --> loss --> update."""
        method, train = self.recipe.method, self.recipe.train
        means, outcomes = TokenMeans(), []
        parts = plan.parts(train.updates_per_batch, method.reduction)
        rate = learning_rate(train, state.step)
        expected = sum(len(row.rollout.response_ids) for rows in parts for row in rows)
        with clock.phase("update", expected) as count, _training(self.policy, state.step, train.seed):
            for rows in parts:
                outcomes.append(self._optimizer_step(rows, state, means, rate, count))
                if outcomes[-1].applied and state.teacher is not None:
                    state.teacher.after_step()
        skipped = sum(not outcome.applied for outcome in outcomes)
        if skipped < len(outcomes) and state.teacher is not None:
            state.teacher.after_batch()
        state.bad_steps = state.bad_steps + 1 if skipped else 0
        state.skipped_updates += skipped
        return means.means() | {
            "loss": sum(outcome.loss for outcome in outcomes) / len(outcomes),
            "grad_norm": sum(outcome.grad_norm for outcome in outcomes) / len(outcomes),
            "learning_rate": rate,
            "skipped_updates": state.skipped_updates,
        }

    def _optimizer_step(
        self, rows: Sequence[Row], state: TrainState, means: TokenMeans, rate: float, count: Count
    ) -> Outcome:
        """Take one optimiser step; leave the weights alone when nothing has signal or something is not finite."""
        recipe = self.recipe
        state.optimizer.zero_grad(set_to_none=True)
        if not rows:
            return Outcome(loss=0.0, grad_norm=0.0, applied=True)
        scoring = Scoring(
            recipe.rollouts.sampling.temperature,
            recipe.train.micro_batch_tokens,
            recipe.scoring,
            on_policy=recipe.train.updates_per_batch == 1,
        )
        loss = accumulate_gradients(rows, recipe.method, self.policy, state.teacher, scoring, means, count)
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

    @contextmanager
    def phase(self, name: str, total: int | None) -> Iterator[Count]:
        """Time a block and show it; the block may count tokens."""
        started, count = time.perf_counter(), Count(self.progress)
        with self.progress.phase(name, total):
            yield count
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
        self.tokens[name] = self.tokens.get(name, 0) + count.tokens

    def metrics(self) -> Metrics:
        """Return ``seconds/<phase>``, ``tokens_per_second/<phase>`` and the whole step's."""
        metrics: Metrics = {f"seconds/{name}": seconds for name, seconds in self.seconds.items()}
        for name, tokens in self.tokens.items():
            if tokens:
                metrics[f"tokens_per_second/{name}"] = tokens / max(self.seconds[name], 1e-9)
        metrics["seconds/step"] = sum(self.seconds.values())
        return metrics


@contextmanager
def _training(policy: Policy, step: int, seed: int) -> Iterator[None]:
    """Train with the step's own dropout stream inside the block; leave mode and global generators as they were."""
    was_training = policy.model.training
    with torch.random.fork_rng(devices=[policy.device] if policy.device.type == "cuda" else []):
        torch.manual_seed(derive(seed, "dropout", step))
        policy.model.train()
        try:
            yield
        finally:
            policy.model.train(was_training)
