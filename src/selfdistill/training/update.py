"""Score, compare, update: from the rows of one optimiser step to changed weights.

The teacher scores all of its rows first (hidden states, no gradient); then the student is forwarded, compared and
differentiated one micro-batch at a time. Every row carries its share of the global loss, so gradients simply add up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from selfdistill.errors import TrainingError
from selfdistill.methods.method import Method
from selfdistill.models.head import projection_of
from selfdistill.models.loading import Policy
from selfdistill.objectives.divergence import working_dtype
from selfdistill.objectives.heads import HEADS, MicroBatch
from selfdistill.objectives.linear_divergence import linear_entropies
from selfdistill.objectives.losses import Objective
from selfdistill.objectives.parts import Imitation
from selfdistill.objectives.reductions import entropy_weights, unnormalised_entropy_weights
from selfdistill.parallel.sharding import accumulating, empty_pass, sharding_of
from selfdistill.parallel.share import own_rows
from selfdistill.parallel.world import ALONE, World
from selfdistill.scoring.forward import TokenPair, response_states, row_batches, sequence_length
from selfdistill.scoring.settings import Forwarding
from selfdistill.teachers.self_teacher import SelfTeacher, TeacherScores
from selfdistill.training.budget import Budget, is_out_of_memory
from selfdistill.training.config import ScoringConfig
from selfdistill.training.metrics import Drawn, TokenMeans
from selfdistill.training.plan import Row

ENTROPY_TOKENS = 4096
"""Teacher states that are looked at together for SRPO's entropies."""


@dataclass(frozen=True, slots=True)
class Scoring:
    """What both forward passes and the head need to know."""

    temperature: float
    """Sampling temperature of the rollouts."""
    token_budget: int
    """Positions of one forward pass."""
    config: ScoringConfig = field(default_factory=ScoringConfig)
    on_policy: bool = True
    """Whether the rollouts were drawn from the very weights that are being updated."""
    drawn: Drawn = "now"
    """What the rollouts' log-probabilities are compared with for the metrics."""

    world: World = ALONE
    """The processes that share the rows."""
    groups: Literal["whole", "split"] = "whole"
    """Whether rows of one question stay on one process."""

    def forwarding(self, policy: Policy, token_budget: int) -> Forwarding:
        """Return how rows become forward passes."""
        sharding = sharding_of(policy.model)
        in_step = sharding is not None and sharding.by_layer
        return Forwarding(
            token_budget,
            pad_id=policy.chat.pad_id,
            reuse_prefix=self.config.reuse_prefix and not in_step,  # every process makes as many passes as the others
            padding_free=self.config.padding_free,
        )


def student_pair(row: Row) -> TokenPair:
    """Return the tokens that the student is scored on."""
    return row.rollout.prompt_ids, row.rollout.response_ids


def teacher_pair(row: Row) -> TokenPair:
    """Return the same response after the privileged prompt."""
    assert row.prompt is not None
    return row.prompt.token_ids, row.rollout.response_ids


OBJECTIVES = ("distillation", "policy", "imitation")
"""What a row may be trained on, in the order in which it is."""


def accumulate_gradients(
    rows: Sequence[Row],
    method: Method,
    policy: Policy,
    teacher: SelfTeacher | None,
    scoring: Scoring,
    means: TokenMeans,
    on_tokens: Callable[[int], None] = lambda count: None,
    budget: Budget | None = None,
) -> float:
    """Add the gradient of the step's loss to the parameters and return the loss.

    With several processes all of them call this with the same rows; each scores its share, and gradient and loss are
    those of all together. A micro-batch that exceeds the device's memory is made again with half the budget.

    Args:
        rows: the rows with signal of one optimiser step; nothing is forwarded when there are none.
        method: which objective each row's name stands for.
        policy: the student; gradients are added to what its parameters hold.
        teacher: whose weights score the privileged prompts.
        scoring: temperature and token budget.
        means: receives the statistics of the tokens that this process scores.
        on_tokens: told how many response tokens have been done; may raise, to stop.
        budget: positions of one forward pass; by default ``scoring.token_budget``, forgotten afterwards.

    Raises:
        TrainingError: a row alone exceeds the device's memory.
        PeerError: another process has failed.
    """
    names = [name for name in OBJECTIVES if any(row.objective == name for row in rows)]
    if not names:
        return 0.0
    world = scoring.world
    own = _own_rows(rows, scoring)
    passes = _Passes(method, policy, scoring, means, on_tokens, budget or Budget(scoring.token_budget))
    if "distillation" in names:
        assert teacher is not None
        passes.teach(teacher, [row for row in own if row.objective == "distillation"])
    while True:
        before = means.state()
        with accumulating(policy.model, policy.device) as together:
            try:
                return sum(world.each(lambda: passes.learn(own, names, together)))
            except _OutOfMemory as failed:
                longest = failed.longest
        if world.size > 1:
            passes.budget.halve(longest, "in a backward pass")
            raise TrainingError(
                "out of memory in a backward pass, whose gradients cannot be taken back on several processes; go on "
                "with --auto-resume: the smaller train.micro_batch_tokens is remembered"
            )
        # Some parameters have part of this micro-batch's gradient: all of the step is made again.
        means.load_state(before)
        policy.model.zero_grad(set_to_none=True)
        passes.budget.halve(longest, "in a backward pass")


class _OutOfMemory(Exception):
    """A backward pass did not fit. Carries no frames: they would hold on to the memory."""

    def __init__(self, longest: int) -> None:
        super().__init__(longest)
        self.longest = longest


def _own_rows(rows: Sequence[Row], scoring: Scoring) -> list[Row]:
    """Return this process's share of the rows, by the positions that both passes read."""
    costs = [
        sum(map(len, student_pair(row))) + (sum(map(len, teacher_pair(row))) if row.prompt is not None else 0)
        for row in rows
    ]
    families = [row.rollout.question.id for row in rows]
    own = own_rows(costs, families, scoring.world.rank, scoring.world.size, scoring.groups)
    return [rows[index] for index in own]


class _Passes:
    """The forward and backward passes of one optimiser step on one process."""

    def __init__(
        self,
        method: Method,
        policy: Policy,
        scoring: Scoring,
        means: TokenMeans,
        on_tokens: Callable[[int], None],
        budget: Budget,
    ) -> None:
        self.method, self.policy, self.scoring = method, policy, scoring
        self.means, self.on_tokens, self.budget = means, on_tokens, budget
        self.scores: TeacherScores | None = None
        self.importance: list[Tensor] | None = None

    def teach(self, teacher: SelfTeacher, rows: Sequence[Row]) -> None:
        """Have the teacher score the rows that are distilled."""
        pairs = [teacher_pair(row) for row in rows]
        longest = max((sequence_length(pair) for pair in pairs), default=1)
        while self.scores is None:
            try:
                self.scores = teacher.score(pairs, self._forwarding())
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or self.scoring.world.size > 1:
                    raise
            if self.scores is None:
                self.budget.halve(longest, "in the teacher's pass")
        self.importance = entropy_importance(self.method, self.scores, self.scoring)

    def learn(self, rows: Sequence[Row], names: Sequence[str], together: Callable[[int], int] | None) -> float:
        """Make all passes of the student and return this process's share of the loss."""
        return sum(self._objective([row for row in rows if row.objective == name], name, together) for name in names)

    def _objective(self, rows: Sequence[Row], name: str, together: Callable[[int], int] | None) -> float:
        """Forward, compare and differentiate rows that share one objective."""
        part = _objective(self.method, name)
        total, made = 0.0, 0
        waiting = self._batches(rows, range(len(rows)))
        wanted = len(waiting) if together is None else together(len(waiting))
        while waiting:
            indices = waiting.pop(0)
            loss = self._micro_batch(part, rows, indices, may_retry=together is None)
            if loss is None:
                longest = max(sequence_length(student_pair(rows[index])) for index in indices)
                self.budget.halve(longest, "in a forward pass")
                left = [index for batch in (indices, *waiting) for index in batch]
                waiting = self._batches(rows, left)
                continue
            total, made = total + loss, made + 1
        for _ in range(wanted - made if together is not None else 0):
            empty_pass(self.policy.model, self.policy.device).backward()
        return total

    def _micro_batch(
        self, part: Objective, rows: Sequence[Row], indices: Sequence[int], may_retry: bool
    ) -> float | None:
        """Make one micro-batch and return its loss; None: its forward pass did not fit, and nothing has changed."""
        longest, scored, backward = 0, None, False
        try:
            batch = self._inputs(part, rows, indices)
            scored = HEADS[self.scoring.config.head](part, batch)
            backward = True
            scored.loss.backward()
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or not may_retry:
                raise
            longest = max(sequence_length(student_pair(rows[index])) for index in indices)
        if longest and backward:
            raise _OutOfMemory(longest)
        if longest or scored is None:
            return None
        loss = float(scored.loss.detach())
        self.means.add_losses(scored.tokens, batch.rollout_logprobs)
        self.means.add_difference(scored.tokens, batch.rollout_logprobs, self.scoring.drawn)
        self.on_tokens(sum(batch.lengths))
        return loss

    def _inputs(self, part: Objective, rows: Sequence[Row], indices: Sequence[int]) -> MicroBatch:
        chosen = [rows[index] for index in indices]
        distils = chosen[0].objective == "distillation"
        importance = self.importance if distils else None
        scores = self.scores if distils else None
        return _micro_batch(part, chosen, self.policy, self.scoring, self._forwarding(), scores, indices, importance)

    def _batches(self, rows: Sequence[Row], left: Sequence[int]) -> list[list[int]]:
        pairs = [student_pair(rows[index]) for index in left]
        batches = row_batches(pairs, self._forwarding(), self.policy.model)
        return [[left[place] for place in batch] for batch in batches]

    def _forwarding(self) -> Forwarding:
        return self.scoring.forwarding(self.policy, self.budget.tokens)


def _micro_batch(
    part: Objective,
    rows: Sequence[Row],
    policy: Policy,
    scoring: Scoring,
    forwarding: Forwarding,
    scores: TeacherScores | None,
    indices: Sequence[int],
    importance: Sequence[Tensor] | None,
) -> MicroBatch:
    hidden = response_states(policy.model, [student_pair(row) for row in rows], forwarding)
    lengths = [len(row.rollout.response_ids) for row in rows]
    weights = _per_token([row.token_weight for row in rows], lengths, hidden)
    if importance is not None:
        weights = weights * torch.cat([importance[index] for index in indices])
    return MicroBatch(
        student_hidden=hidden,
        student=projection_of(policy.model),
        response_ids=torch.tensor([i for row in rows for i in row.rollout.response_ids], device=hidden.device),
        lengths=lengths,
        temperature=scoring.temperature,
        token_weights=weights,
        teacher_hidden=torch.cat([scores.states[index] for index in indices]) if scores else None,
        teacher=scores.projection if scores else None,
        rollout_logprobs=_rollout_logprobs(part, rows, scoring, hidden),
        advantages=_per_token([row.advantage for row in rows], lengths, hidden),
    )


def _rollout_logprobs(part: Objective, rows: Sequence[Row], scoring: Scoring, like: Tensor) -> Tensor | None:
    """Return the sampler's log-probabilities; without them the student's own serve, as long as they are the same.

    Raises:
        TrainingError: an update has moved the student away from rollouts that brought none.
    """
    if all(row.rollout.logprobs is not None for row in rows):
        return like.new_tensor([x for row in rows for x in row.rollout.logprobs or ()], dtype=working_dtype(like))
    if not scoring.on_policy and not isinstance(part, Imitation):
        raise TrainingError(
            "rollouts carry no log-probabilities, and rollouts from older weights need them for ratios; set "
            "train.updates_per_batch=1 and rollouts.ahead=0, or use a sampler that returns them"
        )
    return None


def _objective(method: Method, name: str | None) -> Objective:
    part: Objective | None = {
        "distillation": method.distillation,
        "policy": method.policy,
        "imitation": method.imitation,
    }.get(name or "")
    assert part is not None, f"a row was routed to {name!r}, which the method does not have"
    return part


def entropy_importance(method: Method, scores: TeacherScores, scoring: Scoring) -> list[Tensor] | None:
    """SRPO: exp(-b H_T) over its mean over ALL distilled tokens of the step, per row; None for methods without it."""
    part = method.distillation
    if part is None or part.entropy_weight is None:
        return None
    temperature = part.temperature or scoring.temperature
    lengths = [len(states) for states in scores.states]
    entropies = [
        linear_entropies(torch.cat([scores.states[index] for index in batch]), scores.projection, temperature)
        for batch in _consecutive(lengths, ENTROPY_TOKENS)
    ]
    if scoring.world.size == 1:
        return list(entropy_weights(torch.cat(entropies), part.entropy_weight).split(lengths))
    known = torch.cat(entropies) if entropies else torch.zeros(0)
    weights = unnormalised_entropy_weights(known, part.entropy_weight).double()
    sums = scoring.world.gather((float(weights.sum()), len(weights)))
    mean = sum(total for total, _ in sums) / max(1, sum(count for _, count in sums))
    return list(entropy_weights(known, part.entropy_weight, mean).split(lengths))


def _consecutive(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Group rows in their order, so that a group has few tokens and a step's states are not copied at once."""
    groups: list[list[int]] = []
    tokens = limit
    for index, length in enumerate(lengths):
        tokens += length
        if tokens > limit:
            groups.append([])
            tokens = length
        groups[-1].append(index)
    return groups


def _per_token(values: Sequence[float], lengths: Sequence[int], like: Tensor) -> Tensor:
    """Repeat one number per row over the row's tokens, on the device and in the working precision of ``like``."""
    repeated = [value for value, length in zip(values, lengths, strict=True) for _ in range(length)]
    return like.new_tensor(repeated, dtype=working_dtype(like))


def gradient_norm(parameters: Sequence[Tensor], clip: float | None) -> float:
    """Clip the gradient to a norm of at most ``clip`` (None: leave it) and return the norm before clipping."""
    norm = torch.nn.utils.clip_grad_norm_(parameters, math.inf if clip is None else clip)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
