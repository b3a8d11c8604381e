"""A study's lines as a table: Markdown to read, CSV and JSON to compute with, LaTeX to paste.

Shares are percent and differences are points, both with the ends of their intervals.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from selfdistill.evaluation.bootstrap import Interval
from selfdistill.evaluation.compare import Comparison
from selfdistill.evaluation.result import percent
from selfdistill.training.averages import MEAN, Average, averages
from selfdistill.training.outcomes import Line, mean

_LATEX = str.maketrans({character: f"\\{character}" for character in "&%$#_{}"} | {"~": "\\textasciitilde{}"})


@dataclass(frozen=True, slots=True)
class Table:
    """Lines, and what is said about them."""

    lines: tuple[Line, ...]
    caption: str = ""
    against: str | None = None
    """Name of the reference row."""
    published: str = ""
    """Where the published numbers come from."""
    unfinished: tuple[str, ...] = field(default=())
    """What is missing: runs that failed or have not been made."""

    def header(self) -> list[str]:
        """Return the names of the columns."""
        samples, most = self._samples(), self._most()
        scores = [f"avg@{samples}, %", f"maj@{samples}, %", f"pass@{most}, %", "avg against base, points"]
        reference = [f"avg against {self.against}, points"] if self.against else []
        cost = ["seeds", "steps", "rollout tokens", "seconds per step", "tokens per response"]
        group = ["group"] if self._grouped() else []
        return [*group, "run", *scores, *reference, *cost, *(f"published {name}" for name in self._published())]

    def cells(self, line: Line) -> list[str]:
        """Return a line's cells, as text."""
        group = [line.group] if self._grouped() else []
        reference = [_points(_avg(line.against_row))] if self.against else []
        most = max(line.results[0].pass_at)
        reached = sum(result.pass_at[most].mean for result in line.results) / len(line.results)
        length = mean([result.mean_length for result in line.results if result.mean_length is not None])
        return [
            *group,
            line.label,
            percent(line.interval("avg")),
            percent(line.interval("maj")),
            f"{100 * reached:.1f}",
            _points(_avg(line.against_base)),
            *reference,
            str(len(line.results)) if line.costs else "",
            f"{line.steps:.10g}",
            "" if line.rollout_tokens is None else f"{line.rollout_tokens:,.0f}",
            "" if line.seconds_per_step is None else f"{line.seconds_per_step:.2f}",
            "" if length is None else f"{length:.1f}",
            *(f"{line.published[name]:g}" if name in line.published else "" for name in self._published()),
        ]

    def averages(self) -> list[Average]:
        """Return the means over groups, in a study that has several."""
        return averages(self.lines, self.against)

    def notes(self) -> list[str]:
        """Return the sentences below the table."""
        one_seed = any(len(line.results) == 1 for line in self.lines if line.costs)
        over = "problems only: with one seed they lack the variation between trainings"
        groups = {line.group: line.results[0].problems for line in self.lines}
        problems = ", ".join(
            f"{count} held-out problems" + (f" ({name})" if name else "") for name, count in groups.items()
        )
        level = f"{100 * self.lines[0].level:.0f}%"
        notes = [
            f"{problems}; brackets are {level} bootstrap intervals over {over if one_seed else 'problems and seeds'}."
        ]
        if self.against:
            notes.append("Differences are paired: the same problems, answered under the same random numbers.")
        if self._published() and self.published:
            notes.append(f"Published: {self.published}.")
        if self.unfinished:
            notes.append(f"Not finished: {'; '.join(self.unfinished)}.")
        return notes

    def _samples(self) -> str:
        counts = {line.results[0].samples for line in self.lines}
        return str(counts.pop()) if len(counts) == 1 else "k"

    def _most(self) -> str:
        counts = {max(line.results[0].pass_at) for line in self.lines}
        return str(counts.pop()) if len(counts) == 1 else "k"

    def _grouped(self) -> bool:
        return any(line.group for line in self.lines)

    def _published(self) -> list[str]:
        return list(dict.fromkeys(name for line in self.lines for name in line.published))


def markdown(table: Table) -> str:
    """Return the table for people and pages."""
    rows = _pipes([table.header(), *(table.cells(line) for line in table.lines)])
    means = _average_rows(table)
    caption = [table.caption, ""] if table.caption else []
    return "\n".join([*caption, *rows, *(["", *_pipes(means)] if means else []), "", *table.notes()]) + "\n"


def _average_rows(table: Table) -> list[list[str]]:
    """Return the second table of a study with several groups, its header first; nothing for other studies."""
    means = table.averages()
    if not means:
        return []
    reference = [f"avg against {table.against}, points"] if table.against else []
    header = [f"mean over {means[0].groups} groups", "avg, %", "maj, %", "avg against base, points", *reference]
    rows = [
        [
            one.label,
            percent(one.avg),
            percent(one.maj),
            _points(one.against_base),
            *([_points(one.against_row)] if table.against else []),
        ]
        for one in means
    ]
    return [header, *rows]


def _pipes(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows, the header first, as Markdown."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return [lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]


def latex(table: Table) -> str:
    """Return the table as ``tabular`` with booktabs' rules, the means over groups as a second; notes are comments."""
    header = table.header()
    comments = [f"% {note}" for note in (table.caption, *table.notes()) if note]
    text = _tabular([header, *(table.cells(line) for line in table.lines)], names=2 if header[0] == "group" else 1)
    means = _average_rows(table)
    # The empty line is a paragraph's end: the second one stands below the first, not beside it.
    return "\n".join([*comments, *text, *(["", *_tabular(means, names=1)] if means else [])]) + "\n"


def _tabular(rows: Sequence[Sequence[str]], names: int) -> list[str]:
    """Return rows, the header first, as a ``tabular`` whose first ``names`` columns are text."""
    text = [f"{' & '.join(cell.translate(_LATEX) for cell in row)} \\\\" for row in rows]
    columns = "l" * names + "r" * (len(rows[0]) - names)
    body = ["\\toprule", text[0], "\\midrule", *text[1:], "\\bottomrule"]
    return [f"\\begin{{tabular}}{{{columns}}}", *body, "\\end{tabular}"]


def comma_separated(table: Table) -> str:
    """Return one record per line, numbers only: shares in percent, differences in points."""
    records = [_record(line) for line in table.lines]
    published = [f"published {name}" for name in table._published()]
    columns = [*records[0], *published]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    for record, line in zip(records, table.lines, strict=True):
        writer.writerow(record | {f"published {name}": value for name, value in line.published.items()})
    for one in table.averages():
        intervals = {name: getattr(one, name) for name in ("avg", "maj", "against_base", "against_row")}
        writer.writerow({"group": MEAN, "run": one.label, **_spread(intervals)})
    return stream.getvalue()


def as_rows(table: Table) -> list[dict[str, Any]]:
    """Return everything, with what each seed came to, as values that :func:`json.dumps` takes."""
    return [*map(as_json, table.lines), *(one.to_json() for one in table.averages())]


def as_json(line: Line) -> dict[str, Any]:
    """Return a line without its per-problem outcomes, which stay in the run folders."""
    return {
        "run": line.label,
        **({"group": line.group} if line.group else {}),
        "steps": line.steps,
        "rollout_tokens": line.rollout_tokens,
        "seconds_per_step": line.seconds_per_step,
        "seeds": len(line.results),
        "level": line.level,
        "avg": asdict(line.interval("avg")),
        "maj": asdict(line.interval("maj")),
        "per_seed_avg": [result.avg.mean for result in line.results],
        "per_seed_steps": [cost.steps for cost in line.costs],
        "per_seed_rollout_tokens": [cost.rollout_tokens for cost in line.costs],
        "against_base": line.against_base.to_json() if line.against_base else None,
        "against_row": line.against_row.to_json() if line.against_row else None,
        "published": dict(line.published),
        "folders": [str(folder) for folder in line.folders],
    }


def _record(line: Line) -> dict[str, Any]:
    differences = {"against_base": line.against_base, "against_row": line.against_row}
    return {
        "group": line.group,
        "run": line.label,
        **_spread({"avg": line.interval("avg"), "maj": line.interval("maj")}),
        **_spread({name: _avg(found) for name, found in differences.items()}),
        "samples": line.results[0].samples,
        "problems": line.results[0].problems,
        "level": line.level,
        "seeds": len(line.results),
        "steps": line.steps,
        "rollout_tokens": line.rollout_tokens,
        "seconds_per_step": line.seconds_per_step,
    }


def _spread(intervals: Mapping[str, Interval | None]) -> dict[str, float | None]:
    columns: dict[str, float | None] = {}
    for name, interval in intervals.items():
        columns[name] = None if interval is None else 100 * interval.mean
        columns[f"{name}_low"] = None if interval is None else 100 * interval.low
        columns[f"{name}_high"] = None if interval is None else 100 * interval.high
    return columns


def _avg(comparison: Comparison | None) -> Interval | None:
    return comparison.avg if comparison else None


def _points(difference: Interval | None) -> str:
    if difference is None:
        return ""
    middle, low, high = (100 * value for value in (difference.mean, difference.low, difference.high))
    return f"{middle:+.1f} [{low:+.1f}, {high:+.1f}]"
