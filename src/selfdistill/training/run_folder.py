"""The run folder: the resolved recipe, versions, metrics.jsonl, sampled rollouts, checkpoints, evaluations, the final model."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from selfdistill.errors import TrainingError
from selfdistill.verifiers.verdict import Group

PACKAGES = ("selfdistill", "torch", "transformers", "peft", "datasets", "math-verify", "tokenizers", "numpy")


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths inside a run folder, and the only code that writes there (checkpoints apart)."""

    path: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def metrics(self) -> Path:
        """One JSON object per step."""
        return self.path / "metrics.jsonl"

    @property
    def rollouts(self) -> Path:
        """One JSON object per saved rollout."""
        return self.path / "rollouts.jsonl"

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

    def evaluation(self, step: int) -> Path:
        """Folder of the evaluation after ``step`` steps."""
        return self.path / "evaluations" / f"step-{step:06d}"

    @property
    def result(self) -> Path:
        """Written last: a run with it is finished."""
        return self.path / "result.json"

    def create(self, recipe_yaml: str) -> None:
        """Make the folder and write what the run depends on.

        Raises:
            TrainingError: if the folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.recipe.write_text(recipe_yaml, encoding="utf-8")
            write_json(self.path / "environment.json", environment())
        except OSError as error:
            raise TrainingError(
                f"run folder {str(self.path)!r} cannot be written ({error.strerror}); set output.folder to a place with room that you may write to"
            ) from None

    def truncate_after(self, step: int) -> None:
        """Drop lines of metrics and rollouts that a resumed run is going to write again."""
        for file in (self.metrics, self.rollouts):
            if file.exists():
                kept = [line for line in _whole_lines(file) if json.loads(line)["step"] <= step]
                replace_text(file, "".join(kept))

    def append(self, file: Path, records: Iterable[Mapping[str, Any]]) -> None:
        """Append JSON lines."""
        with file.open("a", encoding="utf-8") as stream:
            stream.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)

    def append_rollouts(self, step: int, groups: Iterable[Group], shown: Mapping[tuple[str, int], str]) -> None:
        """Append the rollouts of ``groups``; ``shown`` holds what the teacher saw, by (question id, sibling)."""
        self.append(
            self.rollouts,
            (
                {
                    "step": step,
                    "question": rollout.question.id,
                    "sibling": rollout.sibling,
                    "prompt": rollout.question.messages[-1]["content"],
                    "response": rollout.text,
                    "finish_reason": rollout.finish_reason,
                    "reward": verdict.reward,
                    "success": verdict.success,
                    "answer": verdict.answer,
                    "shown": shown.get((rollout.question.id, rollout.sibling)),
                }
                for group in groups
                for rollout, verdict in zip(group.rollouts, group.verdicts, strict=True)
            ),
        )


def environment() -> dict[str, Any]:
    """Return versions, machine and git state, as far as they can be found out."""
    versions = {}
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
    """Return the commit of the folder that the run was started in and whether it has changes; None outside a repository."""
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
        status = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit.stdout.strip(), "changed": bool(status.stdout.strip())}


def write_json(path: Path, data: Any) -> None:
    """Write JSON so that a reader never sees half of it."""
    replace_text(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Write ``text`` beside ``path``, then move it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _whole_lines(file: Path) -> list[str]:
    """Lines that were written to their end; a run that was killed may leave half of the last one."""
    return [line for line in file.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
