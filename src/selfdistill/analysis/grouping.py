"""Runs that differ in nothing but their seed become one series: a mean line with the seeds as its band.

In: runs. Out: :class:`Series` with a label each, and :class:`Band` objects: a metric's mean, minimum and maximum over
the seeds, step by step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from selfdistill.analysis.pages.page import visible
from selfdistill.analysis.run_data import RunData
from selfdistill.training.recipe import PLACE_MAY_CHANGE, differing_settings

Numbers = NDArray[np.float64]

SAME_TRAINING = ("train.seed", "train.evaluate_first", *PLACE_MAY_CHANGE)
"""Beginnings of the settings that may differ within a series: another seed, another place."""
SMOOTHED = 20
"""A line is smoothed over about one part in so many of its steps."""


@dataclass(frozen=True, eq=False)
class Series:
    """One training, with one run per seed."""

    label: str
    runs: tuple[RunData, ...]
    index: int
    """Place in the report, which decides colour, line style and marker."""

    @property
    def untrained(self) -> bool:
        """Whether it is the model as it was before: a study's base."""
        return all(run.untrained for run in self.runs)

    @property
    def legend(self) -> str:
        """Label with the number of seeds, if there are several."""
        if len(self.runs) == 1:
            return self.label
        seeds = {run.seed for run in self.runs}
        return f"{self.label} ({len(self.runs)} {'seeds' if len(seeds) == len(self.runs) else 'runs'})"

    def warned(self) -> dict[str, int]:
        """Return the first step of each kind of warning, by name."""
        steps: dict[str, int] = {}
        for run in self.runs:
            for warning in run.warnings:
                name, step = str(warning.get("name", "warning")), int(warning.get("step", 0))
                steps[name] = min(step, steps.get(name, step))
        return steps


@dataclass(frozen=True, slots=True)
class Band:
    """A metric over training: one value per step and, with several seeds, their extremes."""

    steps: Numbers
    mean: Numbers
    """Smoothed, then averaged over the seeds that have the step."""
    low: Numbers
    high: Numbers
    raw: Numbers
    """Averaged, not smoothed."""
    seeds: int


def legends(series: Sequence[Series]) -> list[tuple[int, str]]:
    """Return place and label of each series; with the number of seeds only where it is not the same for all."""
    alike = len({len(one.runs) for one in series}) == 1
    return [(one.index, one.label if alike else one.legend) for one in series]


def group_runs(runs: Sequence[RunData]) -> list[Series]:
    """Return the series in the order of their first runs, the untrained model first."""
    groups: list[list[RunData]] = []
    for run in sorted(runs, key=lambda run: not run.untrained):
        for group in groups:
            if _same_training(group[0], run):
                group.append(run)
                break
        else:
            groups.append([run])
    labels = _labels([group[0] for group in groups])
    return [
        Series(label, tuple(sorted(group, key=lambda run: run.seed or 0)), index)
        for index, (label, group) in enumerate(zip(labels, groups, strict=True))
    ]


def band(series: Series, metric: str, window: int = 1) -> Band | None:
    """Return a metric of all seeds, smoothed over ``window`` steps; None if no seed has logged it."""
    by_seed = [run.metric(metric) for run in series.runs]
    by_seed = [values for values in by_seed if values]
    if not by_seed:
        return None
    steps = sorted(set().union(*by_seed))
    table = np.array([[values.get(step, np.nan) for step in steps] for values in by_seed], dtype=np.float64)
    smooth = np.array([smoothed(row, window) for row in table])
    return Band(
        steps=np.array(steps, dtype=np.float64),
        mean=_over_seeds(np.nansum, smooth) / np.maximum(1, np.isfinite(smooth).sum(axis=0)),
        low=_over_seeds(np.nanmin, smooth),
        high=_over_seeds(np.nanmax, smooth),
        raw=_over_seeds(np.nansum, table) / np.maximum(1, np.isfinite(table).sum(axis=0)),
        seeds=len(by_seed),
    )


def smoothed(values: Numbers, window: int) -> Numbers:
    """Return centred means over ``window`` values, fewer at the ends; what is not finite stays so."""
    finite = np.isfinite(values)
    kernel = np.ones(max(1, min(window, len(values))))
    sums = np.convolve(np.where(finite, values, 0.0), kernel, mode="same")
    counts = np.convolve(finite.astype(np.float64), kernel, mode="same")
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(finite, sums / counts, np.nan)


def smoothing_window(series: Sequence[Series]) -> int:
    """Return over how many steps lines are smoothed; odd, 1 for short runs."""
    longest = max((run.steps for one in series for run in one.runs), default=0)
    window = longest // SMOOTHED
    return window if window % 2 else max(1, window - 1)


def _over_seeds(reduce: object, table: Numbers) -> Numbers:
    """Reduce over seeds; steps at which no seed has a finite value stay nan."""
    empty = ~np.isfinite(table).any(axis=0)
    filled = np.where(empty, 0.0, table)
    reduced = np.asarray(reduce(filled, axis=0), dtype=np.float64)  # type: ignore[operator]
    reduced[empty] = np.nan
    return reduced


def _same_training(first: RunData, second: RunData) -> bool:
    if first.recipe is None or second.recipe is None or first.untrained or second.untrained:
        return False
    return not _differences(first, second)


def _differences(first: RunData, second: RunData) -> Mapping[str, tuple[str, str]]:
    if first.recipe is None or second.recipe is None:
        return {}
    differing = differing_settings(first.recipe, second.recipe)
    return {name: both for name, both in differing.items() if not name.startswith(SAME_TRAINING)}


def _labels(runs: Sequence[RunData]) -> list[str]:
    """Return a label per series: the recipe's name; with it, what differs from the first series of that name."""
    counts = Counter(run.name for run in runs)
    first: dict[str, RunData] = {}
    labels = []
    for run in runs:
        name = run.name
        if counts[name] > 1 and not run.untrained:
            differing = _differences(first.setdefault(name, run), run)
            own = [f"{key.rpartition('.')[2]}={now}" for key, (_, now) in list(differing.items())[:2]]
            name = " ".join([name, *own])
        labels.append(name)
    again = Counter(labels)
    return [
        visible(label if again[label] == 1 else f"{run.path.parent.name}/{run.path.name}")
        for label, run in zip(labels, runs, strict=True)
    ]
