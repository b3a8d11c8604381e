"""Where the time goes: seconds per phase of a step, stacked.

In: ``seconds/<phase>`` of each step. Out: one chart: over the steps for one series, side by side for several.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from selfdistill.analysis.figures import style
from selfdistill.analysis.figures.dynamics import step_axis
from selfdistill.analysis.figures.style import Chart, Missing
from selfdistill.analysis.grouping import Numbers, Series, band

BESIDE = ("step", "verifying_hidden", "sampling_ahead")
"""Not parts of a step's time: its sum, and what happens while something else is waited for."""
WINDOWS = 20


def phases(series: Sequence[Series]) -> Chart | Missing:
    """Return the seconds per phase."""
    title = "Seconds per step, by phase"
    found = {one: own for one in series if (own := _seconds(one))}
    if not found:
        return Missing(title, "no step has been taken")
    names = list(dict.fromkeys(name for own in found.values() for name in own))
    with style.styled():
        if len(found) == 1:
            rows, columns, figure = _over_steps(*next(iter(found.items())), names)
            how = "Means over windows of steps."
        else:
            rows, columns, figure = _side_by_side(found, names)
            how = "Means over all steps and seeds."
    means = {one: sum(_mean(values) for values in own.values()) for one, own in found.items()}
    return Chart(
        name="phases",
        title=title,
        caption=f"{how} Evaluations and checkpoints are not in it, nor what runs beside a phase (verification hidden "
        "behind sampling, sampling ahead).",
        alt=f"{title}: " + "; ".join(f"{one.label} {mean:.3g} seconds per step" for one, mean in means.items()),
        figure=figure,
        columns=columns,
        rows=rows,
    )


def _seconds(one: Series) -> dict[str, tuple[Numbers, Numbers]]:
    """Return steps and mean seconds by phase."""
    names = dict.fromkeys(
        name.removeprefix("seconds/")
        for run in one.runs
        for row in run.metrics
        for name in row
        if name.startswith("seconds/")
    )
    bands = {name: band(one, f"seconds/{name}") for name in names if name not in BESIDE}
    return {name: (own.steps, own.raw) for name, own in bands.items() if own is not None}


def _mean(values: tuple[Numbers, Numbers]) -> float:
    return float(np.nanmean(values[1])) if np.isfinite(values[1]).any() else 0.0


def _over_steps(
    one: Series, own: Mapping[str, tuple[Numbers, Numbers]], names: Sequence[str]
) -> tuple[list[tuple[float | str | None, ...]], tuple[str, ...], Any]:
    steps = np.array(sorted(set().union(*(found.tolist() for found, _ in own.values()))))
    tables = {name: dict(zip(found.tolist(), values.tolist(), strict=True)) for name, (found, values) in own.items()}
    windows = np.array_split(steps, min(WINDOWS, len(steps)))
    heights = {
        name: np.array(
            [np.nansum([tables[name].get(step, 0.0) for step in part.tolist()]) / len(part) for part in windows]
        )
        for name in names
    }
    left = np.array([part[0] - 0.5 for part in windows])
    widths = np.array([part[-1] - part[0] + 1 for part in windows])
    figure = style.new_figure()
    ax = figure.subplots()
    bottom = np.zeros(len(windows))
    for place, (name, height) in enumerate(heights.items()):
        ax.bar(left, height, 0.94 * widths, bottom, align="edge", label=name, **_look(place))
        bottom += height
    ax.set_ylabel("seconds per step")
    step_axis(ax)
    figure.legend(loc="outside lower center", ncols=4)
    rows: list[tuple[float | str | None, ...]] = [
        (int(part[0]), int(part[-1]), *(float(heights[name][place]) for name in names))
        for place, part in enumerate(windows)
    ]
    return rows, ("first step", "last step", *names), figure


def _side_by_side(
    found: Mapping[Series, Mapping[str, tuple[Numbers, Numbers]]], names: Sequence[str]
) -> tuple[list[tuple[float | str | None, ...]], tuple[str, ...], Any]:
    figure = style.new_figure(height=1.3 + 0.32 * len(found))
    ax = figure.subplots()
    places = np.arange(len(found))
    left = np.zeros(len(found))
    for place, name in enumerate(names):
        widths = np.array([_mean(own[name]) if name in own else 0.0 for own in found.values()])
        bars = ax.barh(places, widths, 0.7, left, label=name, **_look(place))
        for bar, one in zip(bars, found, strict=True):
            style.tag(bar, one.index)
        left += widths
    ax.set_yticks(places, [style.short(one.label, 28) for one in found])
    ax.invert_yaxis()
    ax.set_xlabel("seconds per step")
    ax.grid(visible=False, axis="y")
    figure.legend(loc="outside lower center", ncols=4)
    rows = [(one.legend, *(_mean(own[name]) if name in own else None for name in names)) for one, own in found.items()]
    return rows, ("run", *names), figure


def _look(place: int) -> dict[str, Any]:
    return {
        "color": style.colour(place),
        "hatch": style.HATCHES[place % len(style.HATCHES)],
        "edgecolor": style.GROUND,
        "linewidth": 0.5,
    }
