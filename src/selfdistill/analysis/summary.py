"""The summary tables of a report: what was reached, with intervals, and what it cost.

In: a report's series and evaluations. Out: headers and rows of text, which pages and terminals print.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from selfdistill.analysis.grouping import Series
from selfdistill.analysis.results import Evaluated, cost, gain
from selfdistill.evaluation.bootstrap import Interval
from selfdistill.evaluation.compare import Comparison
from selfdistill.evaluation.result import percent

NOTHING = "-"


@dataclass(frozen=True, slots=True)
class Table:
    """Text by row; each row begins with its series."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[Series, tuple[str, ...]], ...]


def results_table(series: Sequence[Series], found: Mapping[int, Evaluated]) -> Table | None:
    """Return avg@k, maj@k and pass@k, first, last and best, with paired differences; None without evaluations."""
    evaluated = [one for one in series if found[one.index].results]
    if not evaluated:
        return None
    reference = next((one for one in evaluated if one.untrained), evaluated[0]) if len(evaluated) > 1 else None
    ks = {found[one.index].samples for one in evaluated}
    k = str(ks.pop()) if len(ks) == 1 else "k"
    mosts = {found[one.index].most for one in evaluated}
    most = str(mosts.pop()) if len(mosts) == 1 else "k"
    header = (
        *("run", "step", f"avg@{k}, %", "last minus first, points"),
        *([f"against {reference.label}, points"] if reference else []),
        *(f"first avg@{k}, %", f"best avg@{k}, %", f"maj@{k}, %", f"first maj@{k}, %"),
        *(f"pass@{most}, %", f"first pass@{most}, %"),
    )
    rows = tuple((one, _results(one, found, reference)) for one in evaluated)
    return Table(_caption(evaluated, found, reference), header, rows)


def cost_table(series: Sequence[Series]) -> Table:
    """Return steps, tokens and seconds."""
    header = (
        "run",
        "seeds",
        "state",
        "steps",
        "rollout tokens",
        "seconds in steps",
        "sampled tokens/s",
        "trained tokens/s",
    )
    caption = (
        "Means over seeds; seconds are those of the steps, without evaluations and checkpoints, and tokens per second "
        "those of the phase, on the machine that the run was on."
    )
    return Table(caption, header, tuple((one, _cost(one)) for one in series))


def _results(one: Series, found: Mapping[int, Evaluated], reference: Series | None) -> tuple[str, ...]:
    own = found[one.index]
    first, last = own.steps[0], own.steps[-1]
    best = own.best if own.best is not None else last
    trained = first != last
    cells = [
        str(last),
        percent(own.avg[last]),
        _difference(gain(own.results[first], own.results[last])) if trained else NOTHING,
    ]
    if reference is not None:
        other = found[reference.index]
        same = one is reference
        cells.append(NOTHING if same else _difference(gain(other.results[other.steps[-1]], own.results[last])))
    return (
        *cells,
        f"{percent(own.avg[first])} (step {first})" if trained else NOTHING,
        f"{percent(own.avg[best])} (step {best})" if trained else NOTHING,
        percent(own.maj[last]),
        percent(own.maj[first]) if trained else NOTHING,
        percent(own.passes(last)),
        percent(own.passes(first)) if trained else NOTHING,
    )


def _cost(one: Series) -> tuple[str, ...]:
    spent = cost(one)
    seeds = [run.seed for run in one.runs]
    known = [str(seed) for seed in seeds if seed is not None]
    finished = sum(run.finished for run in one.runs)
    early = sum(bool(run.summary.get("stopped_early")) for run in one.runs)
    state = "finished" if finished == len(one.runs) else f"{finished} of {len(one.runs)} finished"
    state += f", {early} stopped early" if early else ""
    return (
        f"{len(one.runs)} ({', '.join(known)})" if known else str(len(one.runs)),
        "evaluated only" if one.untrained else state,
        f"{spent.steps:,.4g}" if spent.steps < 1000 else f"{spent.steps:,.0f}",
        _number(spent.rollout_tokens),
        f"{spent.seconds:,.1f}",
        _number(spent.sampled_per_second),
        _number(spent.trained_per_second),
    )


def _caption(evaluated: Sequence[Series], found: Mapping[int, Evaluated], reference: Series | None) -> str:
    own = found[evaluated[0].index]
    several = any(len(one.runs) > 1 for one in evaluated)
    problems = sorted({results[0].problems for one in evaluated for results in found[one.index].results.values()})
    parts = [
        f"On {' or '.join(map(str, problems))} held-out questions; brackets are {100 * own.level:.0f}% bootstrap "
        f"intervals over questions{' and seeds' if several else ''}. Differences are paired by question; n.s.: "
        "not distinguishable from zero."
    ]
    if any(len(one.runs) == 1 and not one.untrained for one in evaluated):
        parts.append("With one seed, intervals lack the variation between trainings.")
    if any(len(found[one.index].steps) > 2 for one in evaluated):
        parts.append("The best step was chosen on the questions that it is reported on, which flatters it.")
    if reference is not None:
        parts.append(f"The column against {reference.label} is about its last evaluation, in avg@k.")
    return " ".join(parts)


def _difference(found: Comparison | None) -> str:
    return NOTHING if found is None else f"{_points(found.avg)}{'' if found.avg.excludes_zero else ' n.s.'}"


def _points(found: Interval) -> str:
    return f"{100 * found.mean:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:,.0f}"
