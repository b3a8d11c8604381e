"""Group advantages (GRPO, arXiv 2402.03300; METHODS 7).

In: the rewards of one question's rollouts. Out: A = (r - mean) / std with the POPULATION standard deviation, or A = r -
mean. For binary rewards sum |A| = 2 G sqrt(p (1-p)), which is where SC-SDPO's alpha = 0.5 comes from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import overload

from jaxtyping import Float
from torch import Tensor

from selfdistill.errors import DataError
from selfdistill.weighting.pass_rate import floats, like

EQUAL_REWARDS = 1e-6
"""Rewards that differ by less than this share of the largest are equal: the difference is float32 rounding, and must
not be blown up to +-1."""


@overload
def group_advantages(rewards: Float[Tensor, " G"], normalize: bool = True) -> Float[Tensor, " G"]: ...
@overload
def group_advantages(rewards: Sequence[float], normalize: bool = True) -> list[float]: ...
def group_advantages(rewards: Sequence[float] | Tensor, normalize: bool = True) -> list[float] | Tensor:
    """Return one advantage per rollout; all 0 if the rewards are equal. A tensor gives a tensor, all else a list.

    Raises:
        DataError: if a reward is not finite.
    """
    values = floats("rewards", rewards)
    for index, value in enumerate(values):
        if not math.isfinite(value):
            raise DataError(
                f"rewards[{index}] is {value}: a reward has to be finite; check the verifier or reward function"
            )
    if not values or max(values) - min(values) <= EQUAL_REWARDS * max(map(abs, values)):
        return like(rewards, [0.0] * len(values))
    mean = math.fsum(values) / len(values)
    centred = [value - mean for value in values]
    if not normalize:
        return like(rewards, centred)
    # Scaled before squaring, so that tiny or huge rewards neither underflow nor overflow.
    largest = max(map(abs, centred))
    std = largest * math.sqrt(math.fsum((value / largest) ** 2 for value in centred) / len(centred))
    return like(rewards, [value / std for value in centred])
