"""Score, compare, update: from the rows of one optimiser step to changed weights.

The teacher scores all of its rows first (hidden states, no gradient); then the student is forwarded, compared and
differentiated one micro-batch at a time. Every row carries its share of the global loss, so gradients simply add up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from selfdistill.methods.method import Method
from selfdistill.models.head import projection_of
from selfdistill.models.loading import Policy
from selfdistill.objectives.divergence import working_dtype
from selfdistill.objectives.linear_divergence import linear_entropies
from selfdistill.objectives.losses import MicroBatch, TokenLosses, distillation_losses, imitation_losses, policy_losses
from selfdistill.objectives.reductions import entropy_weights
from selfdistill.scoring.batching import micro_batches
from selfdistill.scoring.forward import TokenPair, response_states, sequence_length
from selfdistill.teachers.self_teacher import SelfTeacher, TeacherScores
from selfdistill.training.metrics import TokenMeans
from selfdistill.training.plan import Row


@dataclass(frozen=True, slots=True)
class Scoring:
    """What both forward passes need to know."""

    temperature: float
    """Sampling temperature of the rollouts."""
    token_budget: int
    """Positions, padding included, of one forward pass."""


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
    distilled = [row for row in rows if row.objective == "distillation"]
    loss = 0.0
    if distilled:
        assert teacher is not None
        scores = teacher.score([teacher_pair(row) for row in distilled], scoring.token_budget, policy.chat.pad_id)
        importance = _entropy_importance(method, scores, scoring)
        loss += _objective_pass(distilled, method, policy, scoring, means, on_tokens, scores, importance)
    for objective in ("policy", "imitation"):
        own = [row for row in rows if row.objective == objective]
        if own:
            loss += _objective_pass(own, method, policy, scoring, means, on_tokens)
    return loss


def _objective_pass(
    rows: Sequence[Row],
    method: Method,
    policy: Policy,
    scoring: Scoring,
    means: TokenMeans,
    on_tokens: Callable[[int], None],
    scores: TeacherScores | None = None,
    importance: Sequence[Tensor] | None = None,
) -> float:
    """Forward, compare and differentiate rows that share one objective."""
    total = 0.0
    for indices in micro_batches([sequence_length(student_pair(row)) for row in rows], scoring.token_budget):
        chosen = [rows[index] for index in indices]
        batch = _micro_batch(chosen, policy, scoring, scores, indices)
        scored = _token_losses(method, chosen[0].objective, batch)
        weights = _per_token([row.token_weight for row in chosen], batch.lengths, batch.student_hidden)
        if importance is not None:
            weights = weights * torch.cat([importance[index] for index in indices])
        loss = (scored.losses * weights).sum()
        loss.backward()
        total += float(loss.detach())
        means.add_losses(scored, batch.rollout_logprobs)
        on_tokens(sum(batch.lengths))
    return total


def _micro_batch(
    rows: Sequence[Row], policy: Policy, scoring: Scoring, scores: TeacherScores | None, indices: Sequence[int]
) -> MicroBatch:
    hidden = response_states(policy.model, [student_pair(row) for row in rows], policy.chat.pad_id)
    lengths = [len(row.rollout.response_ids) for row in rows]
    sampled = all(row.rollout.logprobs is not None for row in rows)
    logprobs = [value for row in rows for value in row.rollout.logprobs or ()]
    return MicroBatch(
        student_hidden=hidden,
        student=projection_of(policy.model),
        response_ids=torch.tensor([i for row in rows for i in row.rollout.response_ids], device=hidden.device),
        lengths=lengths,
        temperature=scoring.temperature,
        teacher_hidden=torch.cat([scores.states[index] for index in indices]) if scores else None,
        teacher=scores.projection if scores else None,
        rollout_logprobs=hidden.new_tensor(logprobs, dtype=working_dtype(hidden)) if sampled else None,
        advantages=_per_token([row.advantage for row in rows], lengths, hidden),
    )


def _token_losses(method: Method, objective: str | None, batch: MicroBatch) -> TokenLosses:
    match objective:
        case "distillation" if method.distillation is not None:
            return distillation_losses(method.distillation, batch)
        case "policy" if method.policy is not None:
            return policy_losses(method.policy, batch)
        case "imitation" if method.imitation is not None:
            return imitation_losses(method.imitation, batch)
    raise AssertionError(f"a row was routed to {objective!r}, which the method does not have")


def _entropy_importance(method: Method, scores: TeacherScores, scoring: Scoring) -> list[Tensor] | None:
    """SRPO: exp(-b H_T) over its mean over ALL distilled tokens of the step, per row; None for methods without it."""
    part = method.distillation
    if part is None or part.entropy_weight is None:
        return None
    temperature = part.temperature or scoring.temperature
    entropies = linear_entropies(torch.cat(scores.states), scores.projection, temperature)
    weights = entropy_weights(entropies, part.entropy_weight)
    return list(weights.split([len(states) for states in scores.states]))


def _per_token(values: Sequence[float], lengths: Sequence[int], like: Tensor) -> Tensor:
    """Repeat one number per row over the row's tokens, on the device and in the working precision of ``like``."""
    repeated = [value for value, length in zip(values, lengths, strict=True) for _ in range(length)]
    return like.new_tensor(repeated, dtype=working_dtype(like))


def gradient_norm(parameters: Sequence[Tensor], clip: float | None) -> float:
    """Clip the gradient to a norm of at most ``clip`` (None: leave it) and return the norm before clipping."""
    norm = torch.nn.utils.clip_grad_norm_(parameters, math.inf if clip is None else clip)
    return float(norm)
