from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfdistill.errors import DataError
from selfdistill.evaluation import avg_at_k, maj_at_k, pass_at_k
from selfdistill.evaluation.metrics import pass_per_problem

results = st.lists(st.lists(st.booleans(), min_size=1, max_size=7), min_size=1, max_size=5)


@given(correct=results)
def test_avg_at_k_divides_by_the_samples_that_came_back(correct):
    assert avg_at_k(correct) == pytest.approx(sum(sum(own) / len(own) for own in correct) / len(correct))


def test_avg_at_k_weighs_problems_alike_when_fewer_samples_came_back_for_one():
    assert avg_at_k([[1, 1], [0, 0, 0, 1]]) == pytest.approx((1 + 0.25) / 2)


@settings(max_examples=60, deadline=None)
@given(correct=results, k=st.integers(1, 7))
def test_pass_at_k_is_the_share_of_k_subsets_with_a_right_sample(correct, k):
    if min(map(len, correct)) < k:
        with pytest.raises(DataError, match=f"pass@{k} needs at least {k} samples"):
            pass_at_k(correct, k)
        return
    shares = []
    for own in correct:
        subsets = list(combinations(own, k))
        shares.append(sum(any(subset) for subset in subsets) / len(subsets))
    assert pass_at_k(correct, k) == pytest.approx(sum(shares) / len(shares))


def test_pass_at_k_is_stable_for_many_samples():
    [value] = pass_per_problem([[1] + [0] * 9_999], 5_000)
    assert value == pytest.approx(0.5)
    [value] = pass_per_problem([[1] * 3 + [0] * 99_997], 10)
    assert value == pytest.approx(3e-4, rel=1e-3)


@given(correct=results)
def test_pass_at_1_is_avg_at_k(correct):
    assert pass_at_k(correct, 1) == pytest.approx(avg_at_k(correct))


@given(
    st.lists(
        st.lists(st.tuples(st.sampled_from(["1", "2", "3", None]), st.none()), min_size=1, max_size=6),
        min_size=1,
        max_size=4,
    )
)
def test_maj_at_k_agrees_with_counting_by_hand(problems):
    answers = [[answer for answer, _ in own] for own in problems]
    correct = [[answer == "1" for answer in own] for own in answers]
    right = 0
    for own in answers:
        seen = [answer for answer in own if answer is not None]
        ranked = sorted(set(seen), key=lambda answer: (-seen.count(answer), seen.index(answer)))
        right += ranked[:1] == ["1"]
    assert maj_at_k(answers, correct) == pytest.approx(right / len(answers))


def test_ties_go_to_the_answer_seen_first():
    assert maj_at_k([["2", "1", "1", "2"]], [[0, 1, 1, 0]]) == 0
    assert maj_at_k([["1", "2", "2", "1"]], [[1, 0, 0, 1]]) == 1


def test_missing_answers_have_no_vote_unless_there_is_no_other():
    assert maj_at_k([[None, None, None, "1"]], [[0, 0, 0, 1]]) == 1
    assert maj_at_k([[None, None]], [[0, 0]]) == 0


def test_equivalent_answers_vote_together():
    answers, correct = [["3", "1/2", "3", "0.5", None, "2/4"]], [[0, 1, 0, 1, 0, 1]]

    def equivalent(first: str, second: str) -> bool:
        def value(text: str) -> float:
            numerator, _, denominator = text.partition("/")
            return float(numerator) / float(denominator or 1)

        return value(first) == value(second)

    assert maj_at_k(answers, correct) == 0
    assert maj_at_k(answers, correct, equivalent=equivalent) == 1


@pytest.mark.parametrize(
    "metric", [avg_at_k, lambda c: pass_at_k(c, 1), lambda c: maj_at_k([["1"] * len(own) for own in c], c)]
)
@pytest.mark.parametrize(
    ("correct", "message"),
    [([], "no problems"), ([[1], []], "problem 1 has no samples"), ([[0.5]], "right .1. or wrong .0.")],
)
def test_metrics_refuse_what_they_cannot_average(metric, correct, message):
    with pytest.raises(DataError, match=message):
        metric(correct)


def test_k_below_one_and_unpaired_answers_are_refused():
    with pytest.raises(DataError, match="at least 1, not 0"):
        pass_at_k([[1]], 0)
    with pytest.raises(DataError, match="one answer"):
        maj_at_k([["1", "2"]], [[1]])
