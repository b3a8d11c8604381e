"""``selfdistill report``: one page, and figures, of one or more runs; with ``--watch`` as they go on."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from selfdistill.argument_types import positive
from selfdistill.errors import DataError

if TYPE_CHECKING:
    from selfdistill.analysis.report import Report

QUESTIONS = 16
"""Whose rollouts ``--measure`` scores, if it is not told."""


def add_report(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    command = sub.add_parser(
        "report",
        help="write a page about runs: accuracy, training dynamics, the papers' figures, samples",
        description="Write one HTML page about runs, finished or under way, that opens in any browser, offline. Runs "
        "that differ only in their seed become one line with a band. A study's folder stands for its runs and table.",
    )
    command.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run or of a study")
    command.add_argument("--out", metavar="FILE", help="the page (default: report.html in RUN, or beside the runs)")
    command.add_argument("--title", help="of the page (default: the runs' names)")
    command.add_argument("--figures", metavar="FOLDER", help="also write every figure as a file")
    command.add_argument(
        "--format", default="png,svg", metavar="A,B", help="with --figures: of png, svg, pdf (default png,svg)"
    )
    command.add_argument(
        "--measure",
        type=positive,
        nargs="?",
        const=QUESTIONS,
        metavar="N",
        help="first load each run's newest checkpoint and measure SC-SDPO's four divergences on the rollouts of N "
        f"training questions (default {QUESTIONS}); kept in the run folder for the next report",
    )
    command.add_argument(
        "--watch", action="store_true", help="write it again as the runs go on; the page reloads itself"
    )
    command.add_argument(
        "--every", type=_seconds, default=10.0, metavar="SECONDS", help="with --watch: how often (default 10)"
    )
    command.set_defaults(run=report)


def report(arguments: argparse.Namespace) -> int:
    """``selfdistill report RUN [RUN ...] [options]``."""
    paths = [Path(run) for run in arguments.runs]
    out = Path(arguments.out) if arguments.out else default_page(paths)
    if out.is_dir():
        raise DataError(f"--out is {str(out)!r}, a folder; name a file, for example {str(out / 'report.html')!r}")
    if arguments.measure:
        _measure(paths, arguments.measure)
    if arguments.watch:
        return _watch(paths, out, arguments)
    _print(_write(paths, out, arguments, refresh=None), out)
    return 0


def _measure(paths: Sequence[Path], questions: int) -> None:
    """Measure the divergences of every run that has a self-teacher and a checkpoint."""
    from selfdistill.analysis.measuring import measurable, measure_divergences
    from selfdistill.analysis.run_data import find_runs
    from selfdistill.training.progress import make_progress

    for run in find_runs(paths):
        reason = measurable(run)
        if reason:
            print(f"not measured: {run}: {reason}")
            continue
        with make_progress() as progress:
            print(f"measured: {measure_divergences(run, questions, progress)}", flush=True)


def default_page(paths: Sequence[Path]) -> Path:
    """Return where the page goes: into the only folder, or beside several."""
    if len(paths) == 1:
        return paths[0] / "report.html"
    parents = {path.resolve().parent for path in paths}
    return (parents.pop() if len(parents) == 1 else Path()) / "report.html"


def write_report(paths: Sequence[Path], out: Path, *, title: str | None = None, refresh: float | None = None) -> Report:
    """Build the report of runs and studies and write its page; one that ``refresh``es reloads itself until the end.

    Raises:
        SelfDistillError: a path holds no run, a file in it cannot be read, or matplotlib is not installed.
    """
    from selfdistill.analysis.report import build
    from selfdistill.analysis.report_page import report_html
    from selfdistill.training.run_folder import replace_text

    made = build(paths, title=title)
    reloads = refresh if refresh is not None and not made.finished else None
    replace_text(out, report_html(made, refresh=reloads, built=datetime.now()))
    return made


def _write(paths: Sequence[Path], out: Path, arguments: argparse.Namespace, refresh: float | None) -> Report:
    from selfdistill.analysis.report import write_figures

    made = write_report(paths, out, title=arguments.title, refresh=refresh)
    if arguments.figures:
        written = write_figures(made, Path(arguments.figures), arguments.format.split(","))
        print(f"figures: {len(written)} files in {arguments.figures}")
    return made


def _watch(paths: Sequence[Path], out: Path, arguments: argparse.Namespace) -> int:
    """Write the page whenever a file has changed, until all runs are finished or Ctrl-C."""
    from selfdistill.analysis.report import signature

    seen = signature(paths)
    made = _write(paths, out, arguments, refresh=arguments.every)
    _print(made, out)
    try:
        while not made.finished:
            time.sleep(arguments.every)
            now = signature(paths)
            if now != seen:
                seen = now
                made = _write(paths, out, arguments, refresh=arguments.every)
                steps = ", ".join(f"{run.path.name} step {run.steps}" for run in made.runs if not run.finished)
                print(f"{datetime.now():%H:%M:%S} written: {steps or 'all runs are finished'}", flush=True)
    except KeyboardInterrupt:
        _write(paths, out, arguments, refresh=None)
        print(f"no longer watching; {out} no longer reloads itself")
    return 0


def _print(made: Report, out: Path) -> None:
    runs = len(made.runs)
    seeds = "" if runs == len(made.series) else f" in {len(made.series)} series"
    print(f"report: {out} ({os.path.getsize(out) / 1e6:.2f} MB): {runs} run{'s' * (runs > 1)}{seeds}")
    for section in made.sections:
        print(f"  {section.title}: {', '.join(chart.title for chart in section.charts)}")
    print(f"  Sample rollouts: {len(made.samples.records)}")
    for run in made.runs:
        for note in run.notes:
            print(f"  {run.path}: {note}")
    for one in made.missing:
        print(f"  not there: {one.title}: {one.reason}", flush=True)


def _seconds(word: str) -> float:
    value = float(word)
    if not 1 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"{word} is not between 1 and 3600 seconds")
    return value
