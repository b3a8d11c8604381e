import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfdistill.scoring import micro_batches

LENGTHS = st.lists(st.integers(1, 60), max_size=40)
BUDGETS = st.integers(1, 300)


@settings(deadline=None)
@given(LENGTHS, BUDGETS)
def test_every_row_is_in_exactly_one_micro_batch(lengths: list[int], budget: int) -> None:
    batches = micro_batches(lengths, budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert all(batches)


@settings(deadline=None)
@given(LENGTHS, BUDGETS)
def test_padded_micro_batches_stay_within_the_budget_unless_one_row_alone_exceeds_it(
    lengths: list[int], budget: int
) -> None:
    for batch in micro_batches(lengths, budget):
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= budget


@settings(deadline=None)
@given(LENGTHS, BUDGETS)
def test_the_longest_rows_come_first(lengths: list[int], budget: int) -> None:
    flat = [lengths[index] for batch in micro_batches(lengths, budget) for index in batch]
    assert flat == sorted(flat, reverse=True)


def test_a_row_longer_than_the_budget_gets_a_micro_batch_of_its_own() -> None:
    assert micro_batches([3, 50, 3], token_budget=10) == [[1], [0, 2]]


def test_rows_of_equal_length_keep_their_order() -> None:
    assert micro_batches([4, 4, 4, 4], token_budget=8) == [[0, 1], [2, 3]]


def test_no_rows_make_no_micro_batches() -> None:
    assert micro_batches([], token_budget=10) == []


@pytest.mark.parametrize("budget", [0, -1])
def test_a_budget_below_one_token_is_refused(budget: int) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        micro_batches([3], budget)
