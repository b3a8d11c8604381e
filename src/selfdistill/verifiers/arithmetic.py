"""Exact integer answers: ``... #### 80``.

In: responses and questions with an integer ``answer``. Out: verdicts with reward 0 or 1. Used by the embedded
arithmetic task; digits are compared as text, so no response, however long, costs more than linear time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from selfdistill.errors import DataError
from selfdistill.verifiers.extraction import MAX_ANSWER_CHARS, after_hashes, canonical_integer, shorten, spoken
from selfdistill.verifiers.verdict import Verdict

if TYPE_CHECKING:
    from selfdistill.questions.question import Question


class ArithmeticVerifier:
    """The integer after the last ``####`` must equal the reference answer.

    Spaces, thousands commas, a plus sign and leading zeros are tolerated; any other text on that line makes the answer
    unparseable.
    """

    requires: tuple[str, ...] = ("answer",)

    def verify(self, questions: Sequence[Question], responses: Sequence[str]) -> list[Verdict]:
        """Return one verdict per response, in order. Raises :class:`DataError` for an answer that is not an integer."""
        return [
            _verdict(integer_answer(question), response)
            for question, response in zip(questions, responses, strict=True)
        ]

    def equivalent(self, first: str, second: str) -> bool:
        """Say whether two parsed answers are the same integer."""
        one, other = canonical_integer(first), canonical_integer(second)
        return first.strip() == second.strip() if one is None or other is None else one == other


def integer_answer(question: Question) -> str:
    """Return the reference answer as digits. Raises :class:`DataError` if it is not an integer."""
    gold = canonical_integer(question.answer) if question.answer is not None else None
    if gold is None:
        raise DataError(
            f"question {question.id!r}: the answer {question.answer!r} is not an integer, which the arithmetic "
            "verifier needs; correct the row or use the maths verifier (data.task=maths)"
        )
    return gold


def _verdict(gold: str, response: str) -> Verdict:
    line = after_hashes(spoken(response))
    if line is None:
        return Verdict(reward=0.0, success=False, feedback="The answer line is missing.")
    answer = canonical_integer(line) if len(line) <= MAX_ANSWER_CHARS else None
    if answer is None:
        return Verdict(reward=0.0, success=False, feedback=f"The answer line {shorten(line)!r} is not an integer.")
    if answer != gold:
        return Verdict(
            reward=0.0, success=False, answer=answer, feedback=f"The final answer {shorten(answer)} is wrong."
        )
    return Verdict(reward=1.0, success=True, answer=answer)
