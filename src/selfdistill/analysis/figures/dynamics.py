"""Training dynamics: what each step logged, over the steps, with several runs overlaid and their seeds as bands.

In: series. Out: one :class:`Chart` per group of metrics, or :class:`Missing` with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from selfdistill.analysis.figures import style
from selfdistill.analysis.figures.style import Chart, Missing
from selfdistill.analysis.grouping import Band, Numbers, Series, band, legends

POINTS, FEW = 160, 72
"""Most points of a line, more of which would not show in a figure of this width; the second with many lines."""
RAW_LINES = 4
"""With more series than this, lines that are not smoothed would hide the others."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes."""

    metric: str
    label: str
    """With its unit."""
    share: bool = False
    """In [0, 1]: the axis begins at 0."""
    zero: bool = True
    """Whether the axis begins at 0 where all values are positive."""
    log: bool = False
    """Logarithmic where all values are positive."""


@dataclass(frozen=True, slots=True)
class Dynamics:
    """A figure of one or more panels above each other."""

    name: str
    title: str
    panels: tuple[Panel, ...]
    caption: str
    absent: str
    """Why a run may have none of it."""


def _shares(*named: tuple[str, str]) -> tuple[Panel, ...]:
    return tuple(Panel(metric, label, share=True) for metric, label in named)


PASS_RATE = Panel("pass_rate", "mean pass rate", share=True)
INFORMATIVE = Panel("informative_share", "share with 0 < p < 1", share=True)
LENGTH = Panel("response_length", "response length (tokens)")
GRADIENT = Panel("grad_norm", "gradient norm")
GROUPS_ONLY = "it needs several rollouts per question"

CURRICULUM = (
    Dynamics("pass-rate", "Mean pass rate", (PASS_RATE,), "Right rollouts of a batch.", "nothing is sampled"),
    Dynamics(
        "informative",
        "Questions with 0 < p < 1",
        (INFORMATIVE,),
        "Share of a batch's questions that some rollouts solve and some do not.",
        GROUPS_ONLY,
    ),
    Dynamics(
        "weights",
        "Question weights",
        (
            Panel("weight_sum", "sum of weights"),
            Panel("weight_max", "largest weight"),
            Panel("weighted_share", "share with weight > 0", share=True),
        ),
        "What a batch's questions count: their sum, the largest, and how many count at all.",
        "nothing is weighted",
    ),
)
TRAINING = (
    Dynamics("loss", "Loss", (Panel("loss", "loss", zero=False),), "Over the global batch.", "no step has been taken"),
    Dynamics("length", "Response length", (LENGTH,), "Mean over a batch's rollouts.", "no step has been taken"),
    Dynamics(
        "entropies",
        "Entropies",
        (Panel("student_entropy", "student (nats)"), Panel("teacher_entropy", "teacher (nats)")),
        "Mean entropy of the next token on the rollouts' own tokens.",
        "the method scores no distributions",
    ),
    Dynamics("gradient", "Gradient norm", (GRADIENT,), "Before clipping.", "no step has been taken"),
    Dynamics(
        "clipping",
        "Clipped and truncated",
        _shares(
            ("clip_fraction", "divergence clipped"),
            ("policy_clip_fraction", "policy ratio clipped"),
            ("truncated_share", "rollouts truncated"),
        ),
        "Share of vocabulary entries or tokens whose loss is cut off, of tokens whose policy ratio is, and of rollouts "
        "that ran out of budget.",
        "nothing is clipped or sampled",
    ),
    Dynamics(
        "format",
        "Answers and format",
        _shares(
            ("unparseable_share", "without an answer"),
            ("well_formed", "well formed"),
            ("tests_passed", "tests passed"),
        ),
        "Share of rollouts; of tests or calls for code and tools.",
        "nothing is verified",
    ),
)
TEACHING = (
    Dynamics(
        "context",
        "What the teacher is shown",
        _shares(
            ("overlap", "overlap"), ("hidden_ratio", "hidden ratio"), ("reprompted_share", "rollouts with context")
        ),
        "Anchors of the reference solution found in the rollout, share of the solution that is hidden, and rollouts "
        "with any privileged context.",
        "only methods with a privileged context have it",
    ),
    Dynamics(
        "leaks",
        "Leak rate",
        _shares(("leak_rate", "leak rate")),
        "Rollouts that mention a reference which the student cannot see.",
        "nothing is sampled",
    ),
    Dynamics(
        "divergence",
        "Student and teacher",
        (Panel("divergence", "divergence (nats)", zero=False), Panel("agreement", "same top token", share=True)),
        "Mean over tokens of the method's own divergence, and how often both prefer the same token.",
        "the method has no teacher",
    ),
    Dynamics(
        "mass",
        "Captured mass",
        _shares(("captured_mass", "captured mass")),
        "Student's probability inside the support of the divergence; 1 with the full vocabulary.",
        "the method has no teacher",
    ),
)
ENGINE = (
    Dynamics(
        "speed",
        "Tokens per second",
        (
            Panel("tokens_per_second/sampling", "sampling (tokens/s)"),
            Panel("tokens_per_second/update", "update (tokens/s)"),
        ),
        "Tokens per second of the phase itself, all processes together.",
        "no step has been taken",
    ),
    Dynamics(
        "mismatch",
        "Engine and trainer",
        (
            Panel("sampler_mismatch", "mean |Δ log p| (nats)", log=True),
            Panel("sampler_mismatch_max", "max |Δ log p| (nats)", log=True),
            Panel("policy_moved", "policy moved (nats)", log=True),
        ),
        "Difference between the log-probabilities of the engine that drew the tokens and of the trainer; where the "
        "rollouts are a step old, how far the update has moved the policy.",
        "the engine gives no log-probabilities",
    ),
)


def draw(dynamics: Dynamics, series: Sequence[Series], window: int) -> Chart | Missing:
    """Return the figure of one group of metrics; panels without any values are left out."""
    bands = {
        panel: {one.index: own for one in series if (own := band(one, panel.metric, window)) is not None}
        for panel in dynamics.panels
    }
    bands = {panel: found for panel, found in bands.items() if found}
    if not bands:
        return Missing(dynamics.title, f"no run has logged it: {dynamics.absent}")
    drawn = [one for one in series if any(one.index in found for found in bands.values())]
    with style.styled():
        height = 0.75 + 1.75 * len(bands) if len(bands) > 1 else 2.7
        figure = style.new_figure(height=height, legend=legends(drawn))
        axes = figure.subplots(len(bands), 1, sharex=True, squeeze=False)[:, 0]
        for ax, (panel, found) in zip(axes, bands.items(), strict=True):
            draw_panel(ax, panel, found, series, raw=window > 1)
        step_axis(axes[-1])
        style.add_legend(figure, legends(drawn))
    columns = ("run", "step", *(panel.metric for panel in bands))
    return Chart(
        name=dynamics.name,
        title=dynamics.title,
        caption=f"{dynamics.caption} {how_drawn(series, window)}",
        alt=f"{dynamics.title} over training steps: " + "; ".join(_trend(one, bands) for one in drawn),
        figure=figure,
        columns=columns,
        rows=_rows(drawn, bands),
    )


def draw_panel(ax: Any, panel: Panel, bands: dict[int, Band], series: Sequence[Series], *, raw: bool) -> None:
    """Draw one metric of all series, and mark the steps that they warned about."""
    for index, found in bands.items():
        colour = style.colour(index)
        if raw and len(bands) <= RAW_LINES:
            [line] = ax.plot(*_extremes(found.steps, found.raw), color=colour, linewidth=0.6, alpha=0.35)
            style.tag(line, index)
        kept = _thinned(len(found.steps), POINTS if len(bands) <= RAW_LINES else FEW)
        if found.seeds > 1:
            area = ax.fill_between(
                found.steps[kept],
                found.low[kept],
                found.high[kept],
                color=colour,
                alpha=0.18 if len(bands) <= RAW_LINES else 0.1,
                linewidth=0,
            )
            style.tag(area, index)
        [line] = ax.plot(
            found.steps[kept],
            found.mean[kept],
            color=colour,
            linestyle=style.line_style(index),
            linewidth=1.5,
            marker=style.marker(index),
            markersize=3.5,
            markevery=_markers(len(kept), index),
            clip_on=False,
        )
        style.tag(line, index)
    ax.set_ylabel(panel.label)
    _limits(ax, panel, list(bands.values()))
    mark_warnings(ax, [one for one in series if one.index in bands])


def mark_warnings(ax: Any, series: Sequence[Series]) -> None:
    """Put a dotted line with a triangle at each step at which a kind of warning was first given."""
    for one in series:
        for step in sorted(set(one.warned().values())):
            line = ax.axvline(step, color=style.INK, linewidth=0.9, linestyle=":")
            [mark] = ax.plot(
                [step],
                [1.0],
                transform=ax.get_xaxis_transform(),
                marker="v",
                color=style.INK,
                markersize=5,
                clip_on=False,
            )
            style.tag(line, one.index)
            style.tag(mark, one.index)


def step_axis(ax: Any, bins: int = 8) -> None:
    """Make the horizontal axis one of steps, with about so many numbers."""
    from matplotlib.ticker import MaxNLocator

    ax.set_xlabel("training step")
    ax.xaxis.set_major_locator(MaxNLocator(nbins=bins, integer=True))


def how_drawn(series: Sequence[Series], window: int) -> str:
    """Return the sentences that say what lines, bands and marks are."""
    seeds = [len(one.runs) for one in series]
    parts = []
    if window > 1:
        faint = " (faint: unsmoothed)" if len(series) <= RAW_LINES else ""
        parts.append(f"Lines are centred means over {window} steps{faint}.")
    if max(seeds, default=1) > 1:
        n = f"{min(seeds)}" if min(seeds) == max(seeds) else f"{min(seeds)} to {max(seeds)}"
        parts.append(f"Lines are means and bands minimum to maximum over {n} seeds, or those that have got so far.")
    if any(one.warned() for one in series):
        parts.append("Dotted lines with a triangle: first warning of a kind.")
    return " ".join(parts)


def _limits(ax: Any, panel: Panel, bands: Sequence[Band]) -> None:
    """Set the vertical axis: from 0 for shares and for what cannot be negative."""
    values = np.concatenate([np.concatenate([one.raw, one.low, one.high]) for one in bands])
    values = values[np.isfinite(values)]
    if not values.size:
        return
    top, bottom = float(values.max()), float(values.min())
    if panel.share:
        ax.set_ylim(0, max(0.05, 1.1 * top) if not 0.9 < top <= 1 else 1.02)
    elif panel.log and bottom > 0:
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0e}")
        ax.yaxis.set_minor_formatter(lambda value, _: "")
        ax.set_ylim(10 ** np.floor(np.log10(0.99 * bottom)), 10 ** np.ceil(np.log10(1.01 * top)))
    elif panel.zero and bottom >= 0:
        ax.set_ylim(0, 1.08 * top if top > 0 else 1)


def _thinned(count: int, most: int) -> list[int]:
    """Return the places of at most so many points, evenly spread, first and last among them."""
    if count <= most:
        return list(range(count))
    return sorted({round(place) for place in np.linspace(0, count - 1, most)})


def _extremes(steps: Numbers, values: Numbers) -> tuple[Numbers, Numbers]:
    """Return a line of few points that still reaches every peak: the least and the largest value of each stretch."""
    if len(steps) <= 2 * POINTS:
        return steps, values
    kept: list[int] = []
    for stretch in np.array_split(np.arange(len(steps)), POINTS):
        finite = stretch[np.isfinite(values[stretch])]
        if finite.size:
            kept += sorted({int(finite[values[finite].argmin()]), int(finite[values[finite].argmax()])})
    return steps[kept], values[kept]


def _markers(points: int, index: int) -> tuple[int, int]:
    """Return where a line has its markers: about six, those of several series beside each other."""
    every = max(1, points // 6)
    return (index * max(1, every // 5)) % every, every


def _rows(series: Sequence[Series], bands: dict[Panel, dict[int, Band]]) -> list[tuple[float | str | None, ...]]:
    """Return the means per series and step, for the data table."""
    rows: list[tuple[float | str | None, ...]] = []
    for one in series:
        own = [found.get(one.index) for found in bands.values()]
        tables = [dict(zip(band.steps, band.raw, strict=True)) if band else {} for band in own]
        steps = sorted(set().union(*tables))
        steps = [steps[place] for place in _thinned(len(steps), POINTS if len(series) <= RAW_LINES else FEW)]
        rows += [(one.legend, int(step), *(table.get(step) for table in tables)) for step in steps]
    return rows


def _trend(one: Series, bands: dict[Panel, dict[int, Band]]) -> str:
    """Say in words from where to where a series' lines go."""
    parts = []
    for panel, found in bands.items():
        own = found.get(one.index)
        finite = own.mean[np.isfinite(own.mean)] if own else np.array([])
        if finite.size:
            parts.append(f"{panel.label} from {finite[0]:.3g} to {finite[-1]:.3g}")
    return f"{one.label}: {', '.join(parts)}"


def papers_dynamics(series: Sequence[Series], window: int) -> Chart | Missing:
    """Return SC-SDPO's training dynamics: response length, pass rate with informative share, gradient norm."""
    panels = (LENGTH, PASS_RATE, INFORMATIVE, GRADIENT)
    bands = {
        panel: {one.index: own for one in series if (own := band(one, panel.metric, window)) is not None}
        for panel in panels
    }
    title = "Training dynamics, as in the SC-SDPO paper"
    drawn = [one for one in series if any(one.index in found for found in bands.values())]
    if not drawn:
        return Missing(title, "no step has been taken")
    bands = {panel: found for panel, found in bands.items() if found}
    with style.styled():
        height = 0.6 + 2.15 * ((len(bands) + 1) // 2)
        figure = style.new_figure(2 * style.WIDTH, height, legends(drawn))
        axes = figure.subplots((len(bands) + 1) // 2, 2, squeeze=False).flatten()
        for ax, (panel, found) in zip(axes, bands.items(), strict=False):
            draw_panel(ax, panel, found, series, raw=window > 1)
            step_axis(ax)
        for ax in axes[len(bands) :]:
            ax.remove()
        style.add_legend(figure, legends(drawn))
    return Chart(
        name="sc-sdpo-dynamics",
        title=title,
        caption="Response length; mean pass rate, and share of questions with 0 < p < 1; gradient norm. "
        + how_drawn(series, window),
        alt=f"{title}: " + "; ".join(_trend(one, bands) for one in drawn),
        figure=figure,
        columns=("run", "step", *(panel.metric for panel in bands)),
        rows=_rows(drawn, bands),
        wide=True,
    )
