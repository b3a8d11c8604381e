"""From a micro-batch of hidden states to one loss per response token: distillation, policy gradient, imitation.

Each function takes its part of the method and a :class:`MicroBatch` and returns :class:`TokenLosses`. What a token's
loss is multiplied with (question weight and global denominator) is decided elsewhere; the sum of
``losses * token_weights`` over all micro-batches is the loss of the step.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor

from selfdistill.models.head import Head
from selfdistill.objectives.compare import compare
from selfdistill.objectives.linear_divergence import linear_token_logprobs
from selfdistill.objectives.parts import Distillation, Imitation, PolicyGradient
from selfdistill.objectives.policy_gradient import (
    imitation_loss,
    importance_ratio,
    policy_gradient_loss,
    sampled_token_loss,
)
from selfdistill.objectives.record import TokenRecord


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Rows of one objective, tokens one after the other."""

    student_hidden: Float[Tensor, "N H"]
    student: Head
    response_ids: Int[Tensor, " N"]
    lengths: list[int]
    """Response tokens per row; they sum to N."""
    temperature: float
    """Sampling temperature of the rollouts."""
    teacher_hidden: Float[Tensor, "N HT"] | None = None
    teacher: Head | None = None
    rollout_logprobs: Float[Tensor, " N"] | None = None
    advantages: Float[Tensor, " N"] | None = None


@dataclass(frozen=True, slots=True)
class TokenLosses:
    """One loss per token, and what is worth logging about how it came about."""

    losses: Float[Tensor, " N"]
    record: TokenRecord
    selected: Bool[Tensor, " N"] | None = None
    """PAINT: the interpolated positions."""
    ratio: Float[Tensor, " N"] | None = None
    """Importance ratio of the student to the rollout policy, after the cap."""
    policy_clipped: Float[Tensor, " N"] | None = None
    """1 where the policy gradient's clip acted."""


def distillation_losses(part: Distillation, batch: MicroBatch) -> TokenLosses:
    """Return the divergence of the (interpolated) self-teacher to the student at every token (METHODS sections 2-5)."""
    assert batch.teacher_hidden is not None and batch.teacher is not None
    comparison = compare(
        part,
        batch.student_hidden,
        batch.teacher_hidden,
        batch.student,
        batch.teacher,
        batch.response_ids,
        batch.lengths,
        batch.temperature,
    )
    record = comparison.record
    assert record.divergence is not None and record.student_logprob is not None and record.teacher_logprob is not None
    losses, ratio = record.divergence, None
    if part.estimator == "sampled_token":
        losses = sampled_token_loss(record.student_logprob, record.teacher_logprob)
    if part.ratio_cap is not None:
        assert batch.rollout_logprobs is not None, "ratio_cap needs the log-probabilities that rollouts were drawn with"
        ratio = importance_ratio(record.student_logprob, batch.rollout_logprobs, part.ratio_cap)
        losses = losses * ratio
    return TokenLosses(losses, record, selected=comparison.selected, ratio=ratio)


def policy_losses(part: PolicyGradient, batch: MicroBatch) -> TokenLosses:
    """Return the clipped policy-gradient loss at every token (METHODS section 7)."""
    assert batch.rollout_logprobs is not None and batch.advantages is not None
    record = linear_token_logprobs(batch.student_hidden, batch.student, batch.response_ids, batch.temperature)
    assert record.student_logprob is not None
    surrogate = policy_gradient_loss(
        record.student_logprob,
        batch.rollout_logprobs,
        batch.advantages,
        clip_low=part.clip_low,
        clip_high=part.clip_high,
    )
    ratio = importance_ratio(record.student_logprob, batch.rollout_logprobs, cap=None)
    return TokenLosses(surrogate.loss, record, ratio=ratio, policy_clipped=surrogate.clipped)


def imitation_losses(part: Imitation, batch: MicroBatch) -> TokenLosses:
    """Return the cross-entropy of every reference token (SFT)."""
    record = linear_token_logprobs(batch.student_hidden, batch.student, batch.response_ids, temperature=1.0)
    assert record.student_logprob is not None
    return TokenLosses(imitation_loss(record.student_logprob), record)
