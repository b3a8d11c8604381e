"""The last integer of a response: for real models that state a result in their own words.

In: responses and questions with an integer ``answer``. Out: verdicts with reward 0 or 1. Lenient on purpose: a small
model that says "So 6 + 7 = 13." has answered. A response that goes on talking about another number has not.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from selfdistill.verifiers.arithmetic import ArithmeticVerifier, integer_answer
from selfdistill.verifiers.extraction import canonical_integer, shorten, spoken
from selfdistill.verifiers.verdict import Verdict

if TYPE_CHECKING:
    from selfdistill.questions.question import Question

_INTEGER = re.compile(r"(?<![\w.,])-?\d{1,18}(?:,\d{3})*(?![\w]|[.,]\d)")


class LastIntegerVerifier(ArithmeticVerifier):
    """The last integer that stands by itself in the response must equal the reference answer."""

    def verify(self, questions: Sequence[Question], responses: Sequence[str]) -> list[Verdict]:
        """Return one verdict per response, in order. Raises :class:`DataError` for an answer that is not an integer."""
        return [
            _verdict(integer_answer(question), response)
            for question, response in zip(questions, responses, strict=True)
        ]


def _verdict(gold: str, response: str) -> Verdict:
    numbers = _INTEGER.findall(spoken(response))
    answer = canonical_integer(numbers[-1]) if numbers else None
    if answer is None:
        return Verdict(reward=0.0, success=False, feedback="The response states no number.")
    if answer != gold:
        return Verdict(
            reward=0.0, success=False, answer=answer, feedback=f"The final answer {shorten(answer)} is wrong."
        )
    return Verdict(reward=1.0, success=True, answer=answer)
