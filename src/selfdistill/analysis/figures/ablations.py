"""Figures of a study's table: PAINT's three ablations where rows vary those settings, and all rows in any case.

In: the rows of table.json, with the recipes of their runs. Out: charts with intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfdistill.analysis.figures import style
from selfdistill.analysis.figures.style import Chart
from selfdistill.training.averages import MEAN
from selfdistill.training.recipe import Recipe
from selfdistill.training.studies import BASE

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Settings:
    """PAINT's settings of a row."""

    hidden: tuple[float, float]
    """rho_correct, rho_wrong."""
    placement: str
    interpolation: tuple[float, float]
    """k, f_top."""


@dataclass(frozen=True, slots=True)
class _Ablation:
    name: str
    title: str
    axis: str
    label: Callable[[_Settings], str]
    others: Callable[[_Settings], object]
    """What rows of this ablation have in common."""


ABLATIONS = (
    _Ablation(
        "ablation-schedule",
        "PAINT: hidden ratio",
        "(rho correct, rho wrong)",
        lambda own: f"{own.hidden[0]:g}, {own.hidden[1]:g}",
        lambda own: (own.placement, own.interpolation),
    ),
    _Ablation(
        "ablation-placement",
        "PAINT: which part is hidden",
        "placement",
        lambda own: own.placement,
        lambda own: (own.hidden, own.interpolation),
    ),
    _Ablation(
        "ablation-interpolation",
        "PAINT: interpolation",
        "(k, f top)",
        lambda own: f"{own.interpolation[0]:g}, {own.interpolation[1]:g}",
        lambda own: (own.hidden, own.placement),
    ),
)


def ablations(table: Sequence[Row], recipes: Mapping[str, Recipe], name: str = "") -> list[Chart]:
    """Return the figures of one study.

    Args:
        table: rows of table.json.
        recipes: by the name of a row; rows without one are in the forest plot only.
        name: of the study, for several of them.
    """
    settings = {row: own for row, recipe in recipes.items() if (own := _settings(recipe)) is not None}
    charts = [chart for one in ABLATIONS if (chart := _bars(one, table, settings, name)) is not None]
    return [*charts, _forest(table, name)] if table else []


def _settings(recipe: Recipe) -> _Settings | None:
    """Return what PAINT's ablations vary; None for a method without a partly hidden solution."""
    context, distillation = recipe.method.context, recipe.method.distillation
    wanted = ("hidden_correct", "hidden_wrong", "placement")
    if distillation is None or not all(hasattr(context, name) for name in wanted):
        return None
    fraction, strength = distillation.interpolation_fraction, distillation.interpolation_strength
    off = not fraction or not strength
    return _Settings(
        (context.hidden_correct, context.hidden_wrong),
        str(getattr(context.placement, "value", context.placement)),
        (0.0, 0.0) if off else (strength, fraction),
    )


def _bars(one: _Ablation, table: Sequence[Row], settings: Mapping[str, _Settings], study: str) -> Chart | None:
    """Return the bars of the largest set of rows that vary this and nothing else; None if fewer than two do."""
    together: dict[object, dict[str, Row]] = {}
    for row in table:
        own = settings.get(row["run"])
        if own is not None and row.get("group") != MEAN:
            key = (row.get("group", ""), one.others(own))
            same = together.setdefault(key, {})
            same.pop(one.label(own), None)  # a study repeats a row in each ablation: the last one is among its own
            same[one.label(own)] = row
    rows = max(together.values(), key=len, default={})
    if len(rows) < 2:
        return None
    study = study or str(next(iter(rows.values())).get("group") or "")
    with style.styled():
        figure = style.new_figure(height=3.0)
        ax = figure.subplots()
        means, lows, highs = zip(*(_percent(row["avg"]) for row in rows.values()), strict=True)
        errors = [
            [m - low for m, low in zip(means, lows, strict=True)],
            [h - m for m, h in zip(means, highs, strict=True)],
        ]
        places = range(len(rows))
        ax.bar(places, means, 0.65, color=style.PALETTE[5])
        ax.errorbar(places, means, errors, fmt="none", ecolor=style.INK, elinewidth=1.1, capsize=3)
        for place, mean, high in zip(places, means, highs, strict=True):
            ax.annotate(f"{mean:.1f}", (place, high), (0, 3), textcoords="offset points", ha="center", fontsize=8)
        crowded = len(rows) > 5
        ax.set_xticks(places, list(rows), rotation=30 if crowded else 0, ha="right" if crowded else "center")
        ax.set_xlabel(one.axis)
        ax.set_ylabel("avg (%)")
        ax.set_ylim(0, max(highs) * 1.12)
        ax.grid(visible=False, axis="x")
    return Chart(
        name=_named(one.name, study),
        title=f"{one.title}{f' ({study})' if study else ''}",
        caption=f"Rows that differ in {one.axis} only; {_seeds(rows.values())}. Bars begin at 0; brackets are "
        "intervals over problems"
        + (" and seeds" if _most_seeds(rows.values()) > 1 else "")
        + ". The table quotes what the paper "
        "printed, on another model and other questions, where the study has it.",
        alt=f"{one.title}: " + ", ".join(f"{label} {mean:.1f}%" for label, mean in zip(rows, means, strict=True)),
        figure=figure,
        columns=(one.axis, "run", "avg", "low", "high", "seeds", "published"),
        rows=[
            (label, row["run"], *_percent(row["avg"]), row.get("seeds"), _published(row)) for label, row in rows.items()
        ],
    )


def _forest(table: Sequence[Row], study: str) -> Chart:
    """Return all rows of a table with their intervals and, beside them, the differences from the base."""
    compared = [row for row in table if row.get("against_base")]
    names = [f"{row['group']}/{row['run']}" if row.get("group") else str(row["run"]) for row in table]
    with style.styled():
        figure = style.new_figure(2 * style.WIDTH if compared else style.WIDTH, 1.0 + 0.24 * len(table))
        panels = figure.subplots(1, 2 if compared else 1, sharey=True, squeeze=False)[0]
        for place, row in enumerate(table):
            colour = style.SOFT if row["run"] == BASE else style.PALETTE[0]
            _whisker(panels[0], place, _percent(row["avg"]), colour)
            if row.get("against_base"):
                found = row["against_base"].get("avg", row["against_base"])
                _whisker(panels[1], place, _percent(found), colour)
        panels[0].set_yticks(range(len(table)), [style.short(name, 30) for name in names])
        panels[0].set_ylim(len(table) - 0.4, -0.6)
        panels[0].set_xlabel("avg (%)")
        panels[0].set_xlim(0, 100)
        if compared:
            panels[1].axvline(0, color=style.INK, linewidth=0.9)
            panels[1].set_xlabel("difference from base (points)")
        for ax in panels:
            ax.grid(visible=False, axis="y")
    return Chart(
        name=_named("study", study),
        title=f"All rows of the study{f' {study}' if study else ''}",
        caption=f"Means with intervals over problems, and seeds where there are several ({_seeds(table)}); right: "
        "paired differences from the untrained model.",
        alt="Rows of the study: "
        + ", ".join(f"{name} {_percent(row['avg'])[0]:.1f}%" for name, row in zip(names, table, strict=True)),
        figure=figure,
        columns=("run", "avg", "low", "high", "difference", "difference low", "difference high", "seeds", "published"),
        rows=[
            (name, *_percent(row["avg"]), *_difference(row), row.get("seeds"), _published(row))
            for name, row in zip(names, table, strict=True)
        ],
        wide=bool(compared),
    )


def _whisker(ax: Any, place: int, interval: tuple[float, float, float], colour: str) -> None:
    mean, low, high = interval
    ax.plot([low, high], [place, place], color=colour, linewidth=1.3, solid_capstyle="butt")
    ax.plot([mean], [place], color=colour, marker="s", markersize=4.5)


def _percent(row: Row) -> tuple[float, float, float]:
    return 100 * row["mean"], 100 * row["low"], 100 * row["high"]


def _difference(row: Row) -> tuple[float | None, float | None, float | None]:
    found = row.get("against_base")
    return _percent(found.get("avg", found)) if found else (None, None, None)


def _published(row: Row) -> str | None:
    return ", ".join(f"{name} {value:g}" for name, value in (row.get("published") or {}).items()) or None


def _seeds(rows: Any) -> str:
    counts = sorted({row.get("seeds") or 1 for row in rows if row["run"] != BASE})
    if not counts:
        return "no seeds"
    return (
        f"{counts[0]} seed{'' if counts[-1] == 1 else 's'}"
        if len(counts) == 1
        else f"{counts[0]} to {counts[-1]} seeds"
    )


def _most_seeds(rows: Any) -> int:
    return max(row.get("seeds") or 1 for row in rows)


def _named(name: str, study: str) -> str:
    return f"{name}-{''.join(c if c.isalnum() else '-' for c in study.lower())}" if study else name
