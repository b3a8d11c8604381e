import pytest

from selfdistill.questions.question import Question
from selfdistill.verifiers import LastIntegerVerifier


def verdict(response: str, answer: str = "13"):
    return LastIntegerVerifier().verify([Question(id="q", messages=(), answer=answer)], [response])[0]


@pytest.mark.parametrize("response", ["13", "So 6 + 7 = 13.", "6 + 7 = 13\n#### 13", "It is **13**!", "6+7=13", "$13$"])
def test_the_last_integer_is_the_answer(response):
    assert verdict(response).success


@pytest.mark.parametrize("response", ["13, or rather 14", "13.5", "x13", "113", "13 apples and 2 pears"])
def test_another_last_number_is_wrong_or_none(response):
    assert not verdict(response).success


def test_thousands_commas_and_signs_are_read():
    assert verdict("about 1,234", "1234").success
    assert verdict("that makes -5", "-5").success


def test_a_response_without_a_number_says_so_without_the_answer():
    missing = verdict("no idea")
    assert missing.answer is None
    assert missing.feedback == "The response states no number."
    assert not missing.privileged


def test_thinking_does_not_count():
    assert verdict("<think>maybe 12</think>13").success
    assert verdict("13 <think>12").answer is None


def test_a_hundred_thousand_digits_cost_linear_time():
    assert not verdict("1" * 100_000).success
    assert not verdict("1," * 50_000).success
