"""Responses that mention what only the teacher sees."""

import time

import pytest

from selfdistill.contexts import OMISSION_MARKER, HindsightTemplate, SolutionTemplate, mentions_reference


@pytest.mark.parametrize(
    "text",
    [
        "According to the reference solution, x = 3.",
        "The given solution starts with 17+25.",
        "This matches the PROVIDED\nsolution.",
        "As the solution above shows, it is 80.",
        "As shown in the solution, we add.",
        "I follow the partial solution.",
        "Using the hint, we find 4.",
        "The feedback says that line 3 fails.",
        "Given the feedback on my earlier attempt, I change the loop.",
        f"17+25=42 {OMISSION_MARKER}",
        "the reference answer is 5",
        SolutionTemplate().heading,
        HindsightTemplate().feedback_heading,
    ],
)
def test_mentions_of_a_reference_are_leaks(text: str) -> None:
    assert mentions_reference(text)


@pytest.mark.parametrize(
    "text",
    [
        "The solution is x = 3.",
        "The solution set is {1, 2}.",
        "So the solutions are 2 and 5, and a correct solution needs both.",
        "We are given solution A with pH 3 and the reference frame of the train.",
        "The given information says that 12 is even.",
        "Negative feedback on insulin secretion lowers it.",
        "Wait, my previous attempt was wrong. Let me try again.",
        "From the above equation we get y = 4.",
        "None of the provided answer choices fits.",
        "Hint to myself: none needed here",
        "17+25=42\n42+38=80\n#### 80",
        "",
    ],
)
def test_talk_about_the_problem_itself_is_not(text: str) -> None:
    assert not mentions_reference(text)


@pytest.mark.parametrize("unit", ["the given ", "feedback on the ", "[... omitted ", "the solution ", " ", "a"])
def test_long_responses_take_linear_time(unit: str) -> None:
    start = time.process_time()
    mentions_reference((unit * 100_000)[:100_000])
    assert time.process_time() - start < 2.0
