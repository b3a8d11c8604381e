"""The per-token record: everything that one look at a token under student and self-teacher yields."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """One value per response token, N tokens, float32 (float64 for float64 inputs). Nats throughout.

    ``divergence`` and ``student_logprob`` carry gradients to the student; everything else is a constant.
    """

    student_entropy: Float[Tensor, " N"]
    """H_S at the distillation temperature, over the full vocabulary."""
    student_logprob: Float[Tensor, " N"] | None = None
    """log p_S of the response id at the sampling temperature, when ids were given."""
    divergence: Float[Tensor, " N"] | None = None
    """The clipped, interpolated divergence, when there is a teacher."""
    teacher_entropy: Float[Tensor, " N"] | None = None
    """H_T at the distillation temperature, of the teacher before interpolation."""
    teacher_logprob: Float[Tensor, " N"] | None = None
    """log p_T of the response id at the sampling temperature, before interpolation."""
    clip_fraction: Float[Tensor, " N"] | None = None
    """Share of the support's summands (entry clip) or 0/1 per token (token clip) that a clip cut; 0 without a clip."""
    captured_mass: Float[Tensor, " N"] | None = None
    """Probability that the owner of a top-k support (student or teacher) has on its K ids; 1 for the full support."""
    agreement: Float[Tensor, " N"] | None = None
    """1 where student and teacher have the same arg-max, else 0."""
