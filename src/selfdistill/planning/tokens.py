"""Tokens of a step: drawn at most, and read by student and teacher. A pure function of a :class:`Setup`."""

from __future__ import annotations

from dataclasses import dataclass

from selfdistill.contexts.hindsight import SiblingSuccess
from selfdistill.planning.setup import Setup
from selfdistill.training.recipe import Recipe
from selfdistill.weighting.parts import HardFilter, PassRate
from selfdistill.weighting.routing import EveryRow


@dataclass(frozen=True, slots=True)
class Tokens:
    """Per step, of all processes; positions are those of forward passes, prompts included."""

    rows: int
    sampled: int
    """Response tokens that are drawn, if every response uses up its budget; 0: nothing is drawn."""
    student: int
    """Positions that the student reads with gradient, if every row has signal and no prompt is shared."""
    teacher: int
    """Positions that the teacher reads; 0: there is none."""
    scored: int
    """Response tokens that are compared."""
    forwarded: str
    """Which share of the rows is forwarded, as far as it can be said before training."""


def tokens_of(setup: Setup, recipe: Recipe) -> Tokens:
    """Return the tokens of a step, at most: rows without signal are drawn but read by neither side."""
    rows = setup.rows
    return Tokens(
        rows=rows,
        sampled=rows * setup.lengths.response if setup.samples else 0,
        student=rows * setup.student_row,
        teacher=rows * setup.teacher_row * setup.teacher_passes,
        scored=rows * setup.lengths.response,
        forwarded=_forwarded(recipe),
    )


def forwarded_share(pass_rate: float, group_size: int) -> float:
    """Return the probability that a question's group holds a success and a failure: 1 - p^G - (1 - p)^G."""
    return 1 - pass_rate**group_size - (1 - pass_rate) ** group_size


def _forwarded(recipe: Recipe) -> str:
    """Say which rows have signal, by the method's parts (METHODS sections 5 to 7)."""
    method, size = recipe.method, recipe.method.source.group_size
    needs_both = isinstance(method.weighting, PassRate) or (
        method.policy is not None and isinstance(method.routing, EveryRow)
    )
    if needs_both:
        shares = ", ".join(f"{forwarded_share(rate, size):.0%} at p={rate:g}" for rate in (0.1, 0.5, 0.9))
        return f"questions with a success and a failure: {shares}"
    if isinstance(method.weighting, HardFilter):
        return "questions whose pass rate lies within the filter"
    if isinstance(method.context, SiblingSuccess):
        return "rows that have a sibling's success or feedback to be shown"
    return "all rows"
