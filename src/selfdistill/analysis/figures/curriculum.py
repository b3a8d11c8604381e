"""The curriculum: how many questions are solved how often, over time, as a heat map and as a ridge.

In: ``pass_rate_histogram`` of each step. Out: charts. Methods with one rollout per question have none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from selfdistill.analysis.figures import style
from selfdistill.analysis.figures.dynamics import step_axis
from selfdistill.analysis.figures.style import Chart, Missing
from selfdistill.analysis.grouping import Numbers, Series

WINDOWS, FEW = 20, 10
"""Most columns of a heat map; the second where there are many maps."""
MANY = 6
RIDGES = 8
"""Most curves of a ridge."""


@dataclass(frozen=True, slots=True)
class Histograms:
    """Shares of questions by pass rate, window by window."""

    edges: tuple[int, ...]
    """Steps at which windows begin, and the one after the last."""
    shares: Numbers
    """[windows, k = 0 .. G]; each row adds up to 1."""

    @property
    def group_size(self) -> int:
        """G."""
        return int(self.shares.shape[1]) - 1

    def name(self, window: int) -> str:
        """Return which steps a window covers."""
        first, last = self.edges[window], self.edges[window + 1] - 1
        return str(first) if first == last else f"{first}-{last}"


def histograms(series: Series, windows: int) -> Histograms | None:
    """Return the histograms of all seeds in at most so many windows; None with one rollout per question."""
    by_step: dict[int, list[Numbers]] = {}
    for run in series.runs:
        for row in run.metrics:
            counts = row.get("pass_rate_histogram")
            if isinstance(counts, list) and len(counts) > 2:
                by_step.setdefault(int(row["step"]), []).append(np.array(counts, dtype=np.float64))
    if not by_step or len({len(one) for own in by_step.values() for one in own}) > 1:
        return None
    steps = sorted(by_step)
    parts = np.array_split(np.array(steps), min(windows, len(steps)))
    totals = np.array([np.sum([np.sum(by_step[step], axis=0) for step in part.tolist()], axis=0) for part in parts])
    edges = (*(int(part[0]) for part in parts), steps[-1] + 1)
    return Histograms(edges, totals / np.maximum(1, totals.sum(axis=1, keepdims=True)))


def heat_map(series: Sequence[Series]) -> Chart | Missing:
    """Return the curriculum: steps across, pass rate up, share of questions as colour."""
    title = "Pass rates over time"
    windows = WINDOWS if len(series) < MANY else FEW
    found = {one: own for one in series if (own := histograms(one, windows)) is not None}
    if not found:
        return Missing(title, "it needs several rollouts per question, and no run has them")
    with style.styled():
        figure, axes = _panels(len(found), 2.6)
        mesh = None
        largest = max(float(own.shares.max()) for own in found.values())
        for ax, (one, own) in zip(axes.flatten(), found.items(), strict=False):
            mesh = _heat(ax, one, own, largest)
        for ax in axes.flatten()[len(found) :]:
            ax.remove()
        figure.colorbar(mesh, ax=list(axes.flatten()[: len(found)]), label="share of questions", aspect=20 * len(axes))
    return Chart(
        name="curriculum",
        title=title,
        caption="Share of a window's questions by the number of their rollouts that are right, all seeds together. "
        "The ridge shows the same by shape, the table in numbers.",
        alt=f"{title}: " + "; ".join(_words(one, own) for one, own in found.items()),
        figure=figure,
        columns=("run", "steps", "pass rate", "share of questions"),
        rows=_rows(found),
        wide=len(found) > 1,
    )


def ridge(series: Sequence[Series]) -> Chart | Missing:
    """Return the curriculum as outlines above each other, the earliest at the top."""
    title = "Pass rates over time, as a ridge"
    found = {one: own for one in series if (own := histograms(one, RIDGES)) is not None}
    if not found:
        return Missing(title, "it needs several rollouts per question, and no run has them")
    with style.styled():
        figure, axes = _panels(len(found), 3.2)
        highest = max(float(own.shares.max()) for own in found.values())
        for ax, (one, own) in zip(axes.flatten(), found.items(), strict=False):
            _ridge(ax, one, own, highest)
        for ax in axes.flatten()[len(found) :]:
            ax.remove()
    return Chart(
        name="curriculum-ridge",
        title=title,
        caption=f"One outline per window of steps, earliest above; the tallest peak is {100 * highest:.0f}% of a "
        "window's questions, and all are to the same scale. All seeds together.",
        alt=f"{title}: " + "; ".join(_words(one, own) for one, own in found.items()),
        figure=figure,
        columns=("run", "steps", "pass rate", "share of questions"),
        rows=_rows(found),
        wide=len(found) > 1,
    )


def _panels(count: int, height: float) -> tuple[Any, Any]:
    """Return a figure with a grid of at least so many axes, smaller ones where there are many."""
    columns = 1 if count == 1 else 2 if count <= 4 else 3 if count <= 9 else 4
    rows = -(-count // columns)
    figure = style.new_figure(style.WIDTH * min(2, columns), height * rows * (1 if columns < 3 else 0.75))
    return figure, figure.subplots(rows, columns, squeeze=False)


def _heat(ax: Any, one: Series, own: Histograms, largest: float) -> Any:
    size = own.group_size
    heights = (np.arange(size + 2) - 0.5) / size
    edges = np.array(own.edges, dtype=np.float64) - 0.5
    mesh = ax.pcolormesh(edges, heights, own.shares.T, cmap="cividis", vmin=0, vmax=largest)
    mesh.set_edgecolor("face")
    mesh.set_linewidth(0.5)
    style.tag(mesh, one.index)
    ax.set_title(style.short(one.legend))
    step_axis(ax, bins=5)
    ax.set_ylabel("pass rate k/G")
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1])
    ax.grid(visible=False)
    return mesh


def _ridge(ax: Any, one: Series, own: Histograms, highest: float) -> None:
    rates = np.arange(own.group_size + 1) / own.group_size
    count = len(own.shares)
    for window in range(count):
        base = float(count - 1 - window)
        top = base + 1.6 * own.shares[window] / max(highest, 1e-9)
        area = ax.fill_between(rates, base, top, color=style.colour(one.index), alpha=0.45, linewidth=0, zorder=window)
        [line] = ax.plot(rates, top, color=style.INK, linewidth=0.9, zorder=window + 0.5)
        style.tag(area, one.index)
        style.tag(line, one.index)
    ax.set_yticks(range(count), [own.name(count - 1 - place) for place in range(count)])
    ax.set_ylim(0, count + 0.8)
    ax.set_xlim(0, 1)
    ax.set_xlabel("pass rate k/G")
    ax.set_ylabel("training steps")
    ax.set_title(style.short(one.legend))


def _words(one: Series, own: Histograms) -> str:
    first, last = own.shares[0], own.shares[-1]
    return (
        f"{one.label}: {100 * first[0]:.0f}% of questions never and {100 * first[-1]:.0f}% always solved in steps "
        f"{own.name(0)}, {100 * last[0]:.0f}% and {100 * last[-1]:.0f}% in steps {own.name(len(own.shares) - 1)}"
    )


def _rows(found: Mapping[Series, Histograms]) -> list[tuple[float | str | None, ...]]:
    """Return the numbers behind a figure."""
    return [
        (one.legend, own.name(window), k / own.group_size, float(own.shares[window, k]))
        for one, own in found.items()
        for window in range(len(own.shares))
        for k in range(own.group_size + 1)
    ]
