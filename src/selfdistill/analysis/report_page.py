"""A report as one HTML page: summary, warnings, figures with their numbers, sample rollouts, recipes.

In: a :class:`Report`. Out: a document for any browser, offline. What a model wrote goes through ``text``, or is data
that scripts show as text nodes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from selfdistill.analysis import svg
from selfdistill.analysis.figures import style
from selfdistill.analysis.figures.style import Chart
from selfdistill.analysis.grouping import Series
from selfdistill.analysis.pages.page import asset, page, text
from selfdistill.analysis.report import Report
from selfdistill.analysis.summary import Table, cost_table, results_table

_DASHES = ("", "7 2", "1.5 2", "8 2 1.5 2")
_SHAPES = {
    "o": '<circle cx="17" cy="6" r="3.5"/>',
    "s": '<rect x="13.5" y="2.5" width="7" height="7"/>',
    "^": '<path d="M17 2 21 10H13z"/>',
    "D": '<path d="M17 1.5 21.5 6 17 10.5 12.5 6z"/>',
    "v": '<path d="M17 10 21 2H13z"/>',
    "P": '<path d="M15.5 2h3v2.5h2.5v3h-2.5V10h-3V7.500H13v-3h2.500z"/>',
    "X": '<path d="M13 4 15 2 17 4 19 2 21 4 19 6 21 8 19 10 17 8 15 10 13 8 15 6z"/>',
    "*": '<path d="M17 1 18.200 4.500H22L19 6.800 20 10.500 17 8.300 14 10.500 15 6.800 12 4.500H15.800z"/>',
}


def report_html(report: Report, *, refresh: float | None = None, built: datetime | None = None) -> str:
    """Return the page.

    Args:
        report: what it shows.
        refresh: seconds after which the page reloads itself; None: never.
        built: when, if the page is to say so.
    """
    warnings = _warnings(report)
    sections = [
        ("summary", "Summary", _summary(report)),
        *((s.name, s.title, _charts(s.charts)) for s in report.sections),
    ]
    if warnings:
        sections.insert(0, ("warnings", "Warnings", warnings))
    sections += [
        ("samples", "Sample rollouts", _samples(report)),
        ("runs", "Runs and recipes", _runs(report)),
    ]
    links = "".join(f'<li><a href="#{name}">{text(title)}</a></li>' for name, title, _ in sections)
    body = (
        _header(report, refresh, built)
        + f'<nav aria-label="Contents"><ul>{links}</ul></nav>'
        + f'<main>{_series(report.series)}<div class="sections">'
        + "".join(
            f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{text(title)}</h2>'
            f"{inner}</section>"
            for name, title, inner in sections
        )
        + "</div></main>"
    )
    return page(
        f"Report: {report.title}",
        body,
        styles=[asset("report.css"), _hiding(report.series)],
        scripts=[asset("report.js"), asset("report-samples.js")],
        data={
            "chart-data": {chart.name: _numbers(chart) for chart in report.charts},
            "sample-data": list(report.samples.records),
            "series-data": [one.label for one in report.series],
        },
    )


def _header(report: Report, refresh: float | None, built: datetime | None) -> str:
    states = []
    for run in report.runs:
        planned = run.recipe.train.steps if run.recipe else None
        if not run.finished:
            states.append(f"{run.path.name}: step {run.steps}" + (f" of {planned}" if planned else ""))
    under_way = f'<p class="soft">Not finished: {text("; ".join(states))}.</p>' if states else ""
    when = f'<p class="soft">Built {built.strftime("%Y-%m-%d %H:%M:%S")}.</p>' if built else ""
    watching = ""
    if refresh is not None:
        watching = (
            f'<p id="watch" data-seconds="{refresh:g}"><span>This page reloads every {refresh:g} s.</span> '
            '<button id="pause" type="button" aria-pressed="false">Pause</button></p>'
        )
    return (
        f'<header><div><h1>{text(report.title)}</h1><button id="theme" type="button">Theme</button></div>'
        f"{when}{under_way}{watching}</header>"
    )


def _series(series: Sequence[Series]) -> str:
    """Return the checkboxes that show and hide series, which are the page's legend as well."""
    if len(series) < 2:
        return ""
    boxes = "".join(
        f'<label><input type="checkbox" checked data-series="{one.index}">{_swatch(one.index)}'
        f"{text(one.legend)}</label>"
        for one in series
    )
    return f'<fieldset id="shown"><legend>Runs</legend>{boxes}</fieldset>'


def _swatch(index: int) -> str:
    colour = style.colour(index)
    colour = "currentColor" if colour == style.INK else colour
    dashes = f' stroke-dasharray="{_DASHES[index % len(_DASHES)]}"' if _DASHES[index % len(_DASHES)] else ""
    return (
        f'<svg class="swatch" width="34" height="12" aria-hidden="true" fill="{colour}" stroke="{colour}">'
        f'<line x1="0" y1="6" x2="34" y2="6" stroke-width="2"{dashes}/>{_SHAPES[style.marker(index)]}</svg>'
    )


def _hiding(series: Sequence[Series]) -> str:
    return "\n".join(f"body.hide-{one.index} .series-{one.index} {{ display: none; }}" for one in series)


def _summary(report: Report) -> str:
    results = results_table(report.series, report.found)
    parts = [_table(results, "Results")] if results else ["<p>Nothing has been evaluated yet.</p>"]
    parts.append(_table(cost_table(report.series), "Cost"))
    if report.missing:
        entries = "".join(f"<li>{text(one.title)}: {text(one.reason)}.</li>" for one in report.missing)
        parts.append(
            f"<details><summary>Not in this report ({len(report.missing)})</summary><ul>{entries}</ul></details>"
        )
    return "".join(parts)


def _table(table: Table, name: str) -> str:
    head = "".join(f'<th scope="col">{text(cell)}</th>' for cell in table.header)
    rows = "".join(
        f'<tr class="series-{one.index}"><th scope="row">{text(one.legend)}</th>'
        + "".join(f"<td>{text(cell)}</td>" for cell in cells)
        + "</tr>"
        for one, cells in table.rows
    )
    return (
        f'<h3>{name}</h3><div class="scroll" tabindex="0" role="region" aria-label="{name}"><table class="figures">'
        f'<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div><p class="soft">{text(table.caption)}</p>'
    )


def _warnings(report: Report) -> str:
    """Return the warnings, one entry per series and kind: the first of them, and which runs gave it how often."""
    entries = []
    for one in report.series:
        kinds: dict[str, list[tuple[str, Any]]] = {}
        for run in one.runs:
            for warning in run.warnings:
                kinds.setdefault(str(warning.get("name", "warning")), []).append((run.path.name, warning))
        entries += [_warning(one, name, given) for name, given in kinds.items()]
    return f'<ul class="warnings">{"".join(entries)}</ul>' if entries else ""


def _warning(one: Series, name: str, given: Sequence[tuple[str, Any]]) -> str:
    runs: dict[str, list[Any]] = {}
    for run, warning in given:
        runs.setdefault(run, []).append(warning.get("step"))
    where = "; ".join(f"{run}, step {_steps(steps)}" for run, steps in runs.items())
    first = min((warning for _, warning in given), key=lambda warning: int(warning.get("step") or 0))
    measure, value, threshold = first.get("measure", "measure"), first.get("value"), first.get("threshold")
    evidence = f"{measure} {_short(value)} at step {first.get('step')}, threshold {_short(threshold)}"
    remedy = f"<p><strong>Try:</strong> {text(first['remedy'])}</p>" if first.get("remedy") else ""
    return (
        f'<li class="series-{one.index}"><strong>{text(name.replace("_", " "))}</strong> '
        f'<span class="soft">{text(where)}</span>'
        f'<p>{text(first.get("text", ""))}</p><p class="soft">{text(evidence)}</p>{remedy}</li>'
    )


def _steps(steps: Sequence[Any]) -> str:
    return str(steps[0]) if len(steps) == 1 else f"{steps[0]} and {len(steps) - 1} more until {steps[-1]}"


def _charts(charts: Sequence[Chart]) -> str:
    return f'<div class="charts">{"".join(map(_chart, charts))}</div>'


def _chart(chart: Chart) -> str:
    wide = " wide" if chart.wide else ""
    scrolls = f' tabindex="0" role="group" aria-label="{text(chart.title)}"' if chart.wide else ""
    return (
        f'<figure id="chart-{chart.name}" class="chart{wide}">'
        f'<div class="plot"{scrolls}>{svg.inline(chart, chart.name)}</div>'
        f"<figcaption><h3>{text(chart.title)}</h3><p>{text(chart.caption)}</p></figcaption>"
        f'<details class="numbers" data-chart="{chart.name}"><summary>Numbers</summary></details></figure>'
    )


def _numbers(chart: Chart) -> dict[str, Any]:
    """Return a chart's table; text stands in a list of its own, and cells say where, since it is repeated a lot."""
    texts = list(dict.fromkeys(cell for row in chart.rows for cell in row if isinstance(cell, str)))
    places = {text: [place] for place, text in enumerate(texts)}
    rows = [[places[cell] if isinstance(cell, str) else _rounded(cell) for cell in row] for row in chart.rows]
    return {"columns": list(chart.columns), "texts": texts, "rows": rows}


def _samples(report: Report) -> str:
    note = f'<p class="soft">{text(report.samples.note)}</p>'
    if not report.samples.records:
        return note
    return (
        f'{note}<form id="filters" class="filters" role="search" aria-label="Sample rollouts"></form>'
        '<p id="found" role="status"></p><div id="rollouts"></div><p id="pages"></p>'
    )


def _runs(report: Report) -> str:
    parts = []
    for one in report.series:
        folders = "".join(f"<li><code>{text(run.path)}</code>{_notes(run.notes)}</li>" for run in one.runs)
        first = one.runs[0]
        parts.append(
            f"<h3>{text(one.legend)}</h3><ul>{folders}</ul>"
            + _box("Recipe", f"<pre>{text(first.recipe_text)}</pre>" if first.recipe_text else "")
            + _box("Environment of the latest start", _environment(first.environment))
        )
    return "".join(parts)


def _notes(notes: Sequence[str]) -> str:
    return f' <span class="soft">{text("; ".join(notes))}</span>' if notes else ""


def _box(summary: str, inner: str) -> str:
    return f"<details><summary>{summary}</summary>{inner}</details>" if inner else ""


def _environment(environment: Any) -> str:
    flat = {name: value for name, value in environment.items() if not isinstance(value, dict)}
    flat |= dict(environment.get("packages") or {})
    if git := environment.get("git"):
        flat["commit"] = f"{git.get('commit')}{' with changes' if git.get('changed') else ''}"
    rows = "".join(f'<tr><th scope="row">{text(name)}</th><td>{text(value)}</td></tr>' for name, value in flat.items())
    return f"<table>{rows}</table>" if rows else ""


def _rounded(cell: Any) -> Any:
    """Return a number with five digits, which is more than a figure shows; None for what JSON cannot hold."""
    if isinstance(cell, int):
        return cell
    if cell is None or not math.isfinite(cell):
        return None
    value = float(f"{cell:.5g}")
    return int(value) if value.is_integer() else value


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)
