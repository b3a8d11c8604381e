"""Weighting: which questions count, how much, and which objective each rollout goes to."""

from selfdistill.weighting.advantages import group_advantages
from selfdistill.weighting.parts import HardFilter, Paced, PassRate, Uniform
from selfdistill.weighting.pass_rate import (
    PassRateStatistics,
    hard_filter,
    paced_weights,
    pass_rate_statistics,
    pass_rate_weights,
)
from selfdistill.weighting.routing import EveryRow, FailuresToDistillation, Objective

__all__ = [
    "EveryRow",
    "FailuresToDistillation",
    "HardFilter",
    "Objective",
    "Paced",
    "PassRate",
    "PassRateStatistics",
    "Uniform",
    "group_advantages",
    "hard_filter",
    "paced_weights",
    "pass_rate_statistics",
    "pass_rate_weights",
]
