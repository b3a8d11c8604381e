"""Group advantages (METHODS 7 and 9)."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from selfdistill.errors import DataError
from selfdistill.weighting import group_advantages

REWARDS = st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=16)
BINARY = st.lists(st.booleans(), min_size=1, max_size=16)


def test_the_test_vector() -> None:
    advantages = group_advantages([1, 0, 0, 0])
    assert advantages == pytest.approx([1.732051, -0.577350, -0.577350, -0.577350], abs=1e-6)
    assert sum(map(abs, advantages)) == pytest.approx(3.464102, abs=1e-6)
    assert group_advantages([1, 0, 0, 0], normalize=False) == pytest.approx([0.75, -0.25, -0.25, -0.25])


@given(REWARDS, st.booleans())
def test_advantages_have_mean_0(rewards: list[float], normalize: bool) -> None:
    assert math.fsum(group_advantages(rewards, normalize)) == pytest.approx(0, abs=1e-9 * 100 * len(rewards))


@given(REWARDS)
def test_normalised_advantages_have_population_std_1_or_are_0(rewards: list[float]) -> None:
    square = math.fsum(advantage**2 for advantage in group_advantages(rewards)) / len(rewards)
    assert square == pytest.approx(1) or square == 0


@given(BINARY)
def test_absolute_advantages_of_binary_rewards_sum_to_2_g_sqrt_p_1_minus_p(successes: list[bool]) -> None:
    rate = sum(successes) / len(successes)
    total = math.fsum(map(abs, group_advantages([float(success) for success in successes])))
    assert total == pytest.approx(2 * len(successes) * math.sqrt(rate * (1 - rate)))


@given(BINARY, st.floats(1e-6, 1e6))
def test_normalised_advantages_do_not_depend_on_the_rewards_scale(successes: list[bool], scale: float) -> None:
    scaled = group_advantages([scale * success for success in successes])
    assert scaled == pytest.approx(group_advantages([float(success) for success in successes]))


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("rewards", [[0.0] * 4, [1.0] * 3, [0.1 + 0.2, 0.3, 0.3], [0.3, float(np.float32(0.3))], [5.0]])
def test_equal_rewards_give_0_whatever_their_rounding(rewards: list[float], normalize: bool) -> None:
    assert group_advantages(rewards, normalize) == [0.0] * len(rewards)


def test_no_rewards_give_no_advantages() -> None:
    assert group_advantages([]) == []


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_reward_that_is_not_finite_is_named(bad: float) -> None:
    with pytest.raises(DataError, match=r"rewards\[1\] is"):
        group_advantages([0.0, bad])


def test_a_tensor_gives_a_tensor_and_other_sequences_a_list() -> None:
    advantages = group_advantages(torch.tensor([1, 0, 0, 0]))
    assert isinstance(advantages, torch.Tensor) and advantages.dtype == torch.float32
    assert advantages.tolist() == pytest.approx(group_advantages(np.array([1, 0, 0, 0])))
