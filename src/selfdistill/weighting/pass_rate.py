"""Question weights from pass rates (SC-SDPO, arXiv 2605.27765; METHODS 6).

In: pass rates p = k/G, successes over rollouts, one per question. Out: one weight per question.

    SC-SDPO      w = (p (1-p))^alpha,  S = {w > 0},  w_bar = w / mean_S(w) on S, else 0
    PACED        w = p^a (1-p)^b / its mean over the data set                              (arXiv 2603.11178)
    hard filter  w = 1 if low <= p <= high, else 0

SC-SDPO's mean runs over the GLOBAL batch of every step; PACED's weights are computed once, before training, and frozen.
Any sequence of numbers will do; a torch tensor gives a tensor of the same device, everything else a list.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import torch
from jaxtyping import Float
from torch import Tensor

from selfdistill.errors import DataError, RecipeError


@dataclass(frozen=True, slots=True)
class PassRateStatistics:
    """What a batch's pass rates look like."""

    informative_share: float
    """|S|/M: share of questions with 0 < p < 1; 0 for an empty batch."""
    mean: float
    """Mean pass rate; 0 for an empty batch."""
    histogram: tuple[int, ...]
    """Number of questions with k = 0 .. G successes."""


@overload
def pass_rate_weights(pass_rates: Float[Tensor, " M"], alpha: float = 0.5) -> Float[Tensor, " M"]: ...
@overload
def pass_rate_weights(pass_rates: Sequence[float], alpha: float = 0.5) -> list[float]: ...
def pass_rate_weights(pass_rates: Sequence[float] | Tensor, alpha: float = 0.5) -> list[float] | Tensor:
    """Return SC-SDPO's w_bar: mean 1 over the informative questions, 0 for those with p in {0, 1}; alpha 0 only masks.

    Raises:
        DataError: if a pass rate is not in [0, 1].
        RecipeError: if alpha is negative or not finite.
    """
    rates = checked_pass_rates(pass_rates)
    alpha = _exponent("alpha", alpha)
    raw = [(rate * (1.0 - rate)) ** alpha if 0.0 < rate < 1.0 else 0.0 for rate in rates]
    return like(pass_rates, _divide_by_mean(raw, sum(weight > 0.0 for weight in raw)))


@overload
def paced_weights(pass_rates: Float[Tensor, " M"], a: float = 1.0, b: float = 1.0) -> Float[Tensor, " M"]: ...
@overload
def paced_weights(pass_rates: Sequence[float], a: float = 1.0, b: float = 1.0) -> list[float]: ...
def paced_weights(pass_rates: Sequence[float] | Tensor, a: float = 1.0, b: float = 1.0) -> list[float] | Tensor:
    """Return PACED's weights p^a (1-p)^b of a whole data set over their mean on ALL its questions; all 0 if each is 0.

    Raises:
        DataError: if a pass rate is not in [0, 1].
        RecipeError: if an exponent is negative or not finite.
    """
    a, b = _exponent("a", a), _exponent("b", b)
    raw = [rate**a * (1.0 - rate) ** b for rate in checked_pass_rates(pass_rates)]
    return like(pass_rates, _divide_by_mean(raw, len(raw)))


@overload
def hard_filter(pass_rates: Float[Tensor, " M"], low: float = 0.2, high: float = 0.8) -> Float[Tensor, " M"]: ...
@overload
def hard_filter(pass_rates: Sequence[float], low: float = 0.2, high: float = 0.8) -> list[float]: ...
def hard_filter(pass_rates: Sequence[float] | Tensor, low: float = 0.2, high: float = 0.8) -> list[float] | Tensor:
    """Return 1 where low <= p <= high, else 0; not normalised.

    Raises:
        DataError: if a pass rate is not in [0, 1].
        RecipeError: unless 0 <= low <= high <= 1.
    """
    if not 0.0 <= low <= high <= 1.0:
        raise RecipeError(f"low is {low:g} and high is {high:g}: choose 0 <= low <= high <= 1")
    return like(pass_rates, [float(low <= rate <= high) for rate in checked_pass_rates(pass_rates)])


def pass_rate_statistics(pass_rates: Sequence[float] | Tensor, group_size: int) -> PassRateStatistics:
    """Return the informative share, mean and histogram of pass rates that are multiples of 1 / ``group_size``.

    Raises:
        DataError: if a pass rate is not in [0, 1] or not such a multiple.
    """
    rates = checked_pass_rates(pass_rates)
    histogram = [0] * (group_size + 1)
    for index, rate in enumerate(rates):
        successes = round(rate * group_size)
        if abs(rate * group_size - successes) > 1e-3:
            raise DataError(f"pass_rates[{index}] is {rate:g}, no multiple of 1/{group_size}: give its own group size")
        histogram[successes] += 1
    count = max(1, len(rates))
    return PassRateStatistics(
        sum(0.0 < rate < 1.0 for rate in rates) / count, math.fsum(rates) / count, tuple(histogram)
    )


def checked_pass_rates(pass_rates: Sequence[float] | Tensor) -> list[float]:
    """Return the pass rates as floats.

    Raises:
        DataError: naming the first that is not a number in [0, 1].
    """
    rates = floats("pass_rates", pass_rates)
    for index, rate in enumerate(rates):
        if not 0.0 <= rate <= 1.0:
            raise DataError(
                f"pass_rates[{index}] is {rate:g}: a pass rate is successes divided by rollouts, from 0 to 1"
            )
    return rates


def floats(name: str, values: Sequence[float] | Tensor) -> list[float]:
    """Return a one-dimensional sequence, array or tensor as a list of floats.

    Raises:
        DataError: if it has another shape or holds something else.
    """
    try:
        return [float(value) for value in (values.tolist() if isinstance(values, Tensor) else values)]
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} is not a flat sequence of numbers ({error}): give one number per entry") from error


def like(given: Sequence[float] | Tensor, values: list[float]) -> list[float] | Tensor:
    """Return ``values`` as a tensor if ``given`` is one: on its device, float64 if it is float64, else float32."""
    if not isinstance(given, Tensor):
        return values
    return torch.tensor(
        values, dtype=torch.float64 if given.dtype == torch.float64 else torch.float32, device=given.device
    )


def _divide_by_mean(weights: list[float], count: int) -> list[float]:
    total = math.fsum(weights)
    return [weight * count / total for weight in weights] if total > 0.0 else [0.0] * len(weights)


def _exponent(name: str, value: float) -> float:
    if not (math.isfinite(value) and value >= 0.0):
        raise RecipeError(f"{name} is {value:g}: choose a finite exponent of at least 0")
    return float(value)
