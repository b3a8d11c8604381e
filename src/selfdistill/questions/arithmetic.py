"""The embedded task: multi-step arithmetic of mixed difficulty, with worked solutions.

In: a split, a count and a seed. Out: rows with the columns ``prompt``, ``solution``, ``answer`` and ``level``, ready
for :func:`selfdistill.questions.loading.question_from_row`. A question has two to five terms and is worked from left to
right, one line per step:

    17+25-38+9        17+25=42
                      42-38=4
                      4+9=13
                      #### 13

Every running total lies in 1..99, so that a model of less than a million parameters can know each single step by heart;
what is left to learn is to take the steps. The split of a question is a property of its text: no seed and no count can
put one question into both.
"""

from __future__ import annotations

import hashlib
import random
from typing import Literal

from selfdistill.errors import DataError
from selfdistill.randomness import python_random

Split = Literal["train", "eval"]

FEWEST_TERMS = 2
MOST_TERMS = 5
LARGEST_TOTAL = 99
_EVAL_SHARE = 0.2


def arithmetic_rows(split: Split, count: int, seed: int = 0) -> list[dict[str, object]]:
    """Return ``count`` distinct questions of one split; a smaller count with the same seed gives a prefix of the rows.

    Columns: ``prompt`` (str), ``solution`` (str, ends in ``#### answer``), ``answer`` (str), ``level`` (int, number of
    terms).

    Raises:
        DataError: if the split is unknown or the count is negative.
    """
    if split not in ("train", "eval"):
        raise DataError(f"The arithmetic task has no split {split!r}; use 'train' or 'eval'.")
    if count < 0:
        raise DataError(f"The arithmetic task cannot make count={count} rows; use a count of 0 or more.")
    draws = python_random(seed, "arithmetic", split)
    prompts: dict[str, None] = {}  # a dict keeps the order of the draws
    while len(prompts) < count:
        prompt = _draw_expression(draws)
        if split_of(prompt) == split:
            prompts[prompt] = None
    return [_row(prompt) for prompt in prompts]


def split_of(prompt: str) -> Split:
    """Return the split that a question belongs to, decided by a hash of its text."""
    fraction = int.from_bytes(hashlib.blake2b(prompt.encode(), digest_size=4).digest(), "big") / 2**32
    return "eval" if fraction < _EVAL_SHARE else "train"


def worked_steps(prompt: str) -> list[str]:
    """Return the steps of a question from left to right, e.g. ``["17+25=42", "42-38=4"]`` for ``17+25-38``."""
    first, *rest = prompt.replace("-", "+-").split("+")
    total, steps = int(first), []
    for term in map(int, rest):
        steps.append(f"{total}{term:+d}={total + term}")
        total += term
    return steps


def _row(prompt: str) -> dict[str, object]:
    steps = worked_steps(prompt)
    answer = steps[-1].split("=")[1]
    solution = "\n".join([*steps, f"#### {answer}"])
    return {"prompt": prompt, "solution": solution, "answer": answer, "level": len(steps) + 1}


def _draw_expression(draws: random.Random) -> str:
    total = _draw_number(draws, LARGEST_TOTAL)
    expression = str(total)
    for _ in range(draws.randint(FEWEST_TERMS, MOST_TERMS) - 1):
        room = {"+": LARGEST_TOTAL - total, "-": total - 1}
        sign = draws.choice([sign for sign, most in room.items() if most > 0])
        term = _draw_number(draws, room[sign])
        total += term if sign == "+" else -term
        expression += f"{sign}{term}"
    return expression


def _draw_number(draws: random.Random, most: int) -> int:
    """Draw from 1..most, one digit and two digits equally likely where both are possible."""
    if most < 10 or draws.random() < 0.5:
        return draws.randint(1, min(9, most))
    return draws.randint(10, most)
