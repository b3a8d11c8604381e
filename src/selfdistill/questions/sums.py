"""Small sums in words: what SmolLM2-135M can sometimes do, and does better with the solution in view.

In: a split, a count and a seed. Out: rows with ``prompt``, ``solution``, ``answer`` and ``level``. Training and
held-out rows are disjoint for every seed and count, because a sum's own hash decides where it belongs.
"""

from __future__ import annotations

from selfdistill.errors import DataError
from selfdistill.questions.arithmetic import Split
from selfdistill.randomness import derive, python_random

LEVELS = (2, 3)
"""Terms of a sum."""
LARGEST = 9
HELD_OUT_SHARE = 5
"""One sum in so many is held out."""


def sum_rows(split: Split, count: int, seed: int = 0) -> list[dict[str, object]]:
    """Return ``count`` different sums of two or three one-digit numbers.

    Raises:
        DataError: the split does not have so many.
    """
    draws = python_random(seed, "sums", split)
    rows: dict[str, dict[str, object]] = {}
    for _ in range(200 * count):
        if len(rows) == count:
            return list(rows.values())
        terms = [draws.randint(1, LARGEST) for _ in range(draws.choice(LEVELS))]
        row = _row(terms)
        if split_of(terms) == split:
            rows.setdefault(str(row["prompt"]), row)
    if len(rows) == count:
        return list(rows.values())
    raise DataError(
        f"{count} different sums were asked for, but the {split} split has about {len(rows)}; ask for fewer"
    )


def split_of(terms: list[int]) -> Split:
    """Return the split that a sum belongs to, whatever the seed."""
    return "eval" if derive(0, "sums", *terms) % HELD_OUT_SHARE == 0 else "train"


def _row(terms: list[int]) -> dict[str, object]:
    expression = " + ".join(str(term) for term in terms)
    total, steps = terms[0], []
    for term in terms[1:]:
        steps.append(f"{total} + {term} = {total + term}")
        total += term
    solution = "\n".join([*steps, f"#### {total}"])
    return {"prompt": f"What is {expression}?", "solution": solution, "answer": str(total), "level": len(terms)}
