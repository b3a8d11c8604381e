"""Equivalence classes of answers, for majority votes: ``1/2`` and ``0.5`` are one candidate, not two.

In: answers (None where none was parsed) and a relation. Out: one class number per answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

NO_ANSWER = -1
"""Class of every missing answer. It is not a candidate of a vote."""


def equivalence_classes(
    answers: Sequence[str | None], equivalent: Callable[[str, str], bool], *, max_comparisons: int = 10_000
) -> list[int]:
    """Return a class number per answer, numbered by first appearance; :data:`NO_ANSWER` for None.

    An answer joins the first class whose representative (its first member) it is equivalent to; equal strings (white
    space aside) are never compared. Once ``max_comparisons`` are spent, every new string is a class of its own, so that
    a hostile batch has a bounded cost.
    """
    representatives: list[str] = []
    class_of: dict[str, int] = {}
    spent = 0
    classes = []
    for answer in answers:
        if answer is None:
            classes.append(NO_ANSWER)
            continue
        text = answer.strip()
        if text not in class_of:
            found = len(representatives)
            for number, representative in enumerate(representatives):
                if spent >= max_comparisons:
                    break
                spent += 1
                if equivalent(representative, text):
                    found = number
                    break
            if found == len(representatives):
                representatives.append(text)
            class_of[text] = found
        classes.append(class_of[text])
    return classes
