"""Score, compare, update: from the rows of one optimiser step to changed weights.

The teacher scores all of its rows first (hidden states, no gradient); then the student is forwarded, compared and
differentiated one micro-batch at a time. Every row carries its share of the global loss, so gradients simply add up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from selfdistill.errors import TrainingError
from selfdistill.methods.method import Method
from selfdistill.models.head import projection_of
from selfdistill.models.loading import Policy
from selfdistill.objectives.divergence import working_dtype
from selfdistill.objectives.heads import HEADS, MicroBatch
from selfdistill.objectives.linear_divergence import linear_entropies
from selfdistill.objectives.losses import Objective
from selfdistill.objectives.parts import Imitation
from selfdistill.objectives.reductions import entropy_weights
from selfdistill.scoring.forward import TokenPair, response_states, row_batches
from selfdistill.scoring.settings import Forwarding
from selfdistill.teachers.self_teacher import SelfTeacher, TeacherScores
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

    def forwarding(self, pad_id: int) -> Forwarding:
        """Return how rows become forward passes."""
        return Forwarding(
            self.token_budget,
            pad_id=pad_id,
            reuse_prefix=self.config.reuse_prefix,
            padding_free=self.config.padding_free,
        )


def student_pair(row: Row) -> TokenPair:
    """Return the tokens that the student is scored on."""
    return row.rollout.prompt_ids, row.rollout.response_ids


def teacher_pair(row: Row) -> TokenPair:
    """Return the same response after the privileged prompt."""
    assert row.prompt is not None
    return row.prompt.token_ids, row.rollout.response_ids


def accumulate_gradients(
    rows: Sequence[Row],
    method: Method,
    policy: Policy,
    teacher: SelfTeacher | None,
    scoring: Scoring,
    means: TokenMeans,
    on_tokens: Callable[[int], None] = lambda count: None,
) -> float:
    """Add the gradient of the step's loss to the parameters and return the loss.

    Args:
        rows: the rows with signal of one optimiser step; nothing is forwarded when there are none.
        method: which objective each row's name stands for.
        policy: the student; gradients are added to what its parameters hold.
        teacher: whose weights score the privileged prompts.
        scoring: temperature and token budget.
        means: receives the token statistics.
        on_tokens: told how many response tokens have been done.
    """
    loss = 0.0
    for name in ("distillation", "policy", "imitation"):
        own = [row for row in rows if row.objective == name]
        if own:
            loss += _objective_pass(own, method, policy, teacher, scoring, means, on_tokens)
    return loss


def _objective_pass(
    rows: Sequence[Row],
    method: Method,
    policy: Policy,
    teacher: SelfTeacher | None,
    scoring: Scoring,
    means: TokenMeans,
    on_tokens: Callable[[int], None],
) -> float:
    """Forward, compare and differentiate rows that share one objective."""
    part = _objective(method, rows[0].objective)
    forwarding = scoring.forwarding(policy.chat.pad_id)
    scores, importance = None, None
    if rows[0].objective == "distillation":
        assert teacher is not None
        scores = teacher.score([teacher_pair(row) for row in rows], forwarding)
        importance = _entropy_importance(method, scores, scoring)
    total = 0.0
    for indices in row_batches([student_pair(row) for row in rows], forwarding, policy.model):
        chosen = [rows[index] for index in indices]
        batch = _micro_batch(part, chosen, policy, scoring, scores, indices, importance)
        scored = HEADS[scoring.config.head](part, batch)
        scored.loss.backward()
        total += float(scored.loss.detach())
        means.add_losses(scored.tokens, batch.rollout_logprobs)
        means.add_difference(scored.tokens, batch.rollout_logprobs, scoring.drawn)
        on_tokens(sum(batch.lengths))
    return total


def _micro_batch(
    part: Objective,
    rows: Sequence[Row],
    policy: Policy,
    scoring: Scoring,
    scores: TeacherScores | None,
    indices: Sequence[int],
    importance: Sequence[Tensor] | None,
) -> MicroBatch:
    hidden = response_states(policy.model, [student_pair(row) for row in rows], scoring.forwarding(policy.chat.pad_id))
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


def _entropy_importance(method: Method, scores: TeacherScores, scoring: Scoring) -> list[Tensor] | None:
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
    return list(entropy_weights(torch.cat(entropies), part.entropy_weight).split(lengths))


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
    return float(norm)
