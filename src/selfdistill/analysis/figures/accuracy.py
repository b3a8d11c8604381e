"""Accuracy over steps: avg@k and maj@k on the held-out questions with their intervals; student against teacher.

In: series with their pooled evaluations. Out: charts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from selfdistill.analysis.figures import style
from selfdistill.analysis.figures.dynamics import mark_warnings, step_axis
from selfdistill.analysis.figures.style import Chart, Missing
from selfdistill.analysis.grouping import Series, legends
from selfdistill.analysis.results import Evaluated
from selfdistill.analysis.run_data import SIDES
from selfdistill.evaluation.bootstrap import Interval

BANDS = 4
"""With more series than this, intervals are bars: bands would cover each other."""


def accuracy(series: Sequence[Series], found: Mapping[int, Evaluated]) -> Chart | Missing:
    """Return avg@k and maj@k over the steps; ``found`` is by the series' index."""
    title = "Accuracy on held-out questions"
    drawn = [one for one in series if found[one.index].results]
    if not drawn:
        return Missing(title, "nothing has been evaluated yet; train.evaluate_every says how often it is")
    samples = sorted({found[one.index].samples for one in drawn})
    k = str(samples[0]) if len(samples) == 1 else "k"
    trained = [one for one in drawn if not one.untrained]
    with style.styled():
        figure = style.new_figure(2 * style.WIDTH, 3.0, legends(drawn))
        for ax, name in zip(figure.subplots(1, 2), ("avg", "maj"), strict=True):
            for one in drawn:
                intervals: Mapping[int, Interval] = getattr(found[one.index], name)
                if one.untrained and trained:
                    _level_line(ax, one, intervals)
                else:
                    _intervals(ax, one.index, intervals, bands=len(drawn) <= BANDS)
            mark_warnings(ax, trained)
            ax.set_ylabel(f"{name}@{k} (%)")
            ax.set_ylim(0, 100)
            step_axis(ax)
        style.add_legend(figure, legends(drawn))
    level = 100 * found[drawn[0].index].level
    problems = sorted({own[0].problems for one in drawn for own in found[one.index].results.values()})
    seeds = " and seeds" if any(len(one.runs) > 1 for one in drawn) else ""
    return Chart(
        name="accuracy",
        title=title,
        caption=f"{' or '.join(map(str, problems))} held-out questions, {k} samples each; "
        f"{'bands' if len(drawn) <= BANDS else 'bars'} are {level:.0f}% bootstrap intervals over questions{seeds}."
        + (" A level line is the untrained model." if len(trained) < len(drawn) and trained else ""),
        alt=f"{title} over training steps: " + "; ".join(_words(one, found[one.index]) for one in drawn),
        figure=figure,
        columns=("run", "step", "seeds", "avg", "avg low", "avg high", "maj", "maj low", "maj high"),
        rows=[_row(one, found[one.index], step) for one in drawn for step in sorted(found[one.index].results)],
        wide=True,
    )


def teacher(series: Sequence[Series]) -> Chart | Missing:
    """Return what student and self-teacher score on the same questions, and the gap between them."""
    title = "Student and self-teacher"
    drawn = [one for one in series if any(run.teachers for run in one.runs)]
    if not drawn:
        return Missing(title, "it was not asked for; evaluation.teacher_questions=64 does, for example")
    rows: list[tuple[float | str | None, ...]] = []
    with style.styled():
        figure = style.new_figure(2 * style.WIDTH, 3.0, legends(drawn))
        left, right = figure.subplots(1, 2)
        for one in drawn:
            run = next(run for run in one.runs if run.teachers)
            sides = {
                side: {step: _interval(run.teachers[step][side]) for step in sorted(run.teachers)} for side in SIDES
            }
            _intervals(left, one.index, sides["teacher"])
            _intervals(left, one.index, sides["student"], hollow=True)
            _intervals(right, one.index, sides["gap"])
            rows += [
                (one.label, step, *(value for own in sides.values() for value in _percent(own[step])))
                for step in sides["gap"]
            ]
        left.set_ylabel("accuracy (%)")
        left.set_ylim(0, 100)
        right.set_ylabel("teacher minus student (points)")
        right.axhline(0, color=style.SOFT, linewidth=0.9)
        step_axis(left)
        step_axis(right)
        style.add_legend(figure, legends(drawn))
    last = rows[-1]
    return Chart(
        name="teacher",
        title=title,
        caption="The self-teacher with its privileged prompt (filled markers), the student without it (hollow), on "
        "the questions that have a privileged context; one seed per run; bands are intervals over questions. "
        "Without a gap there is nothing to distil.",
        alt=f"{title}: at the last evaluation of {last[0]} the teacher scores {last[5]:.1f}% and the student "
        f"{last[2]:.1f}%",
        figure=figure,
        columns=(
            "run",
            "step",
            *(f"{side}{end}" for side in SIDES for end in ("", " low", " high")),
        ),
        rows=rows,
        wide=True,
    )


def _intervals(
    ax: Any, index: int, intervals: Mapping[int, Interval], *, hollow: bool = False, bands: bool = True
) -> None:
    steps = sorted(intervals)
    middle, low, high = zip(*(_percent(intervals[step]) for step in steps), strict=True)
    colour = style.colour(index)
    [line] = ax.plot(
        steps,
        middle,
        color=colour,
        linestyle=style.line_style(index),
        marker=style.marker(index),
        markersize=4.5,
        markerfacecolor=style.GROUND if hollow else colour,
        linewidth=1.0 if hollow else 1.5,
        clip_on=False,
    )
    style.tag(line, index)
    if len(steps) > 1 and bands:
        area = ax.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
    else:
        area = ax.vlines(steps, low, high, color=colour, linewidth=1.2, alpha=0.7)
    style.tag(area, index)


def _level_line(ax: Any, one: Series, intervals: Mapping[int, Interval]) -> None:
    middle, low, high = _percent(intervals[min(intervals)])
    style.tag(ax.axhspan(low, high, color=style.colour(one.index), alpha=0.12, linewidth=0), one.index)
    line = ax.axhline(middle, color=style.colour(one.index), linestyle=style.line_style(one.index), linewidth=1.3)
    style.tag(line, one.index)


def _row(one: Series, found: Evaluated, step: int) -> tuple[float | str | None, ...]:
    return (one.label, step, len(found.results[step]), *_percent(found.avg[step]), *_percent(found.maj[step]))


def _words(one: Series, found: Evaluated) -> str:
    first, last = min(found.results), max(found.results)
    return (
        f"{one.label}: avg from {100 * found.avg[first].mean:.1f}% at step {first} to "
        f"{100 * found.avg[last].mean:.1f}% at step {last}"
    )


def _interval(row: Mapping[str, float]) -> Interval:
    return Interval(row["mean"], row["low"], row["high"])


def _percent(interval: Interval) -> tuple[float, float, float]:
    return 100 * interval.mean, 100 * interval.low, 100 * interval.high
