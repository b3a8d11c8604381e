"""Mismatch: how far the engine's log-probabilities are from the trainer's, for tokens drawn from the same weights.

In: both log-probabilities of the drawn tokens. Out: what is logged about them; a warning says when it is too
much (:mod:`selfdistill.training.alarms`). The difference is rounding (another kernel, another precision) and is
corrected by the truncated ratio of METHODS 5, where the method has one. KL estimate k3: Schulman, "Approximating KL
divergence", 2020.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def log_ratio(trainer: Float[Tensor, " n"], engine: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return log (p_trainer / p_engine) of each drawn token, in float64, without a graph."""
    return trainer.detach().double() - engine.detach().double()


def k3(log_ratio: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return r - 1 - log r per token: its mean over the engine's tokens estimates KL(engine || trainer), in nats.

    It is never negative, and has less variance than the mean of -log r.
    """
    return torch.expm1(log_ratio) - log_ratio
