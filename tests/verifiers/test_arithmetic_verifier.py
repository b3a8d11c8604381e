import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfdistill.errors import DataError
from selfdistill.questions.question import Question
from selfdistill.verifiers import ArithmeticVerifier


def question(answer):
    return Question(id="q:0", messages=({"role": "user", "content": "40+40"},), answer=answer)


def verdict(answer, response):
    return ArithmeticVerifier().verify([question(answer)], [response])[0]


@pytest.mark.parametrize("response", ["#### 80", "40+40=80\n####80 \n", "#### 79\n#### 080", "#### +80"])
def test_the_right_integer_after_the_last_hashes_succeeds(response):
    result = verdict("80", response)
    assert (result.reward, result.success, result.answer, result.feedback) == (1.0, True, "80", None)


def test_thousands_commas_are_tolerated_on_both_sides():
    assert verdict("1,234", "#### 1234").success
    assert verdict("1234", "#### 1,234").success


def test_a_wrong_answer_is_named_without_giving_the_right_one_away():
    result = verdict("80", "#### 81")
    assert (result.reward, result.success, result.answer) == (0.0, False, "81")
    assert result.feedback == "The final answer 81 is wrong."
    assert not result.privileged


@pytest.mark.parametrize("response", ["", "80", "#### ", "<think>#### 80"])
def test_a_missing_answer_line_is_said_to_be_missing(response):
    result = verdict("80", response)
    assert (result.success, result.answer, result.feedback) == (False, None, "The answer line is missing.")


@pytest.mark.parametrize("response", ["#### 80.0", "#### 80 apples", "#### 8 0", "#### 40+40", "#### 8e1"])
def test_anything_but_an_integer_is_unparseable(response):
    result = verdict("80", response)
    assert (result.success, result.answer) == (False, None)
    assert "is not an integer" in result.feedback


def test_a_hundred_thousand_digits_cost_little_and_are_not_kept():
    result = verdict("80", "#### " + "1" * 100_000)
    assert not result.success
    assert len(result.feedback) < 200


@settings(deadline=None)
@given(st.integers(), st.integers())
def test_success_means_equality_of_integers(gold, given_answer):
    assert verdict(str(gold), f"#### {given_answer}").success == (gold == given_answer)


@settings(deadline=None)
@given(st.text())
def test_no_response_raises(response):
    assert isinstance(verdict("80", response).success, bool)


@pytest.mark.parametrize("answer", [None, "27.0", "x"])
def test_a_reference_that_is_no_integer_is_an_error_with_a_remedy(answer):
    with pytest.raises(DataError, match=r"'q:0'.*not an integer.*data\.task=maths"):
        verdict(answer, "#### 1")


def test_equivalence_ignores_the_form_of_the_integer():
    verifier = ArithmeticVerifier()
    assert verifier.equivalent("080", "80")
    assert not verifier.equivalent("80", "81")
