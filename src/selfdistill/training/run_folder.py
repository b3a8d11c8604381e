"""The run folder: resolved recipe, versions, metrics.jsonl, sampled rollouts, checkpoints, evaluations, final model."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from selfdistill import __version__
from selfdistill.errors import TrainingError
from selfdistill.evaluation.result import EvaluationResult
from selfdistill.models import folders

_TEMPORARY = re.compile(r"\..+\.\d+")
"""What :func:`replace_text` writes before it gives a file its name."""
TEACHER = "teacher.json"
"""Beside an evaluation's result: how well student and self-teacher answer."""
PACKAGES = ("torch", "transformers", "peft", "datasets", "math-verify", "tokenizers", "numpy")


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths inside a run folder, and the only code that writes there (checkpoints and the final model apart)."""

    path: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def environment(self) -> Path:
        """Versions, machine and git state of the latest start."""
        return self.path / "environment.json"

    @property
    def metrics(self) -> Path:
        """One JSON object per step."""
        return self.path / "metrics.jsonl"

    @property
    def rollouts(self) -> Path:
        """One JSON object per saved rollout."""
        return self.path / "rollouts.jsonl"

    @property
    def warnings(self) -> Path:
        """One JSON object per warning; absent where there was none."""
        return self.path / "warnings.jsonl"

    @property
    def checkpoints(self) -> Path:
        """``step-000040`` and so on."""
        return self.path / "checkpoints"

    @property
    def final(self) -> Path:
        """The trained model or adapter, for ``from_pretrained``."""
        return self.path / "final"

    @property
    def prior(self) -> Path:
        """Pass rates from before training (PACED), by question id."""
        return self.path / "prior_pass_rates.json"

    @property
    def evaluations(self) -> Path:
        """``step-000040`` and so on, each with generations.jsonl and result.json."""
        return self.path / "evaluations"

    def evaluation(self, step: int) -> Path:
        """Folder of the evaluation after ``step`` steps."""
        return self.evaluations / f"step-{step:06d}"

    @property
    def result(self) -> Path:
        """Written last: a run with it is finished."""
        return self.path / "result.json"

    @property
    def memory(self) -> Path:
        """What was found out about the device's memory."""
        return self.path / "memory.json"

    @property
    def data(self) -> Path:
        """A digest of the questions: a resumed run must find the same ones."""
        return self.path / "data.json"

    def create(self, recipe_yaml: str, data_digest: Mapping[str, Any]) -> None:
        """Make the folder and write what the run depends on.

        Raises:
            TrainingError: if the folder cannot be written, or the run in it was started with other questions.
        """
        if self.data.exists() and _questions(json.loads(self.data.read_text(encoding="utf-8"))) != _questions(
            data_digest
        ):
            raise TrainingError(
                f"the questions are not those that the run in {str(self.path)!r} was started with: a data file has "
                "changed; restore it, or set output.folder to another place"
            )
        with writing(self.path, "set output.folder to a place with room that you may write to"):
            self.path.mkdir(parents=True, exist_ok=True)
            self._sweep()
            replace_text(self.recipe, recipe_yaml)
            write_json(self.environment, environment())
            write_json(self.data, data_digest)

    def _sweep(self) -> None:
        """Remove what a killed run left half-written, checkpoints apart (their folder does that itself)."""
        folders.sweep(self.final)
        for place in (self.path, *self.evaluations.glob("step-*")):
            for path in place.glob(".*"):
                if _TEMPORARY.fullmatch(path.name):
                    path.unlink(missing_ok=True)

    def append(self, file: Path, records: Iterable[Mapping[str, Any]]) -> None:
        """Append JSON lines.

        Raises:
            TrainingError: if that fails; what was written of the last line is dropped when the run is resumed.
        """
        with writing(file, "make room, then go on with --resume"), file.open("a", encoding="utf-8") as stream:
            stream.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)

    def truncate_after(self, step: int) -> None:
        """Drop what a run resumed after ``step`` is going to write again: lines, evaluations, the mark of the end.

        Raises:
            TrainingError: a line is not what this package writes.
        """
        for file in (self.metrics, self.rollouts, self.warnings):
            if file.exists():
                kept = [line for number, line in _whole_lines(file) if _step_of(line, file, number) <= step]
                replace_text(file, "".join(kept))
        for done in self.evaluated_steps():
            if done > step:
                shutil.rmtree(self.evaluation(done), ignore_errors=True)
        self.result.unlink(missing_ok=True)

    def read_metrics(self) -> Iterator[dict[str, Any]]:
        """Yield the metrics of every step."""
        return _records(self.metrics)

    def read_warnings(self) -> Iterator[dict[str, Any]]:
        """Yield the warnings so far."""
        return _records(self.warnings)

    def evaluated_steps(self) -> list[int]:
        """Return the steps that have an evaluation, finished or not."""
        names = (path.name.removeprefix("step-") for path in self.evaluations.glob("step-*"))
        return sorted(int(name) for name in names if name.isdigit())

    def read_evaluations(self) -> dict[int, EvaluationResult]:
        """Return the finished evaluations by step."""
        files = {step: self.evaluation(step) / "result.json" for step in self.evaluated_steps()}
        return {
            step: EvaluationResult.from_json(json.loads(file.read_text(encoding="utf-8")))
            for step, file in files.items()
            if file.exists()
        }


def _questions(data_digest: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a resumed run must find again: a source may have moved on around the questions that are used."""
    return {name: value for name, value in data_digest.items() if name != "revisions"}


def environment() -> dict[str, Any]:
    """Return versions, machine and git state, as far as they can be found out."""
    versions = {"selfdistill": __version__}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions,
        "git": git_state(),
    }


def git_state() -> dict[str, Any] | None:
    """Return the commit of the current folder and whether it has changes; None outside a repository."""
    try:
        commit = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain")
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit.strip(), "changed": bool(changed.strip())}


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=True).stdout


@contextmanager
def writing(path: Path, remedy: str) -> Iterator[None]:
    """Turn what the system says about ``path`` into one sentence.

    Raises:
        TrainingError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise TrainingError(f"{str(path)!r} cannot be written ({error.strerror or error}); {remedy}") from None


def write_json(path: Path, data: Any) -> None:
    """Write JSON so that a reader never sees half of it.

    Raises:
        TrainingError: if that fails; the file is then as it was.
    """
    replace_text(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Write ``text`` beside ``path``, then move it into place.

    Raises:
        TrainingError: if that fails; the file is then as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with writing(path, "make room, then run the same command again"):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _whole_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Yield numbered lines that were written to their end; a run that was killed may leave a part of the last one.

    Lines end at newlines only: ``str.splitlines`` would also cut at characters that a response may contain.
    """
    *whole, _ = file.read_bytes().split(b"\n")
    for number, line in enumerate(whole, start=1):
        yield number, line.decode("utf-8", errors="replace") + "\n"


def _records(file: Path) -> Iterator[dict[str, Any]]:
    if file.exists():
        for _, line in _whole_lines(file):
            yield json.loads(line)


def _step_of(line: str, file: Path, number: int) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        raise TrainingError(f"{file} line {number} is not a step's record; remove that line, then resume") from None
