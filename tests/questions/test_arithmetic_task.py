"""The embedded task: right, worked, reproducible, and never the same question in both splits."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfdistill.errors import DataError
from selfdistill.questions.arithmetic import arithmetic_rows, split_of, worked_steps

SPLITS = ("train", "eval")


def _evaluate(expression: str) -> int:
    """Add up a signed sum without the task's own parser."""
    total, sign, digits = 0, 1, ""
    for character in expression + "+":
        if character.isdigit():
            digits += character
        else:
            total, sign, digits = total + sign * int(digits), 1 if character == "+" else -1, ""
    return total


@pytest.mark.parametrize("split", SPLITS)
@given(seed=st.integers(0, 2**32), count=st.integers(1, 40))
@settings(max_examples=20, deadline=None)
def test_every_row_is_a_right_sum_with_a_worked_solution(split, seed, count):
    for row in arithmetic_rows(split, count, seed):
        *steps, last = row["solution"].split("\n")
        assert row["answer"] == str(_evaluate(row["prompt"]))
        assert last == f"#### {row['answer']}"
        assert len(steps) == row["level"] - 1
        carried = None
        for step in steps:
            left, right = step.split("=")
            assert _evaluate(left) == int(right)
            assert 1 <= int(right) <= 99
            assert carried is None or left.startswith((f"{carried}+", f"{carried}-"))
            carried = right
        assert carried == row["answer"]


@given(
    seeds=st.tuples(st.integers(0, 99), st.integers(0, 99)), counts=st.tuples(st.integers(0, 200), st.integers(0, 200))
)
@settings(max_examples=20, deadline=None)
def test_the_splits_are_disjoint_for_every_pair_of_seeds_and_counts(seeds, counts):
    train, held_out = (
        {row["prompt"] for row in arithmetic_rows(*task)} for task in zip(SPLITS, counts, seeds, strict=True)
    )
    assert not train & held_out
    assert {split_of(prompt) for prompt in train} <= {"train"}
    assert {split_of(prompt) for prompt in held_out} <= {"eval"}


@pytest.mark.parametrize("split", SPLITS)
def test_no_question_repeats_within_a_split(split):
    prompts = [row["prompt"] for row in arithmetic_rows(split, 3000, seed=5)]
    assert len(set(prompts)) == len(prompts) == 3000


def test_the_same_seed_gives_the_same_rows_and_another_seed_gives_others():
    assert arithmetic_rows("train", 50, seed=3) == arithmetic_rows("train", 50, seed=3)
    assert arithmetic_rows("train", 50, seed=3) != arithmetic_rows("train", 50, seed=4)


def test_a_smaller_count_is_a_prefix_of_a_larger_one():
    assert arithmetic_rows("eval", 20) == arithmetic_rows("eval", 60)[:20]


def test_the_rows_mix_levels_signs_and_digits():
    rows = arithmetic_rows("train", 400)
    shares = {level: sum(row["level"] == level for row in rows) / len(rows) for level in (2, 3, 4, 5)}
    assert all(share > 0.15 for share in shares.values())
    assert sum(shares.values()) == pytest.approx(1)
    text = " ".join(row["prompt"] for row in rows)
    assert "+" in text and "-" in text


def test_the_steps_run_from_left_to_right():
    assert worked_steps("17+25-38+9") == ["17+25=42", "42-38=4", "4+9=13"]


def test_an_unknown_split_names_the_valid_ones():
    with pytest.raises(DataError, match=r"'test'.*'train' or 'eval'"):
        arithmetic_rows("test", 1)


def test_a_negative_count_is_refused():
    with pytest.raises(DataError, match="count=-1"):
        arithmetic_rows("train", -1)
