"""Which seeds become one request."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfdistill.rollouts.request_groups import Group, grouped


def test_consecutive_seeds_are_one_request() -> None:
    assert grouped([[5, 6, 7], [9]], 8) == [Group(0, 0, 5, 3), Group(1, 0, 9, 1)]


def test_a_gap_a_repetition_or_a_step_back_starts_another() -> None:
    assert [group.count for group in grouped([[1, 2, 4, 4, 3]], 8)] == [2, 1, 1, 1]


def test_no_request_is_larger_than_the_engine_allows() -> None:
    assert grouped([[0, 1, 2, 3, 4]], 2) == [Group(0, 0, 0, 2), Group(0, 2, 2, 2), Group(0, 4, 4, 1)]
    with pytest.raises(ValueError, match="at least one"):
        grouped([[0]], 0)


def test_a_prompt_without_seeds_asks_for_nothing() -> None:
    assert grouped([[], [3]], 4) == [Group(1, 0, 3, 1)]


@given(st.lists(st.lists(st.integers(0, 6), max_size=8), max_size=5), st.integers(1, 4))
def test_the_requests_draw_every_seed_once_at_its_place(seeds, most) -> None:
    drawn = {
        (group.prompt, group.first + index): group.seed + index
        for group in grouped(seeds, most)
        for index in range(group.count)
    }
    assert drawn == {(prompt, place): seed for prompt, own in enumerate(seeds) for place, seed in enumerate(own)}
    assert sum(group.count for group in grouped(seeds, most)) == sum(map(len, seeds))
