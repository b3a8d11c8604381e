"""From the record of response tokens to one loss per token: distillation, policy gradient, imitation.

Pure functions of a :class:`TokenRecord` and of what the rollout brought along, token by token, so that they can be
asked about a whole micro-batch or about one tile of it. What a token's loss is multiplied with (question weight and
global denominator) is decided elsewhere; the sum of ``losses * token_weights`` over all micro-batches is the loss of
the step.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from selfdistill.objectives.parts import Distillation, Imitation, PolicyGradient
from selfdistill.objectives.policy_gradient import (
    imitation_loss,
    importance_ratio,
    policy_gradient_loss,
    sampled_token_loss,
)
from selfdistill.objectives.record import TokenRecord

Objective = Distillation | PolicyGradient | Imitation


@dataclass(frozen=True, slots=True)
class Signals:
    """What some tokens' losses depend on beside their record."""

    rollout_logprobs: Float[Tensor, " n"] | None = None
    """Log-probabilities that the tokens were drawn with. None: the student's own, of this very pass, which is what they
    are on-policy; the ratio is then 1 and no other pass is needed."""
    advantages: Float[Tensor, " n"] | None = None


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


def token_losses(part: Objective, record: TokenRecord, signals: Signals) -> TokenLosses:
    """Return the losses that a part of the method asks for."""
    match part:
        case Distillation():
            return distillation_losses(part, record, signals)
        case PolicyGradient():
            return policy_losses(part, record, signals)
        case Imitation():
            return imitation_losses(record)


def distillation_losses(part: Distillation, record: TokenRecord, signals: Signals) -> TokenLosses:
    """Return the divergence of the (interpolated) self-teacher to the student at every token (METHODS sections 2-5)."""
    assert record.divergence is not None and record.student_logprob is not None and record.teacher_logprob is not None
    losses, ratio = record.divergence, None
    if part.estimator == "sampled_token":
        losses = sampled_token_loss(record.student_logprob, record.teacher_logprob)
    if part.ratio_cap is not None:
        ratio = importance_ratio(record.student_logprob, drawn_with(record, signals), part.ratio_cap)
        losses = losses * ratio
    return TokenLosses(losses, record, ratio=ratio)


def policy_losses(part: PolicyGradient, record: TokenRecord, signals: Signals) -> TokenLosses:
    """Return the clipped policy-gradient loss at every token (METHODS section 7)."""
    assert signals.advantages is not None and record.student_logprob is not None
    rollout = drawn_with(record, signals)
    surrogate = policy_gradient_loss(
        record.student_logprob, rollout, signals.advantages, clip_low=part.clip_low, clip_high=part.clip_high
    )
    ratio = importance_ratio(record.student_logprob, rollout, cap=None)
    return TokenLosses(surrogate.loss, record, ratio=ratio, policy_clipped=surrogate.clipped)


def imitation_losses(record: TokenRecord) -> TokenLosses:
    """Return the cross-entropy of every reference token (SFT)."""
    assert record.student_logprob is not None
    return TokenLosses(imitation_loss(record.student_logprob), record)


def drawn_with(record: TokenRecord, signals: Signals) -> Float[Tensor, " n"]:
    """Return the rollout policy's log-probabilities: as they came with the rollouts, or on-policy the student's own."""
    if signals.rollout_logprobs is not None:
        return signals.rollout_logprobs
    assert record.student_logprob is not None
    return record.student_logprob.detach()
