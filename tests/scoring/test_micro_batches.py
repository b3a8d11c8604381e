from collections.abc import Callable
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfdistill.scoring import packed_batches
from selfdistill.scoring.batching import micro_batches as cheapest_batches

LENGTHS = st.lists(st.integers(1, 60), max_size=40)
BUDGETS = st.integers(1, 300)
PASS_TOKENS = 256


def micro_batches(lengths: list[int], token_budget: int) -> list[list[int]]:
    return cheapest_batches(lengths, token_budget, PASS_TOKENS)


BOTH = pytest.mark.parametrize("group", [micro_batches, packed_batches])
Grouping = Callable[[list[int], int], list[list[int]]]


@BOTH
@settings(deadline=None)
@given(lengths=LENGTHS, budget=BUDGETS)
def test_every_row_is_in_exactly_one_micro_batch(group: Grouping, lengths: list[int], budget: int) -> None:
    batches = group(lengths, budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert all(batches)


@settings(deadline=None)
@given(LENGTHS, BUDGETS)
def test_padded_micro_batches_stay_within_the_budget_unless_one_row_alone_exceeds_it(
    lengths: list[int], budget: int
) -> None:
    for batch in micro_batches(lengths, budget):
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= budget


def cost(lengths: list[int], batches: list[list[int]]) -> int:
    return sum(PASS_TOKENS + len(batch) * max(lengths[index] for index in batch) for batch in batches)


@given(st.lists(st.integers(1, 900), min_size=1, max_size=7), st.integers(1, 4000))
def test_no_other_grouping_of_the_sorted_rows_costs_less(lengths: list[int], budget: int) -> None:
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    groupings = []
    for cuts in product([False, True], repeat=len(order) - 1):
        batches = [[order[0]]]
        for index, cut in zip(order[1:], cuts, strict=True):
            if cut:
                batches.append([])
            batches[-1].append(index)
        if all(len(batch) == 1 or len(batch) * lengths[batch[0]] <= budget for batch in batches):
            groupings.append(batches)
    assert cost(lengths, micro_batches(lengths, budget)) == min(cost(lengths, batches) for batches in groupings)


def test_a_long_row_does_not_pad_many_short_ones_even_if_the_budget_would_hold_them() -> None:
    assert micro_batches([1000, *[100] * 8], token_budget=16_384) == [[0], [1, 2, 3, 4, 5, 6, 7, 8]]
    assert micro_batches([110, *[100] * 8], token_budget=16_384) == [[0, 1, 2, 3, 4, 5, 6, 7, 8]]
    assert cheapest_batches([110, *[100] * 8], 16_384, pass_tokens=30) == [[0], [1, 2, 3, 4, 5, 6, 7, 8]]


@settings(deadline=None)
@given(LENGTHS, BUDGETS)
def test_packed_micro_batches_hold_as_many_real_tokens_as_fit(lengths: list[int], budget: int) -> None:
    sums = [sum(lengths[index] for index in batch) for batch in packed_batches(lengths, budget)]
    batches = packed_batches(lengths, budget)
    assert all(len(batch) == 1 or total <= budget for batch, total in zip(batches, sums, strict=True))
    firsts = [lengths[batch[0]] for batch in batches[1:]]
    assert all(total + first > budget for total, first in zip(sums, firsts, strict=False))


@BOTH
@settings(deadline=None)
@given(lengths=LENGTHS, budget=BUDGETS)
def test_the_longest_rows_come_first(group: Grouping, lengths: list[int], budget: int) -> None:
    flat = [lengths[index] for batch in group(lengths, budget) for index in batch]
    assert flat == sorted(flat, reverse=True)


def test_a_row_longer_than_the_budget_gets_a_micro_batch_of_its_own() -> None:
    assert micro_batches([3, 50, 3], token_budget=10) == packed_batches([3, 50, 3], 10) == [[1], [0, 2]]


def test_rows_of_equal_length_keep_their_order() -> None:
    assert micro_batches([4, 4, 4, 4], token_budget=8) == packed_batches([4, 4, 4, 4], 8) == [[0, 1], [2, 3]]


def test_rows_that_are_not_padded_fill_the_room_beside_a_long_one() -> None:
    assert micro_batches([9, 3, 3, 3], token_budget=18) == [[0], [1, 2, 3]]
    assert packed_batches([9, 3, 3, 3], token_budget=18) == [[0, 1, 2, 3]]


@BOTH
def test_no_rows_make_no_micro_batches(group: Grouping) -> None:
    assert group([], 10) == []


@BOTH
@pytest.mark.parametrize("budget", [0, -1])
def test_a_budget_below_one_token_is_refused(group: Grouping, budget: int) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        group([3], budget)
