"""Runs as processes: several at a time, each with its share of the machine and a log of its own; resumable."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

from selfdistill.doctor import available_cores
from selfdistill.errors import RecipeError, TrainingError
from selfdistill.evaluation.result import EvaluationResult
from selfdistill.training.progress import Progress
from selfdistill.training.recipe import Recipe, describe_changes, differing_settings, parse_recipe, resume_conflicts
from selfdistill.training.recipe_file import read_yaml
from selfdistill.training.run_folder import RunFolder

POLL_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Cost:
    """What a finished run took."""

    steps: int
    rollout_tokens: int
    """Tokens sampled for training, evaluations apart."""
    seconds_per_step: float
    """On this machine, with what else ran on it."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A job that ended without its result."""

    job: Job
    reason: str
    """One sentence, with the log and how to go on."""


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
        """Whether its result is there: at the steps, or tokens, that are asked for, or where a warning ended it."""
        summary = self._summary()
        if summary is None:
            return False
        if self.steps == 0:
            return True
        done, sampled = summary["step"], summary.get("rollout_tokens", 0)
        over = bool(summary.get("stopped_early")) or self.recipe.train.ends_after(done, sampled)
        return bool(done <= self.steps and over)

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

    def done_tokens(self) -> int:
        """Return how many tokens of its budget the run has sampled, as its last step says."""
        budget, metrics = self.recipe.train.rollout_tokens, RunFolder(self.folder).metrics
        lines = metrics.read_bytes().split(b"\n")[:-1] if metrics.exists() else []
        return min(budget or 0, json.loads(lines[-1])["rollout_tokens"]) if lines else 0

    def cost(self) -> Cost:
        """Return what the finished run took, from its result and what it has logged."""
        text = RunFolder(self.folder).metrics.read_text(encoding="utf-8")
        steps = [json.loads(line) for line in text.split("\n") if line]
        seconds = sum(float(step["seconds/step"]) for step in steps) / len(steps)
        summary = self._summary() or {}
        # A run of before tokens were counted: what each step sampled. SFT samples nothing, and has no pass rate.
        sampled = sum(step["rollouts"] * step["response_length"] for step in steps if "pass_rate" in step)
        return Cost(len(steps), round(summary.get("rollout_tokens", sampled)), seconds)

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


def run_jobs(
    jobs: Sequence[Job], parallel: int, progress: Progress, *, keep_going: bool = False
) -> tuple[Failure, ...]:
    """Run what is not finished, ``parallel`` at a time, each in a process of its own with its share of the machine.

    Most steps first: short jobs fill the gaps at the end, when there are fewer jobs than places.

    Args:
        jobs: what to run; finished ones are left alone.
        parallel: most processes at a time.
        progress: where to show it.
        keep_going: let the others run to their end when one fails.

    Returns:
        The jobs that failed: none, unless ``keep_going``.

    Raises:
        TrainingError: a job failed; the others were stopped after the step that was going on, and can be resumed.
    """
    waiting = sorted((job for job in jobs if not job.finished), key=lambda job: -job.steps)
    if len(waiting) < len(jobs):
        progress.message(f"{len(jobs) - len(waiting)} of {len(jobs)} runs are finished already")
    if frozenset.intersection(*(job.engines for job in jobs)):
        parallel = 1  # they take turns, each with all cores
    places = Places(min(parallel, len(jobs)))
    running: dict[subprocess.Popen[bytes], Job] = {}
    failures: list[Failure] = []
    shown = told = 0
    work = _work(jobs)
    with progress.phase("runs", work.total, unit=work.unit), _terminable():
        try:
            while waiting or running:
                while len(running) < parallel and (job := next_job(waiting, running.values())):
                    waiting.remove(job)
                    try:
                        running[_start(job, places.take(job))] = job
                        progress.message(f"started {job.label}")
                    except TrainingError as error:
                        places.free(job)
                        failures.append(Failure(job, str(error)))
                time.sleep(POLL_SECONDS)
                for process in [process for process in running if process.poll() is not None]:
                    job = running.pop(process)
                    places.free(job)
                    if failure := _failure(process, job):
                        failures.append(failure)
                    else:
                        progress.message(f"finished {job.label}: {job.result()}")
                if failures and not keep_going:
                    raise TrainingError(failures[0].reason)
                for failure in failures[told:]:
                    progress.message(f"failed: {failure.reason}")
                told = len(failures)
                done = sum(map(work.done, jobs))
                progress.advance(done - shown)
                shown = done
        finally:
            _stop(running, progress)
    return tuple(failures)


@dataclass(frozen=True, slots=True)
class _Work:
    """What the progress of several jobs is counted in."""

    unit: str
    total: int
    done: Callable[[Job], int]


def _work(jobs: Sequence[Job]) -> _Work:
    """Count steps; or tokens, where a budget of tokens ends every run long before its last step."""
    budgets = [job.recipe.train.rollout_tokens for job in jobs if job.steps]
    if budgets and None not in budgets:
        return _Work("rollout tokens", sum(budget or 0 for budget in budgets), Job.done_tokens)
    return _Work("steps", sum(job.steps for job in jobs), Job.done_steps)


class Places:
    """Where jobs run: each gets its share of the cores and, where there are several GPUs, one of them."""

    def __init__(self, count: int) -> None:
        """``count``: most jobs at a time."""
        self._cores = str(max(1, available_cores() // max(1, count)))
        self._devices = visible_devices()
        self._taken: dict[str, int] = {}

    def take(self, job: Job) -> dict[str, str]:
        """Return the environment of a job that is about to start."""
        place = next(number for number in range(len(self._taken) + 1) if number not in self._taken.values())
        self._taken[job.label] = place
        own = {"OMP_NUM_THREADS": self._cores, **os.environ, "PYTHONUNBUFFERED": "1"}
        if len(self._devices) > 1:
            own["CUDA_VISIBLE_DEVICES"] = self._devices[place % len(self._devices)]
        return own

    def free(self, job: Job) -> None:
        """Give a job's place to the next one."""
        self._taken.pop(job.label, None)


def visible_devices() -> list[str]:
    """Return the names of the GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` wants them."""
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip()]
    return [str(number) for number in range(torch.cuda.device_count())]


def next_job(waiting: Sequence[Job], running: Iterable[Job]) -> Job | None:
    """Return the first waiting job that needs no engine which a running one has; None: wait."""
    taken = {engine for job in running for engine in job.engines}
    return next((job for job in waiting if taken.isdisjoint(job.engines)), None)


def _start(job: Job, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("ab") as log:
        _lock(log, job)
        # A process group of its own: Ctrl-C reaches us alone, and we ask each run once to stop after its step.
        return subprocess.Popen(
            job.command(),
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment,
            process_group=0,
        )


def _lock(log: IO[bytes], job: Job) -> None:
    """Lock the log for as long as the job has it open: two processes must not write into one run folder.

    Raises:
        TrainingError: another process is at it, started from here or from another machine.
    """
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise TrainingError(
            f"{job.label} is being run by another process (log: {job.log}); wait for it, or add --collect for a table "
            "of what is finished"
        ) from None
    except OSError:  # a file system without locks
        return


def _failure(process: subprocess.Popen[bytes], job: Job) -> Failure | None:
    """Return what went wrong with a process that has ended; None: its job is finished."""
    if process.returncode == 0 and job.finished:
        return None
    log = job.log.read_text(encoding="utf-8", errors="replace").splitlines()
    said = next((line.strip() for line in reversed(log) if line.strip()), "it printed nothing")
    return Failure(
        job,
        f"{job.label} ended with exit code {process.returncode}: {said.removeprefix('selfdistill: ')} "
        f"(log: {job.log}); what is done is kept, and the same command goes on from there",
    )


def _stop(running: dict[subprocess.Popen[bytes], Job], progress: Progress) -> None:
    """Ask what is still running to stop after its step, and wait for it; an interruption meanwhile ends it at once."""
    if not running:
        return
    for process in running:  # before anything is said: who reads along may be gone
        process.terminate()
    names = ", ".join(job.label for job in running.values())
    progress.message(f"stopping after the current step: {names}; the same command goes on from there")
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
