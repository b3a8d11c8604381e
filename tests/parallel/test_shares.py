"""Who draws what, and who trains on what."""

from __future__ import annotations

import pytest

from selfdistill.parallel.share import own_rows, own_siblings


@pytest.mark.parametrize("groups", ["whole", "split"])
@pytest.mark.parametrize(("questions", "siblings", "size"), [(5, 8, 3), (2, 3, 7), (1, 1, 4), (32, 8, 8)])
def test_every_response_is_drawn_by_exactly_one_process(groups, questions, siblings, size) -> None:
    drawn = [
        (question, sibling)
        for rank in range(size)
        for question, own in enumerate(own_siblings(questions, range(siblings), rank, size, groups))
        for sibling in own
    ]
    assert sorted(drawn) == [(question, sibling) for question in range(questions) for sibling in range(siblings)]


def test_a_whole_group_stays_on_one_process_and_a_split_one_does_not() -> None:
    assert own_siblings(3, range(4), 1, 2, "whole") == [[], [0, 1, 2, 3], []]
    assert own_siblings(3, range(4), 1, 2, "split") == [[1, 3], [1, 3], [1, 3]]


def test_few_questions_keep_all_processes_busy_if_groups_are_split() -> None:
    loads = [sum(map(len, own_siblings(2, range(8), rank, 8, "split"))) for rank in range(8)]
    assert loads == [2] * 8


@pytest.mark.parametrize("groups", ["whole", "split"])
@pytest.mark.parametrize("size", [1, 2, 3, 16])
def test_every_row_is_trained_on_by_exactly_one_process(groups, size) -> None:
    costs, families = [5, 3, 9, 1, 1, 7, 2, 100], [*"aabbccdd"]
    rows = [own_rows(costs, families, rank, size, groups) for rank in range(size)]
    assert sorted(row for own in rows for row in own) == list(range(8))


def test_rows_are_divided_by_their_cost() -> None:
    costs, families = [8, 1, 1, 1, 1, 1, 1, 1, 1], list(range(9))
    assert [sum(costs[row] for row in own_rows(costs, families, rank, 2, "whole")) for rank in range(2)] == [8, 8]


def test_rows_of_one_question_stay_together_unless_they_are_more_than_a_share() -> None:
    assert own_rows([1, 1, 1, 1], [*"aabb"], 0, 2, "whole") == [0, 1]
    assert own_rows([1, 1, 1, 1], [*"aaaa"], 0, 2, "whole") in ([0, 1], [2, 3])


def test_a_process_may_have_nothing_to_do() -> None:
    assert own_rows([4], ["a"], 1, 2, "whole") == []
    assert own_rows([], [], 0, 2, "whole") == []
