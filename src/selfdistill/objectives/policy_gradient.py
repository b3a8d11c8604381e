"""Losses on single sampled tokens: GRPO's clipped surrogate, the capped ratio, OPSD's sampled-token form, imitation.

In: log-probabilities [N] of the sampled ids (nats) and advantages [N]. Out: losses [N], to be minimised. Sources: GRPO
(arXiv 2402.03300) with the asymmetric clip of METHODS section 7; the capped ratio of SDPO (arXiv 2601.20802); OPSD's
sampled-token objective (arXiv 2601.18734).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Surrogate(NamedTuple):
    """Per-token loss of a clipped policy gradient, with what the clip did."""

    loss: Float[Tensor, " N"]
    """-min(r A, clip(r) A); carries the gradient."""
    clipped: Float[Tensor, " N"]
    """1 where the clipped branch was taken, so that the token has no gradient, else 0."""


def policy_gradient_loss(
    student_logprob: Float[Tensor, " N"],
    rollout_logprob: Float[Tensor, " N"],
    advantages: Float[Tensor, " N"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
) -> Surrogate:
    """Return -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) per token, r = p_S(y) / p_rollout(y).

    On the first update after sampling r = 1 and the gradient is that of -A log p_S(y).
    """
    advantages = advantages.detach().to(student_logprob.dtype)
    ratio = torch.exp(student_logprob - rollout_logprob.detach())
    free, clipped = ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    return Surrogate(-torch.minimum(free, clipped), (clipped < free).detach().to(student_logprob.dtype))


def importance_ratio(
    student_logprob: Float[Tensor, " N"], rollout_logprob: Float[Tensor, " N"], cap: float | None
) -> Float[Tensor, " N"]:
    """Return exp(log p_S(y) - log p_rollout(y)) without gradient, capped above at ``cap`` (None: no cap)."""
    ratio = torch.exp(student_logprob.detach() - rollout_logprob.detach())
    return ratio if cap is None else ratio.clamp(max=cap)


def sampled_token_loss(
    student_logprob: Float[Tensor, " N"], teacher_logprob: Float[Tensor, " N"], ratio: Float[Tensor, " N"] | None = None
) -> Float[Tensor, " N"]:
    """Return -A log p_S(y) with A = log p_T(y) - log p_S(y) held constant, times ``ratio`` if given.

    For tokens drawn from the student, its expected gradient is that of the reverse KL.
    """
    advantage = (teacher_logprob - student_logprob).detach()
    loss = -advantage * student_logprob
    return loss if ratio is None else ratio.detach() * loss


def imitation_loss(student_logprob: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Return the cross-entropy of each reference token, -log p_S(y)."""
    return -student_logprob
