"""Comparing recipes: every recipe with every seed as a run of its own, then one table with intervals. Finished runs are kept, interrupted ones go on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfdistill.errors import RecipeError, TrainingError
from selfdistill.evaluation.compare import Comparison, compare_results, pooled
from selfdistill.evaluation.result import EvaluationResult, percent
from selfdistill.training.progress import Progress
from selfdistill.training.recipe import Recipe, load_recipe
from selfdistill.training.run_folder import RunFolder, replace_text, write_json

POLL_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Job:
    """One run of the matrix, or the evaluation of an untrained model."""

    label: str
    folder: Path
    recipe_path: str
    overrides: tuple[str, ...]
    steps: int
    """0: evaluate only."""

    @property
    def finished(self) -> bool:
        """Whether its result is there."""
        return RunFolder(self.folder).result.exists()

    def command(self) -> list[str]:
        """Return the command line that runs it."""
        arguments = [self.recipe_path, *self.overrides, f"output.folder={self.folder}"]
        start = [sys.executable, "-m", "selfdistill"]
        if self.steps == 0:
            return [*start, "evaluate", *arguments, "--out", str(self.folder)]
        resume = ["--resume"] if RunFolder(self.folder).recipe.exists() else []
        return [*start, "train", *arguments, *resume]

    def done_steps(self) -> int:
        """Count the steps that the run has logged."""
        metrics = RunFolder(self.folder).metrics
        return metrics.read_bytes().count(b"\n") if metrics.exists() else 0

    def result(self) -> EvaluationResult:
        """Return the evaluation after the last step."""
        summary = json.loads(RunFolder(self.folder).result.read_text(encoding="utf-8"))
        evaluations: dict[str, Any] = summary["evaluations"]
        if not evaluations:
            raise TrainingError(f"run {str(self.folder)!r} has no evaluation; its recipe has no held-out questions (data.eval)")
        return EvaluationResult.from_json(evaluations[max(evaluations, key=int)])


@dataclass(frozen=True, slots=True)
class Line:
    """One row of the table."""

    label: str
    results: tuple[EvaluationResult, ...]
    """One per seed."""
    against_base: Comparison | None
    steps: int
    folders: tuple[Path, ...]


def compare(
    recipe_paths: Sequence[str], overrides: Sequence[str], *, seeds: int, jobs: int, out: Path, progress: Progress
) -> list[Line]:
    """Run every recipe with seeds 0 .. ``seeds`` - 1, ``jobs`` at a time, below ``out``; write ``table.md`` and ``table.json`` there.

    Raises:
        SelfDistillError: a recipe is wrong, recipes evaluate on different questions, or a run failed (its log is named; the other runs are kept).
    """
    recipes = {path: load_recipe(path, overrides) for path in recipe_paths}
    _check_comparable(recipes)
    base = _base_job(recipe_paths[0], overrides, out)
    matrix = {
        path: [_run_job(path, recipe, overrides, seed, out) for seed in range(seeds)] for path, recipe in recipes.items()
    }
    run_jobs([base, *(job for own in matrix.values() for job in own)], jobs, progress)
    base_result = base.result()
    lines = [Line("base", (base_result,), None, 0, (base.folder,))]
    for path, own in matrix.items():
        results = tuple(job.result() for job in own)
        against = compare_results(base_result, results)
        lines.append(Line(recipes[path].name, results, against, recipes[path].train.steps, tuple(job.folder for job in own)))
    replace_text(out / "table.md", table(lines))
    write_json(out / "table.json", [as_json(line) for line in lines])
    return lines


def run_jobs(jobs: Sequence[Job], parallel: int, progress: Progress) -> None:
    """Run what is not finished, ``parallel`` at a time, each in a process of its own with its share of the cores.

    Raises:
        TrainingError: a job failed; the others were ended and can be resumed.
    """
    waiting = [job for job in jobs if not job.finished]
    skipped = len(jobs) - len(waiting)
    if skipped:
        progress.message(f"{skipped} of {len(jobs)} runs are finished already")
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // parallel)), "PYTHONUNBUFFERED": "1"}
    running: dict[subprocess.Popen[bytes], Job] = {}
    total = sum(job.steps for job in jobs)
    shown = 0
    with progress.phase("runs", total, unit="steps"):
        try:
            while waiting or running:
                while waiting and len(running) < parallel:
                    job = waiting.pop(0)
                    running[_start(job, environment)] = job
                    progress.message(f"started {job.label}")
                time.sleep(POLL_SECONDS)
                for process in [process for process in running if process.poll() is not None]:
                    _check_ended(process, running.pop(process), progress)
                done = sum(job.done_steps() for job in jobs)
                progress.advance(done - shown)
                shown = done
        finally:
            for process in running:
                process.terminate()
            for process in running:
                process.wait()


def table(lines: Sequence[Line]) -> str:
    """Return the comparison as a Markdown table."""
    samples = lines[0].results[0].samples
    rows = [
        f"| run | avg@{samples}, % | maj@{samples}, % | against base, points | seeds | steps | tokens per response |",
        "|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        gain = line.against_base
        change = "" if gain is None else f"{100 * gain.avg.mean:+.1f} [{100 * gain.avg.low:+.1f}, {100 * gain.avg.high:+.1f}]"
        length = sum(result.mean_length for result in line.results) / len(line.results)
        cells = [
            line.label,
            percent(pooled(line.results, "avg")),
            percent(pooled(line.results, "maj")),
            change,
            str(len(line.results)),
            str(line.steps),
            f"{length:.1f}",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    problems = lines[0].results[0].problems
    rows.append(f"\n{problems} held-out problems; brackets are 95% bootstrap intervals over problems (and over seeds where there are several).")
    return "\n".join(rows) + "\n"


def as_json(line: Line) -> dict[str, Any]:
    """Return a line without its per-problem outcomes, which stay in the run folders."""
    return {
        "run": line.label,
        "steps": line.steps,
        "seeds": len(line.results),
        "avg": _interval(line, "avg"),
        "maj": _interval(line, "maj"),
        "per_seed_avg": [result.avg.mean for result in line.results],
        "against_base": line.against_base.to_json() if line.against_base else None,
        "folders": [str(folder) for folder in line.folders],
    }


def _interval(line: Line, metric: Any) -> dict[str, float]:
    interval = pooled(line.results, metric)
    return {"mean": interval.mean, "low": interval.low, "high": interval.high}


def _base_job(path: str, overrides: Sequence[str], out: Path) -> Job:
    return Job("base", out / "base", path, tuple(overrides), steps=0)


def _run_job(path: str, recipe: Recipe, overrides: Sequence[str], seed: int, out: Path) -> Job:
    own = (*overrides, f"train.seed={seed}", "train.evaluate_first=false")
    return Job(f"{recipe.name} seed {seed}", out / f"{recipe.name}-seed{seed}", path, own, recipe.train.steps)


def _check_comparable(recipes: dict[str, Recipe]) -> None:
    names: dict[str, str] = {}
    for path, recipe in recipes.items():
        if recipe.name in names:
            raise RecipeError(f"{path} and {names[recipe.name]} are both named {recipe.name!r}; give one of them another `name:`")
        names[recipe.name] = path
    first_path, first = next(iter(recipes.items()))
    for path, recipe in recipes.items():
        for section in ("model", "data", "evaluation"):
            mine, theirs = getattr(recipe, section), getattr(first, section)
            if section == "model":
                mine, theirs = mine.path, theirs.path
            if mine != theirs:
                raise RecipeError(f"{path} and {first_path} differ in their {section} section, so their results could not be compared; make it equal")


def _start(job: Job, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    with _log(job).open("wb") as log:
        return subprocess.Popen(job.command(), stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment)


def _check_ended(process: subprocess.Popen[bytes], job: Job, progress: Progress) -> None:
    if process.returncode == 0 and job.finished:
        progress.message(f"finished {job.label}: {job.result()}")
        return
    log = _log(job).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    reason = next((line for line in reversed(log) if line.strip()), "no output")
    raise TrainingError(f"{job.label} ended with exit code {process.returncode}: {reason} (log: {_log(job)}); the same command goes on from here")


def _log(job: Job) -> Path:
    return job.folder.with_name(f"{job.folder.name}.log")
