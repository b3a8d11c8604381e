"""Mismatch: how far the engine's log-probabilities are from the trainer's, for tokens drawn from the same weights.

In: both log-probabilities of the drawn tokens. Out: what is logged about them, and a warning when it is too much. The
difference is rounding (another kernel, another precision) and is corrected by the truncated ratio of METHODS 5, where
the method has one. KL estimate k3: Schulman, "Approximating KL divergence", 2020.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

WARNING_STEPS = 10
"""A warning is not repeated for so many steps."""


def log_ratio(trainer: Float[Tensor, " n"], engine: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return log (p_trainer / p_engine) of each drawn token, in float64, without a graph."""
    return trainer.detach().double() - engine.detach().double()


def k3(log_ratio: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return r - 1 - log r per token: its mean over the engine's tokens estimates KL(engine || trainer), in nats.

    It is never negative, and has less variance than the mean of -log r.
    """
    return torch.expm1(log_ratio) - log_ratio


@dataclass(slots=True)
class MismatchAlarm:
    """Says when the mismatch is too large, now and then rather than every step."""

    threshold: float
    """Nats, mean per token."""
    warned: int | None = None
    """The step of the last warning."""

    def text(self, step: int, mean: float | None) -> str | None:
        """Return a warning if ``mean`` of this step calls for one."""
        if mean is None or mean <= self.threshold:
            return None
        if self.warned is not None and 0 <= step - self.warned < WARNING_STEPS:
            return None
        self.warned = step
        return (
            f"step {step}: the engine's log-probabilities differ from the trainer's by {mean:.3g} nats per token, more "
            f"than rollouts.mismatch_warning ({self.threshold:g}); use float32 on both sides (model.dtype=float32, and "
            "the same for the engine), or correct for it with method.distillation.ratio_cap=2"
        )
