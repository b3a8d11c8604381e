"""From measured batches to the time of a whole step.

What is assumed, all of it: sampling costs a constant per decoding step (reading the weights) and one per token drawn;
the update costs a constant per micro-batch and one per position, where a position with gradient counts three times one
without (four times under gradient checkpointing); both constants are fitted to the batches that were measured.
Verification grows with the rows, the optimiser's step with nothing. Attention's square is left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from selfdistill.planning.measure import Measurement
from selfdistill.planning.memory import side_by_side
from selfdistill.planning.setup import Setup

SPREAD = 2.0
"""Batches must differ in size by this factor before two costs are told apart."""


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of a step on a machine like this one with one process."""

    sampling: float | None
    """None: another engine draws, which is not measured."""
    verifying: float
    update: float
    """Of the rows that are expected to have signal."""
    optimizer: float
    at_most: float
    """If every response uses up its budget and every row has signal."""
    tokens_per_response: float
    """What is assumed of the responses."""
    share: float
    """Of the rows that are forwarded."""
    is_whole: bool
    """Whether a whole step was measured, so that nothing is extrapolated."""

    @property
    def total(self) -> float:
        """Of the step; without sampling where that is not measured."""
        return (self.sampling or 0.0) + self.verifying + self.update + self.optimizer


def step_time(setup: Setup, batches: Sequence[Measurement]) -> StepTime:
    """Extrapolate measured batches, the largest last, to the recipe's step."""
    last = batches[-1]
    reached = last.new_tokens >= setup.lengths.response
    is_whole = last.rows == setup.rows and (reached or not setup.samples)
    own = last.scored_tokens / max(1, last.scored_rows)
    budget = float(setup.lengths.response) if setup.samples else own
    mean = (last.drawn / last.rows if reached else budget) if setup.samples else own
    drawn_here = setup.engine == "transformers" or not setup.samples
    sampling = [_sampling(setup, batches, length) if drawn_here else 0.0 for length in (mean, budget)]
    update = [_update(setup, batches, length) for length in (mean, budget)]
    if is_whole:
        sampling[0], update[0] = last.sampling if drawn_here else 0.0, last.update
    verifying, optimizer = last.verifying * setup.rows / last.rows, last.optimizer * setup.updates_per_batch
    return StepTime(
        sampling=sampling[0] if drawn_here else None,
        verifying=verifying,
        update=update[0] * last.informative,
        optimizer=optimizer,
        at_most=max(sampling) + verifying + max(update) + optimizer,
        tokens_per_response=mean,
        share=last.informative,
        is_whole=is_whole,
    )


def _sampling(setup: Setup, batches: Sequence[Measurement], length: float) -> float:
    """Return the seconds of drawing all rows, ``length`` tokens each."""
    if not setup.samples:
        return 0.0
    step, token = fitted([(one.longest, one.drawn, one.sampling) for one in batches])
    held, _ = side_by_side(setup, setup.rows, setup.lengths.response)
    steps = max(length, batches[-1].longest) * math.ceil(setup.rows / held)
    return step * steps + token * setup.rows * length


def _update(setup: Setup, batches: Sequence[Measurement], length: float) -> float:
    """Return the seconds of scoring all rows with responses of ``length`` tokens, with gradients."""
    weight, last = 4 if setup.gradient_checkpointing else 3, batches[-1]
    passes = max(1, setup.teacher_passes)

    def work(one: Measurement) -> int:
        return weight * one.student + passes * one.teacher

    def micro_batches(positions: float) -> int:
        return max(1, math.ceil(positions / setup.micro_batch_tokens))

    each, position = fitted([(micro_batches(one.student), work(one), one.update) for one in batches])
    rows = max(1, last.scored_rows)
    longer = length - last.scored_tokens / rows
    sides = weight + (passes if last.teacher else 0)
    read = setup.rows * (last.student / rows + longer)
    return each * micro_batches(read) + position * setup.rows * (work(last) / rows + longer * sides)


def fitted(points: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """Return a, b >= 0 such that a x + b y is near t for points (x, y, t), by least squares of relative errors.

    With one point, or points that differ too little to tell, a is 0: everything is then taken to grow with y, which
    errs on the side of too long.
    """
    scaled = [(x / t, y / t) for x, y, t in points if t > 0 and y > 0]
    xx, xy, yy = (sum(one[i] * one[j] for one in scaled) for i, j in ((0, 0), (0, 1), (1, 1)))
    x, y = (sum(one[i] for one in scaled) for i in (0, 1))
    alone = (0.0, y / yy if yy else 0.0)
    determinant = xx * yy - xy * xy
    sizes = [y for _, y, t in points if t > 0 and y > 0]
    if len(scaled) < 2 or max(sizes) < SPREAD * min(sizes) or determinant <= 1e-9 * xx * yy:
        return alone
    a, b = (x * yy - y * xy) / determinant, (y * xx - x * xy) / determinant
    return (a, b) if a >= 0 and b >= 0 else alone
