"""SC-SDPO's four measures of the distance to the teacher: by correctness (densities) and by pass rate (mean and std).

In: analysis/divergences.json of runs. Out: charts. The measures are in nats, the densities over tokens, the means over
rollouts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from selfdistill.analysis.figures import style
from selfdistill.analysis.figures.style import Chart, Missing
from selfdistill.analysis.grouping import Numbers, Series, legends

MEASURES = {
    "reverse_kl": "reverse KL (nats)",
    "jsd": "Jensen-Shannon (nats)",
    "log_ratio": "log p_T(y) / p_S(y) (nats)",
    "contrast": "0.5 log p_S(y) / M(y) (nats)",
}
SIDES = ("correct", "wrong")
ABSENT = "these runs have no analysis/divergences.json: add --measure"


def by_correctness(series: Sequence[Series]) -> list[Chart | Missing]:
    """Return one figure per series: densities over the tokens of right and of wrong rollouts."""
    title = "Divergence by correctness"
    charts: list[Chart | Missing] = [_densities(one, found, title) for one in series if (found := _measured(one))]
    return charts or [Missing(title, ABSENT)]


def by_pass_rate(series: Sequence[Series]) -> Chart | Missing:
    """Return the mean and standard deviation of each measure at each pass rate."""
    title = "Divergence by pass rate"
    found = {one: own for one in series if (own := _measured(one))}
    if not found:
        return Missing(title, ABSENT)
    rows: list[tuple[float | str | None, ...]] = []
    with style.styled():
        figure = style.new_figure(2 * style.WIDTH, 4.9, legends(list(found)))
        for ax, (measure, label) in zip(figure.subplots(2, 2).flatten(), MEASURES.items(), strict=True):
            for place, (one, own) in enumerate(found.items()):
                points = _at_pass_rates([rollout for data in own for rollout in data["rollouts"]], measure)
                shift = 0.008 * (place - (len(found) - 1) / 2)
                _error_bars(ax, one.index, points, shift)
                rows += [(one.legend, measure, *point) for point in points]
            ax.axhline(0, color=style.SOFT, linewidth=0.8)
            ax.set_xlim(-0.04, 1.04)
            ax.set_ylabel(label)
            ax.set_xlabel("pass rate of the question")
        style.add_legend(figure, legends(list(found)))
    rollouts = sum(len(data["rollouts"]) for own in found.values() for data in own)
    return Chart(
        name="divergence-by-pass-rate",
        title=title,
        caption=f"Mean over a rollout's tokens, then mean and standard deviation over the rollouts of each pass rate; "
        f"{rollouts:,} rollouts. {_support([data for own in found.values() for data in own])}",
        alt=f"{title}: mean and standard deviation of {', '.join(MEASURES)} at each pass rate",
        figure=figure,
        columns=("run", "measure", "pass rate", "mean", "std", "rollouts"),
        rows=rows,
        wide=True,
    )


def _measured(one: Series) -> list[Mapping[str, Any]]:
    return [run.divergences for run in one.runs if run.divergences and run.divergences.get("histograms")]


def _densities(one: Series, found: Sequence[Mapping[str, Any]], title: str) -> Chart:
    rows: list[tuple[float | str | None, ...]] = []
    medians = []
    with style.styled():
        figure = style.new_figure(2 * style.WIDTH, 4.9)
        for ax, (measure, label) in zip(figure.subplots(2, 2).flatten(), MEASURES.items(), strict=True):
            edges, counts = _together(found, measure)
            for side, dashes, colour in zip(SIDES, ("-", (0, (4, 1.5))), (style.GOOD, style.BAD), strict=True):
                density = _density(edges, counts[side])
                ax.stairs(density, edges, color=colour, linestyle=dashes, linewidth=1.4, label=f"{side} rollouts")
                rows += [
                    (side, measure, float(low), float(high), float(own))
                    for low, high, own in zip(edges, edges[1:], density, strict=False)
                ]
                if counts[side].sum():
                    medians.append(f"median {measure} of {side} {_median(edges, counts[side]):.3g}")
            ax.set_xlabel(label)
            ax.set_ylabel("density of tokens (log)")
            ax.set_yscale("log")  # most tokens are near 0, and what is worth seeing is far from it
            most = max(1.0, *(float(own.sum()) for own in counts.values()))
            ax.set_ylim(bottom=0.5 / (most * float(np.diff(edges).max())))  # half of what one token is worth
            ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            ax.yaxis.set_minor_formatter(lambda value, _: "")
        handles, labels = ax.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2)
    tokens = {side: int(_together(found, "jsd")[1][side].sum()) for side in SIDES}
    return Chart(
        name=f"divergence-by-correctness-{one.index}",
        title=f"{title}: {one.label}",
        caption=f"Densities over {tokens['correct']:,} tokens of right and {tokens['wrong']:,} of wrong rollouts, "
        f"after step {found[0].get('step', 'unknown')}; the outermost bins hold what lies outside. {_support(found)}",
        alt=f"{title}, {one.label}: " + ", ".join(medians),
        figure=figure,
        columns=("rollouts", "measure", "from", "to", "density"),
        rows=rows,
        wide=True,
    )


def _together(found: Sequence[Mapping[str, Any]], measure: str) -> tuple[Numbers, dict[str, Numbers]]:
    """Return the histogram over all runs; where their bins differ, counts are spread evenly within a bin."""
    own = [data["histograms"][measure] for data in found if data.get("histograms")]
    each = [np.array(one["edges"], dtype=np.float64) for one in own]
    if all(np.array_equal(edges, each[0]) for edges in each):
        edges = each[0]
    else:
        edges = np.linspace(min(one[0] for one in each), max(one[-1] for one in each), max(map(len, each)))
    counts = {side: np.zeros(len(edges) - 1) for side in SIDES}
    for side in SIDES:
        for one, own_edges in zip(own, each, strict=True):
            below = np.concatenate([[0.0], np.cumsum(np.array(one[side], dtype=np.float64))])
            counts[side] += np.diff(np.interp(edges, own_edges, below))
    return edges, counts


def _density(edges: Numbers, counts: Numbers) -> Numbers:
    return np.asarray(counts / (max(1.0, float(counts.sum())) * np.diff(edges)), dtype=np.float64)


def _median(edges: Numbers, counts: Numbers) -> float:
    place = int(np.searchsorted(np.cumsum(counts), counts.sum() / 2))
    return float((edges[place] + edges[place + 1]) / 2)


def _at_pass_rates(rollouts: Sequence[Mapping[str, Any]], measure: str) -> list[tuple[float, float, float, int]]:
    """Return pass rate, mean, standard deviation and number of rollouts."""
    by_rate: dict[float, list[float]] = {}
    for rollout in rollouts:
        if isinstance(value := rollout.get(measure), int | float):
            by_rate.setdefault(float(rollout["pass_rate"]), []).append(float(value))
    return [(rate, float(np.mean(own)), float(np.std(own)), len(own)) for rate, own in sorted(by_rate.items())]


def _error_bars(ax: Any, index: int, points: Sequence[tuple[float, float, float, int]], shift: float) -> None:
    if not points:
        return
    rates, means, deviations, _ = zip(*points, strict=True)
    drawn = ax.errorbar(
        [rate + shift for rate in rates],
        means,
        deviations,
        color=style.colour(index),
        linestyle=style.line_style(index),
        marker=style.marker(index),
        markersize=4,
        linewidth=1.2,
        elinewidth=0.9,
        capsize=2.5,
    )
    for artist in (drawn.lines[0], *drawn.lines[1], *drawn.lines[2]):
        style.tag(artist, index)


def _support(found: Sequence[Mapping[str, Any]]) -> str:
    """Say what the divergences are taken on, and which rollouts have none."""
    support = found[0].get("support")
    text = f"Support: the student's top {support} tokens and one tail bucket." if support else "Full vocabulary."
    without = sum(int(data.get("without_context") or 0) for data in found)
    return f"{text} {without:,} rollouts without a privileged context are not in it." if without else text
