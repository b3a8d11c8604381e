"""A long run, watched from outside: does it need more memory, files or threads the longer it goes on?

The embedded recipe of SC-SDPO in a process of its own, with few questions per step, evaluations and checkpoints. What
it holds is read from ``/proc`` every so often, so only Linux can do this. The first tenth of the steps is warm-up.
Growth is that of a straight line through the memory that the process has written to, in percent of where it begins.
(Pages of libraries count as its own or as shared according to what else runs on the machine: they are only shown.)
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch

from benchmarks.arguments import Settings, parse, setting
from benchmarks.machine import ROOT
from benchmarks.report import table, write_results

HEADER = ("what", "after warm-up", "at the end", "lowest", "highest", "growth of the line", "curve")
BARS = "▁▂▃▄▅▆▇█"
WARM_UP = 0.1
"""Share of the steps that does not count."""
CURVE = 32
"""Points of a curve."""

SAID = "said.txt"
"""What the run has said, beside its folder."""


@dataclass(frozen=True, kw_only=True)
class SoakSettings(Settings):
    """The run, and how it is watched."""

    QUICK: ClassVar[dict[str, Any]] = {"steps": 6, "seconds": 0.2, "evaluate_every": 3, "save_every": 2, "limit": 1e9}

    threads: int = setting(1, "threads of torch in the run")
    steps: int = setting(2000, "of the run")
    recipe: str = setting("sc_sdpo", "embedded recipe")
    questions: int = setting(2, "per step")
    evaluated: int = setting(8, "held-out questions of each evaluation")
    evaluate_every: int = setting(100, "steps between evaluations")
    save_every: int = setting(20, "steps between checkpoints")
    seconds: float = setting(1.0, "between two looks")
    limit: float = setting(2.0, "percent of growth that is too much; exit code 1 then")
    overrides: str = setting("", "of the recipe, separated by blanks")


class Look(NamedTuple):
    """What the process holds at one time."""

    second: float
    step: int
    unique: int
    """Bytes that no other process shares."""
    dirty: int
    """Those of them that were written to."""
    resident: int
    files: int
    threads: int
    folder: int
    """Bytes of the run folder."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, watch, print the table, write the file; 1 if memory or files have grown."""
    settings, run = parse("soak", SoakSettings, __doc__, arguments)
    with tempfile.TemporaryDirectory(prefix="selfdistill-soak-") as place:
        looks = list(watched(settings, Path(place) / "run"))
    found = summary(settings, looks)
    title = (
        f"{settings.steps:,} steps in {looks[-1].second:,.0f} s, {len(looks):,} looks: written memory "
        f"{found['dirty']['growth_percent']:+.2f}%, open files {found['files']['first']:.0f} to "
        f"{found['files']['last']:.0f}"
    )
    print(table(title, HEADER, [row(name, one) for name, one in found.items()]))
    results = {"looks": [look._asdict() for look in looks], "summary": found}
    write_results(run.output, "soak", asdict(settings) | {"run": run.as_data()}, settings.prepare(), results)
    grown = found["dirty"]["growth_percent"] >= settings.limit or found["files"]["last"] > found["files"]["first"]
    return 1 if grown and not run.quick else 0


def watched(settings: SoakSettings, folder: Path) -> Iterator[Look]:
    """Start the run and yield what it holds, until it ends."""
    process = begin(settings, folder)
    began = time.monotonic()
    try:
        while process.poll() is None:
            step = steps_done(folder)
            if step:
                look = looked(process.pid, folder, time.monotonic() - began, step)
                if look is not None:
                    yield look
            time.sleep(settings.seconds)
    finally:
        process.kill()
        process.wait()
    if process.returncode:
        said = (folder.parent / SAID).read_text(encoding="utf-8")
        raise SystemExit(f"the run ended with {process.returncode}: {said[-2000:]}")


def begin(settings: SoakSettings, folder: Path) -> subprocess.Popen[str]:
    """Start the run in a process of its own."""
    overrides = [
        f"train.steps={settings.steps}",
        f"train.questions_per_step={settings.questions}",
        f"train.save_every={settings.save_every}",
        f"train.evaluate_every={settings.evaluate_every}",
        f"train.seed={settings.seed}",
        f"data.eval_limit={settings.evaluated}",
        "evaluation.samples=2",
        f"model.device={settings.device}",
        f"output.folder={folder}",
        *settings.overrides.split(),
    ]
    recipe = str(ROOT / "src" / "selfdistill" / "recipes" / "embedded" / f"{settings.recipe}.yaml")
    own = {"OMP_NUM_THREADS": str(settings.threads), "PYTHONPATH": str(ROOT / "src")}
    # A pipe that nobody reads until the end would stop the run once it is full.
    with (folder.parent / SAID).open("w", encoding="utf-8") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "selfdistill", "train", recipe, *overrides],
            env=os.environ | own,
            cwd=folder.parent,
            stdout=subprocess.DEVNULL,
            stderr=said,
            text=True,
        )


def looked(pid: int, folder: Path, second: float, step: int) -> Look | None:
    """Return what a process holds; None if it is gone."""
    place = Path("/proc") / str(pid)
    try:
        files = len(os.listdir(place / "fd"))
        threads = len(os.listdir(place / "task"))
        # Last, because an ending process gives up its memory first: while it has some, what was counted was all.
        memory = dict(line.split(":") for line in (place / "smaps_rollup").read_text().splitlines()[1:])
    except OSError:
        return None
    if "Rss" not in memory:  # it has ended, and nobody has been told yet
        return None

    def size(name: str) -> int:
        return int(memory[name].split()[0]) * 1024

    unique = size("Private_Clean") + size("Private_Dirty")
    return Look(second, step, unique, size("Private_Dirty"), size("Rss"), files, threads, folder_size(folder))


def folder_size(folder: Path) -> int:
    """Return the bytes of all files; what vanishes meanwhile does not count."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue
    return total


def steps_done(folder: Path) -> int:
    """Return how many steps the run has written down."""
    metrics = folder / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def summary(settings: SoakSettings, looks: Sequence[Look]) -> dict[str, dict[str, Any]]:
    """Return, by what is watched, where it began, ended, and how it grew."""
    counted = [look for look in looks if look.step >= WARM_UP * settings.steps]
    if len(counted) < 2:
        raise SystemExit(f"{len(counted)} looks after the warm-up; take more --steps, or look more often (--seconds)")
    steps = [look.step for look in counted]
    tenth = max(1, len(counted) // 10)
    found = {}
    for name in ("unique", "dirty", "resident", "files", "threads", "folder"):
        values = [float(getattr(look, name)) for look in counted]
        start, end = line_ends(steps, values)
        found[name] = {
            "first": statistics.median(values[:tenth]),
            "last": statistics.median(values[-tenth:]),
            "lowest": min(values),
            "highest": max(values),
            "line": [start, end],
            "growth_percent": 100 * (end - start) / start if start else 0.0,
            "curve": sparkline([float(getattr(look, name)) for look in looks]),
        }
    return found


def line_ends(steps: Sequence[int], values: Sequence[float]) -> tuple[float, float]:
    """Return where a straight line through the points, by least squares, begins and ends."""
    if steps[0] == steps[-1]:
        return values[0], values[-1]
    slope, intercept = statistics.linear_regression(steps, values)
    return intercept + slope * steps[0], intercept + slope * steps[-1]


def sparkline(values: Sequence[float], points: int = CURVE) -> str:
    """Return the values as bars, from the lowest to the highest; neighbours are averaged."""
    count = min(points, len(values))
    edges = [round(index * len(values) / count) for index in range(count + 1)]
    means = [statistics.fmean(values[a:b]) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    span = (high - low) or 1.0
    return "".join(BARS[min(len(BARS) - 1, int((one - low) / span * len(BARS)))] for one in means)


def row(name: str, one: dict[str, Any]) -> list[str]:
    """Return one line of the table."""
    counts = name in ("files", "threads")

    def shown(value: float) -> str:
        return f"{value:.0f}" if counts else f"{value / 1e6:,.1f} MB"

    label = {"unique": "unique memory", "dirty": "of it, written", "resident": "resident memory"}.get(name, name)
    ends = [shown(one[key]) for key in ("first", "last", "lowest", "highest")]
    return [label, *ends, f"{one['growth_percent']:+.2f}%", one["curve"]]


if __name__ == "__main__":
    torch.set_num_threads(1)
    raise SystemExit(main())
