"""Token weights: the papers' denominators, independent of how a batch is cut up."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfdistill.errors import SelfDistillError
from selfdistill.objectives import entropy_weights, token_weights, unnormalised_entropy_weights

LENGTHS, ROW_WEIGHTS, INFORMATIVE = [2, 4, 3], [1.0, 1.5, 1.0], [True, True, False]


@pytest.mark.parametrize(
    ("reduction", "over", "expected"),
    [
        ("sequence_mean", "all", [1 / 6, 1.5 / 12, 0]),
        ("sequence_mean", "informative", [1 / 4, 1.5 / 8, 0]),
        ("token_mean", "all", [1 / 9, 1.5 / 9, 0]),
        ("token_mean", "informative", [1 / 6, 1.5 / 6, 0]),
    ],
)
def test_each_reduction_has_the_denominator_that_its_name_says(reduction, over, expected):
    weights = token_weights(LENGTHS, ROW_WEIGHTS, INFORMATIVE, reduction=reduction, over=over)
    assert weights == pytest.approx(expected)


ROW = st.tuples(st.integers(0, 9), st.floats(0, 3), st.booleans())
NAMES = [(reduction, over) for reduction in ("sequence_mean", "token_mean") for over in ("all", "informative")]


@settings(max_examples=60, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=8), st.sampled_from(NAMES), st.randoms(use_true_random=False))
def test_the_loss_does_not_depend_on_order_or_micro_batches(rows, names, random):
    losses = [[random.uniform(-1, 2) for _ in range(row[0])] for row in rows]

    def total(order, cut):
        lengths, row_weights, informative = zip(*(rows[i] for i in order), strict=True)
        weights = token_weights(lengths, row_weights, informative, reduction=names[0], over=names[1])
        sums = [weight * sum(losses[i]) for i, weight in zip(order, weights, strict=True)]
        return sum(sums[:cut]) + sum(sums[cut:])  # two micro-batches, each a plain sum

    order = list(range(len(rows)))
    shuffled = random.sample(order, len(order))
    assert total(order, 0) == pytest.approx(total(shuffled, random.randrange(len(rows))), abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=8))
def test_a_constant_loss_of_one_over_informative_rows_has_the_mean_row_weight(rows):
    rows = [(length + 1, weight, signal) for length, weight, signal in rows]
    lengths, row_weights, informative = (list(column) for column in zip(*rows, strict=True))
    weights = token_weights(lengths, row_weights, informative, reduction="sequence_mean", over="informative")
    counted = [weight for weight, signal in zip(row_weights, informative, strict=True) if signal]
    total = sum(weight * length for weight, length in zip(weights, lengths, strict=True))
    assert total == pytest.approx(sum(counted) / len(counted) if counted else 0.0)


def test_a_batch_without_signal_weighs_nothing():
    for reduction, over in NAMES:
        assert token_weights([3, 4], [1, 1], [False, False], reduction=reduction, over=over) == [0, 0]
        assert token_weights([], [], [], reduction=reduction, over=over) == []
        assert token_weights([0], [1], [True], reduction=reduction, over=over) == [0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reduction": "sequence_sum"}, "did you mean 'sequence_mean'"),
        ({"over": "informativ"}, "did you mean 'informative'"),
        ({"row_weights": [1.0]}, "1 row_weights"),
    ],
)
def test_what_cannot_be_reduced_is_refused(change, message):
    given_rows = {"lengths": LENGTHS, "row_weights": ROW_WEIGHTS, "informative": INFORMATIVE}
    with pytest.raises(SelfDistillError, match=message):
        token_weights(**(given_rows | {"reduction": "token_mean", "over": "all"} | change))


def test_entropy_weights_favour_certain_teachers_and_average_one():
    entropies = torch.tensor([0.0, math.log(2), math.log(4)])
    weights = entropy_weights(entropies, 1.0)
    torch.testing.assert_close(weights, torch.tensor([1.0, 0.5, 0.25]) / (1.75 / 3))
    assert weights.mean().item() == pytest.approx(1.0)
    assert entropy_weights(entropies, 0.0).tolist() == [1, 1, 1]


def test_entropy_weights_of_a_micro_batch_use_the_mean_of_the_global_batch():
    entropies = torch.rand(10, generator=torch.Generator().manual_seed(0))
    mean = unnormalised_entropy_weights(entropies, 1.0).mean()
    parts = torch.cat([entropy_weights(part, 1.0, mean) for part in entropies.split(3)])
    torch.testing.assert_close(parts, entropy_weights(entropies, 1.0))


def test_no_distilled_tokens_have_no_entropy_weights():
    assert entropy_weights(torch.zeros(0), 1.0).shape == (0,)
