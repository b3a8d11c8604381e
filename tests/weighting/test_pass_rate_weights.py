"""Question weights from pass rates (METHODS 6)."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from selfdistill.errors import DataError, RecipeError
from selfdistill.weighting import (
    HardFilter,
    Paced,
    PassRate,
    Uniform,
    hard_filter,
    paced_weights,
    pass_rate_statistics,
    pass_rate_weights,
)

VECTOR = [0, 0.125, 0.5, 0.875, 1]
RATES = st.integers(1, 32).flatmap(
    lambda size: st.lists(st.integers(0, size).map(lambda k: k / size), min_size=1, max_size=40)
)
ALPHAS = st.floats(0, 4)


def test_the_published_family_gives_the_test_vector() -> None:
    assert pass_rate_weights(VECTOR) == pytest.approx([0, 0.854249, 1.291503, 0.854249, 0], abs=1e-6)
    assert pass_rate_weights(VECTOR, alpha=1) == pytest.approx([0, 0.7, 1.6, 0.7, 0])


def test_alpha_0_only_masks() -> None:
    assert pass_rate_weights(VECTOR, alpha=0) == [0, 1, 1, 1, 0]


@given(RATES, ALPHAS)
def test_weights_have_mean_1_over_the_informative_questions(rates: list[float], alpha: float) -> None:
    informative = [weight for weight in pass_rate_weights(rates, alpha) if weight > 0]
    assert len(informative) == sum(0 < rate < 1 for rate in rates)
    assert not informative or math.fsum(informative) / len(informative) == pytest.approx(1)


@given(RATES, ALPHAS)
def test_a_weight_is_0_if_and_only_if_all_or_no_rollouts_succeeded(rates: list[float], alpha: float) -> None:
    for rate, weight in zip(rates, pass_rate_weights(rates, alpha), strict=True):
        assert (weight == 0) is (rate in (0, 1))


@given(RATES, ALPHAS)
def test_successes_and_failures_are_symmetric(rates: list[float], alpha: float) -> None:
    mirrored = pass_rate_weights([1 - rate for rate in rates], alpha)
    assert pass_rate_weights(rates, alpha) == pytest.approx(mirrored, rel=1e-6)


@given(RATES, ALPHAS)
def test_all_right_and_all_wrong_questions_do_not_change_the_others(rates: list[float], alpha: float) -> None:
    assert pass_rate_weights([0.0, *rates, 1.0], alpha)[1:-1] == pytest.approx(pass_rate_weights(rates, alpha))


def test_a_batch_without_informative_questions_has_no_weight() -> None:
    assert pass_rate_weights([0.0, 1.0]) == [0.0, 0.0]
    assert pass_rate_weights([]) == []
    assert paced_weights([0.0, 1.0]) == [0.0, 0.0]


def test_paced_weights_are_divided_by_the_mean_over_the_whole_data_set() -> None:
    rates = [0.0, 0.25, 0.5, 1.0]
    assert paced_weights(rates) == pytest.approx([0, 1.714286, 2.285714, 0], abs=1e-6)
    assert math.fsum(paced_weights(rates, 2, 1)) == pytest.approx(4)
    assert paced_weights(rates, a=2, b=1)[1] / paced_weights(rates, a=2, b=1)[2] == pytest.approx(0.046875 / 0.125)


def test_the_hard_filter_keeps_both_ends() -> None:
    assert hard_filter([0.0, 0.1, 1 / 5, 0.5, 4 / 5, 0.9, 1.0]) == [0, 0, 1, 1, 1, 0, 0]


@pytest.mark.parametrize("function", [pass_rate_weights, paced_weights, hard_filter])
@pytest.mark.parametrize("bad", [-0.1, 1.5, math.nan])
def test_a_pass_rate_outside_0_to_1_is_named_with_its_index(function, bad: float) -> None:
    with pytest.raises(DataError, match=r"pass_rates\[1\] is"):
        function([0.5, bad])


def test_contradictory_settings_are_refused() -> None:
    with pytest.raises(RecipeError, match="alpha is -1"):
        pass_rate_weights([0.5], alpha=-1)
    with pytest.raises(RecipeError, match=r"low is 0\.9"):
        hard_filter([0.5], low=0.9, high=0.1)
    with pytest.raises(ValidationError, match=r"low is 0\.9 and high is 0\.1"):
        HardFilter(low=0.9, high=0.1)
    for part, wrong in ((PassRate, {"alpha": -1}), (PassRate, {"alfa": 1}), (Paced, {"rollouts": 0})):
        with pytest.raises(ValidationError):
            part(**wrong)


def test_a_tensor_gives_a_tensor_and_other_sequences_a_list() -> None:
    weights = pass_rate_weights(torch.tensor(VECTOR))
    assert isinstance(weights, torch.Tensor) and weights.dtype == torch.float32
    assert pass_rate_weights(torch.tensor(VECTOR, dtype=torch.float64)).dtype == torch.float64
    assert pass_rate_weights(np.array(VECTOR)) == pass_rate_weights(tuple(VECTOR)) == pass_rate_weights(VECTOR)
    with pytest.raises(DataError, match="pass_rates is not a flat sequence"):
        pass_rate_weights(torch.zeros(2, 2))


def test_statistics_count_questions_by_their_successes() -> None:
    statistics = pass_rate_statistics(VECTOR, group_size=8)
    assert statistics.informative_share == pytest.approx(0.6)
    assert statistics.mean == pytest.approx(0.5)
    assert statistics.histogram == (1, 1, 0, 0, 1, 0, 0, 1, 1)
    assert pass_rate_statistics([], 2).histogram == (0, 0, 0)
    with pytest.raises(DataError, match=r"no multiple of 1/4"):
        pass_rate_statistics([0.3], 4)


def test_parts_weigh_a_batch() -> None:
    ids = list("abcde")
    assert Uniform().weigh(VECTOR, ids, None) == [1] * 5
    assert PassRate().weigh(VECTOR, ids, None) == pass_rate_weights(VECTOR)
    assert PassRate(alpha=1).weigh(VECTOR, ids, None) == pass_rate_weights(VECTOR, 1)
    assert HardFilter().weigh(VECTOR, ids, None) == [0, 0, 1, 0, 0]
    assert [part.offline for part in (Uniform(), PassRate(), HardFilter(), Paced())] == [False, False, False, True]
    with pytest.raises(DataError, match="5 pass rates came with 2 question ids"):
        Uniform().weigh(VECTOR, ["a", "b"], None)


def test_paced_weights_are_frozen_at_the_pass_before_training() -> None:
    prior = {"a": 0.0, "b": 0.25, "c": 0.5, "d": 1.0}
    early = Paced().weigh([0.9, 0.1], ["c", "b"], prior)
    assert early == Paced().weigh([0.0, 0.5], ["c", "b"], prior) == pytest.approx([2.285714, 1.714286], abs=1e-6)


@pytest.mark.parametrize("prior", [None, {"b": 0.5}])
def test_a_question_without_a_prior_pass_rate_is_named(prior) -> None:
    with pytest.raises(DataError, match="question 'a' has no pass rate from before training"):
        Paced().weigh([0.5], ["a"], prior)
