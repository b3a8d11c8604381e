r"""Mathematical answers, compared by meaning: ``\frac{1}{2}`` is ``0.5``.

In: responses and questions with an ``answer`` (or a ``solution`` that states one). Out: verdicts with reward 0 or 1.
The final answer is the last ``\boxed{}``, else a number after the last ``####`` (:mod:`.extraction`); math-verify
compares it with the reference, reference first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from selfdistill.errors import DataError, SelfDistillError
from selfdistill.verifiers.equivalence import equivalence_classes
from selfdistill.verifiers.extraction import canonical_integer, final_answer, reference_answer, shorten
from selfdistill.verifiers.verdict import Verdict
from selfdistill.verifiers.worker import BoundedWorker, WorkerFault

if TYPE_CHECKING:
    from selfdistill.questions.question import Question

_CACHE_ENTRIES = 50_000


class MathsVerifier:
    """Compares final answers with math-verify in a child process that is killed when one comparison exceeds its limits.

    A comparison that fails that way counts as a wrong answer, and the feedback says so. Integers and equal strings are
    decided without the child. May be called from any thread.
    """

    requires: tuple[str, ...] = ("answer",)

    def __init__(self, timeout: float = 5.0, memory_mib: int = 1024) -> None:
        """``timeout``: seconds per comparison. ``memory_mib``: address space of the child, MiB. Starts nothing yet."""
        if timeout <= 0:
            raise SelfDistillError(
                f"timeout={timeout} of the maths verifier must be positive: seconds per comparison, e.g. 5"
            )
        self._worker = BoundedWorker("selfdistill.verifiers.maths_worker:equal", timeout=timeout, memory_mib=memory_mib)
        self._known: dict[tuple[str, str], bool | str] = {}
        self._hostile: set[str] = set()
        self.faults = 0
        """Comparisons so far that exceeded a limit or crashed."""

    def verify(self, questions: Sequence[Question], responses: Sequence[str]) -> list[Verdict]:
        """Return one verdict per response, in order. Raises :class:`DataError` for a question without an answer."""
        return [
            self._verdict(_gold(question), final_answer(response))
            for question, response in zip(questions, responses, strict=True)
        ]

    def equivalent(self, first: str, second: str) -> bool:
        """Say whether two parsed answers mean the same, in either order.

        An answer that exceeded a limit before is equal to itself only.
        """
        if first.strip() == second.strip():
            return True
        if self._hostile.intersection((first.strip(), second.strip())):
            return False
        outcome = self._compare(first, second)
        return outcome is True or (outcome is False and self._compare(second, first) is True)

    def classes(self, answers: Sequence[str | None]) -> list[int]:
        """Return the equivalence class of each answer (:func:`equivalence_classes`)."""
        return equivalence_classes(answers, self.equivalent)

    def close(self) -> None:
        """End the child process; a later call starts another. Happens at exit by itself."""
        self._worker.close()

    def _verdict(self, gold: str, answer: str | None) -> Verdict:
        if answer is None:
            return Verdict(
                reward=0.0,
                success=False,
                feedback="No final answer was found: neither \\boxed{...} nor a (short) number after ####.",
            )
        if _equates_numbers(answer) and "=" not in gold:
            return Verdict(
                reward=0.0, success=False, answer=answer, feedback="The final answer is an equation of two numbers."
            )
        outcome = self._compare(gold, answer)
        if outcome is True:
            return Verdict(reward=1.0, success=True, answer=answer)
        if isinstance(outcome, str):
            self._hostile.add(answer.strip())
            feedback = f"The final answer {shorten(answer)} could not be checked ({outcome}); it counts as wrong."
        else:
            feedback = f"The final answer {shorten(answer)} is wrong."
        return Verdict(reward=0.0, success=False, answer=answer, feedback=feedback)

    def _compare(self, gold: str, answer: str) -> bool | str:
        """Return whether they are equal, or why that could not be decided. Nothing is paid for twice."""
        key = (gold.strip(), answer.strip())
        if key[0] == key[1]:
            return True
        whole = canonical_integer(key[0]), canonical_integer(key[1])
        if None not in whole:
            return whole[0] == whole[1]
        if key not in self._known:
            if len(self._known) >= _CACHE_ENTRIES:
                self._known.clear()
            try:
                self._known[key] = bool(self._worker.call(gold=key[0], answer=key[1]))
            except WorkerFault as fault:
                self.faults += 1
                self._known[key] = str(fault)
        return self._known[key]


def _equates_numbers(answer: str) -> bool:
    """Say whether an answer is like ``5=12``: math-verify reads the right-hand side alone and can be fooled by it."""
    left, equals, _ = answer.partition("=")
    return bool(equals) and canonical_integer(left) is not None


def _gold(question: Question) -> str:
    gold = question.answer
    if gold is None and question.solution is not None:
        gold = reference_answer(question.solution)
    if gold is None or not gold.strip():
        raise DataError(
            f"question {question.id!r} states no answer, which the maths verifier needs: set data.columns.answer to "
            "the column that holds it, or give solutions that end with \\boxed{...} or '#### number'"
        )
    return gold
