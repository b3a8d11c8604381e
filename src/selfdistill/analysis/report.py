"""Building a report: runs are read, grouped and drawn, and become one page or figures for a paper.

In: folders of runs or of studies. Out: a :class:`Report`, which :mod:`selfdistill.analysis.report_page` writes as HTML.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfdistill.analysis import svg
from selfdistill.analysis.figures import ablations, accuracy, curriculum, divergences, dynamics, phases
from selfdistill.analysis.figures.style import Chart, Missing, require_matplotlib
from selfdistill.analysis.grouping import Series, group_runs, smoothing_window
from selfdistill.analysis.results import Evaluated, evaluated
from selfdistill.analysis.run_data import RunData, find_runs, read_run, read_table, study_runs
from selfdistill.analysis.samples import Samples, samples
from selfdistill.errors import DataError

FORMATS = ("png", "svg", "pdf")
NAMES = 4
"""Most names in a title."""


@dataclass(frozen=True, slots=True)
class Section:
    """Charts under one heading."""

    name: str
    title: str
    charts: tuple[Chart, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that a page shows."""

    title: str
    series: tuple[Series, ...]
    found: Mapping[int, Evaluated]
    """By the series' index."""
    sections: tuple[Section, ...]
    missing: tuple[Missing, ...]
    samples: Samples

    @property
    def runs(self) -> list[RunData]:
        """All runs, series by series."""
        return [run for one in self.series for run in one.runs]

    @property
    def charts(self) -> list[Chart]:
        """All charts, section by section."""
        return [chart for section in self.sections for chart in section.charts]

    @property
    def finished(self) -> bool:
        """Whether all runs have come to their end."""
        return all(run.finished for run in self.runs)


def build(paths: Sequence[Path], *, title: str | None = None) -> Report:
    """Read runs and draw what they hold.

    Args:
        paths: folders of runs and of studies, whose runs are read as well.
        title: of the page; the runs' names by default.

    Raises:
        DataError: a path holds no run, or a file in it cannot be read.
        SelfDistillError: matplotlib is not installed.
    """
    require_matplotlib()
    runs = [read_run(path) for path in find_runs(paths)]
    series = group_runs(runs)
    found = {one.index: evaluated(one) for one in series}
    trained = [one for one in series if any(run.metrics for run in one.runs)]
    drawn = list(_sections(series, trained, found, list(_studies(paths, runs))))
    return Report(
        title=title or _title(paths, series),
        series=tuple(series),
        found=found,
        sections=tuple(
            Section(name, heading, charts)
            for name, heading, all_ in drawn
            if (charts := tuple(one for one in all_ if isinstance(one, Chart)))
        ),
        missing=tuple(one for _, _, all_ in drawn for one in all_ if isinstance(one, Missing)),
        samples=samples(series),
    )


def _title(paths: Sequence[Path], series: Sequence[Series]) -> str:
    """Return the names of a few runs; of many, that of their study."""
    labels = list(dict.fromkeys(one.label for one in series))
    if len(labels) <= NAMES:
        return ", ".join(labels)
    return paths[0].resolve().name if len(paths) == 1 else f"{', '.join(labels[:NAMES])} and {len(labels) - NAMES} more"


def write_figures(report: Report, folder: Path, formats: Sequence[str]) -> list[Path]:
    """Write every figure in every format; return the paths.

    Raises:
        DataError: there is no such format.
    """
    for one in formats:
        if one not in FORMATS:
            raise DataError(f"--format has {one!r}; choose from {', '.join(FORMATS)}, for example png,svg")
    return [path for chart in report.charts for path in svg.write(chart, folder, formats)]


def signature(paths: Sequence[Path]) -> dict[str, tuple[int, int]]:
    """Return size and time of every file that a report reads, to see whether something has changed."""
    names = ("*.jsonl", "*.json", "recipe.yaml", "analysis/*.json", "evaluations/*/*.json")
    files = {file for run in find_runs(paths) for name in names for file in run.glob(name)}
    files |= {file for path in paths for file in path.glob("table.json")}
    found = {}
    for file in sorted(files):
        try:
            state = file.stat()
        except FileNotFoundError:
            continue
        found[str(file)] = (state.st_size, state.st_mtime_ns)
    return found


def _sections(
    series: Sequence[Series],
    trained: Sequence[Series],
    found: Mapping[int, Evaluated],
    studies: Sequence[tuple[str, list[Mapping[str, Any]], dict[str, Any]]],
) -> Iterator[tuple[str, str, list[Chart | Missing]]]:
    """Yield name, heading and figures of each section."""
    window = smoothing_window(series)

    def several(all_: Sequence[dynamics.Dynamics]) -> list[Chart | Missing]:
        return [dynamics.draw(one, trained, window) for one in all_]

    yield "results", "Accuracy", [accuracy.accuracy(series, found), accuracy.teacher(trained)]
    yield (
        "learning",
        "Curriculum",
        [curriculum.heat_map(trained), curriculum.ridge(trained), *several(dynamics.CURRICULUM)],
    )
    yield "training", "Training", several(dynamics.TRAINING)
    yield "teaching", "Teacher and context", several(dynamics.TEACHING)
    yield "engine", "Time and engine", [phases.phases(trained), *several(dynamics.ENGINE)]
    yield (
        "papers",
        "The papers' figures",
        [
            dynamics.papers_dynamics(trained, window),
            *divergences.by_correctness(trained),
            divergences.by_pass_rate(trained),
            *(chart for name, table, recipes in studies for chart in ablations.ablations(table, recipes, name)),
        ],
    )


def _studies(
    paths: Sequence[Path], runs: Sequence[RunData]
) -> Iterator[tuple[str, list[Mapping[str, Any]], dict[str, Any]]]:
    """Yield name, table and recipes by row of the studies among ``paths``."""
    folders = [path for path in paths if (path / "table.json").is_file()]
    by_place = {run.path.resolve(): run for run in runs}
    for folder in folders:
        own = [by_place[place.resolve()] for place in study_runs(folder) if place.resolve() in by_place]
        recipes = {run.path.name.rpartition("-seed")[0]: run.recipe for run in own if run.recipe is not None}
        recipes.pop("", None)
        yield folder.resolve().name if len(folders) > 1 else "", read_table(folder), recipes
