"""Runs as processes: several at a time, each with its share of the cores and a log of its own; resumable."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from selfdistill.doctor import available_cores
from selfdistill.errors import RecipeError, TrainingError
from selfdistill.evaluation.result import EvaluationResult
from selfdistill.training.progress import Progress
from selfdistill.training.recipe import Recipe, describe_changes, differing_settings, parse_recipe, resume_conflicts
from selfdistill.training.recipe_file import read_yaml
from selfdistill.training.run_folder import RunFolder

POLL_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Job:
    """One run, or the evaluation of an untrained model."""

    label: str
    folder: Path
    recipe_path: str
    overrides: tuple[str, ...]
    recipe: Recipe
    """What ``recipe_path`` and ``overrides`` stand for."""
    steps: int
    """0: evaluate only."""

    @property
    def log(self) -> Path:
        """What the process printed."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def finished(self) -> bool:
        """Whether its result is there, at the number of steps that is asked for."""
        summary = self._summary()
        return summary is not None and (self.steps == 0 or summary["step"] == self.steps)

    @property
    def engines(self) -> frozenset[str]:
        """Engines that it needs for itself: a server has one run's weights at a time."""
        rollouts = self.recipe.rollouts
        match rollouts.engine:
            case "transformers":
                return frozenset()
            case "vllm":
                return frozenset({"vllm in process"})
            case "vllm_server":
                return frozenset(rollouts.server.urls)

    def command(self) -> list[str]:
        """Return the command line that runs it, or goes on with it."""
        start = [sys.executable, "-m", "selfdistill"]
        if self.steps == 0:
            return [*start, "evaluate", self.recipe_path, *self.overrides, "--out", str(self.folder)]
        resume = ["--resume"] if RunFolder(self.folder).recipe.exists() else []
        return [*start, "train", self.recipe_path, *self.overrides, *resume]

    def done_steps(self) -> int:
        """Count the steps that the run has logged."""
        metrics = RunFolder(self.folder).metrics
        return metrics.read_bytes().count(b"\n") if metrics.exists() else 0

    def seconds_per_step(self) -> float:
        """Return the mean of ``seconds/step`` that the run has logged."""
        lines = RunFolder(self.folder).metrics.read_text(encoding="utf-8").splitlines()
        return sum(float(json.loads(line)["seconds/step"]) for line in lines) / len(lines)

    def result(self) -> EvaluationResult:
        """Return the evaluation after the last step.

        Raises:
            TrainingError: there is none.
        """
        summary = self._summary() or {}
        evaluations = summary.get("evaluations", {}) if self.steps else {"0": summary}
        if not evaluations:
            raise TrainingError(
                f"the run in {str(self.folder)!r} was not evaluated, for want of held-out questions; set data.eval"
            )
        return EvaluationResult.from_json(evaluations[max(evaluations, key=int)])

    def check_folder(self, evaluation_settings: tuple[str, ...]) -> None:
        """Refuse a folder with results of other settings: they would be taken for this job's.

        Args:
            evaluation_settings: beginnings of the names of the settings that an evaluation depends on.

        Raises:
            RecipeError: naming the settings.
        """
        file = RunFolder(self.folder).recipe
        if not file.exists():
            return
        before = parse_recipe(read_yaml(file), str(file))
        changed = resume_conflicts(before, self.recipe)
        if self.steps == 0:
            differing = differing_settings(before, self.recipe)
            changed = {name: both for name, both in differing.items() if name.startswith(evaluation_settings)}
        if changed:
            raise RecipeError(
                f"{str(self.folder)!r} holds results of another {describe_changes(changed)}; "
                "choose another --out, or remove that folder"
            )

    def _summary(self) -> dict[str, Any] | None:
        file = RunFolder(self.folder).result
        if not file.exists():
            return None
        summary: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return summary


def run_jobs(jobs: Sequence[Job], parallel: int, progress: Progress) -> None:
    """Run what is not finished, ``parallel`` at a time, each in a process of its own with its share of the cores.

    Most steps first: short jobs fill the gaps at the end, when there are fewer jobs than places.

    Raises:
        TrainingError: a job failed; the others were stopped after the step that was going on, and can be resumed.
    """
    waiting = sorted((job for job in jobs if not job.finished), key=lambda job: -job.steps)
    if len(waiting) < len(jobs):
        progress.message(f"{len(jobs) - len(waiting)} of {len(jobs)} runs are finished already")
    if frozenset.intersection(*(job.engines for job in jobs)):
        parallel = 1  # they take turns, each with all cores
    environment = _environment(min(parallel, len(jobs)))
    running: dict[subprocess.Popen[bytes], Job] = {}
    shown = 0
    with progress.phase("runs", sum(job.steps for job in jobs), unit="steps"), _terminable():
        try:
            while waiting or running:
                while len(running) < parallel and (job := next_job(waiting, running.values())):
                    waiting.remove(job)
                    running[_start(job, environment)] = job
                    progress.message(f"started {job.label}")
                time.sleep(POLL_SECONDS)
                for process in [process for process in running if process.poll() is not None]:
                    _check_ended(process, running.pop(process), progress)
                done = sum(job.done_steps() for job in jobs)
                progress.advance(done - shown)
                shown = done
        finally:
            _stop(running, progress)


def next_job(waiting: Sequence[Job], running: Iterable[Job]) -> Job | None:
    """Return the first waiting job that needs no engine which a running one has; None: wait."""
    taken = {engine for job in running for engine in job.engines}
    return next((job for job in waiting if taken.isdisjoint(job.engines)), None)


def _environment(parallel: int) -> dict[str, str]:
    threads = str(max(1, available_cores() // max(1, parallel)))
    return {"OMP_NUM_THREADS": threads, **os.environ, "PYTHONUNBUFFERED": "1"}


def _start(job: Job, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("ab") as log:
        # A process group of its own: Ctrl-C reaches us alone, and we ask each run once to stop after its step.
        return subprocess.Popen(
            job.command(),
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment,
            process_group=0,
        )


def _check_ended(process: subprocess.Popen[bytes], job: Job, progress: Progress) -> None:
    if process.returncode == 0 and job.finished:
        progress.message(f"finished {job.label}: {job.result()}")
        return
    log = job.log.read_text(encoding="utf-8", errors="replace").splitlines()
    said = next((line.strip() for line in reversed(log) if line.strip()), "it printed nothing")
    raise TrainingError(
        f"{job.label} ended with exit code {process.returncode}: {said.removeprefix('selfdistill: ')} "
        f"(log: {job.log}); what is done is kept, and the same command goes on from there"
    )


def _stop(running: dict[subprocess.Popen[bytes], Job], progress: Progress) -> None:
    """Ask what is still running to stop after its step, and wait for it; an interruption meanwhile ends it at once."""
    if not running:
        return
    names = ", ".join(job.label for job in running.values())
    progress.message(f"stopping after the current step: {names}; the same command goes on from there")
    for process in running:
        process.terminate()
    try:
        for process in running:
            process.wait()
    except KeyboardInterrupt:
        for process in running:
            process.kill()
        raise


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM interrupt the block, as SIGINT does, so that no run is left behind."""

    def interrupt(number: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt

    try:
        previous = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
