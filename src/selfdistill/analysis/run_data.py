"""What a run folder holds, for reports: metrics, evaluations, warnings, rollouts. Nothing in the folder is changed.

In: the folder of a run, finished or under way, or of a study. Out: :class:`RunData`. Files that are not there yet are
no error, nor is a last line without its end; a line that cannot be read is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfdistill.errors import DataError, SelfDistillError
from selfdistill.evaluation.result import EvaluationResult
from selfdistill.training.recipe import Recipe, load_recipe
from selfdistill.training.run_folder import RunFolder

Row = Mapping[str, Any]
SIDES = ("student", "teacher", "gap")
"""What a teacher.json has an interval of."""


@dataclass(frozen=True, eq=False)
class RunData:
    """A run as far as it has come."""

    path: Path
    metrics: tuple[Row, ...]
    """One per step, in order."""
    evaluations: Mapping[int, EvaluationResult]
    """By number of steps done."""
    warnings: tuple[Row, ...]
    teachers: Mapping[int, Row]
    """What the privileged prompt is worth (teacher.json), by number of steps done; only where there was one."""
    divergences: Row | None
    """The KL measures by correctness and by pass rate, once they have been made."""
    environment: Row
    recipe: Recipe | None
    """None: not there, or not readable by this version; ``notes`` says which."""
    recipe_text: str
    summary: Row
    """result.json; empty while the run is under way."""
    untrained: bool = False
    """Whether it is an evaluation of the model as it was (a study's base), rather than a training."""
    notes: tuple[str, ...] = field(default=())
    """What could not be used, and why."""

    @property
    def folder(self) -> RunFolder:
        """Where the files are."""
        return RunFolder(self.path)

    @property
    def finished(self) -> bool:
        """Whether it has come to its end."""
        return bool(self.summary)

    @property
    def steps(self) -> int:
        """Steps done."""
        return int(self.metrics[-1]["step"]) if self.metrics else 0

    @property
    def name(self) -> str:
        """What the recipe is called; the folder's name without a recipe."""
        return self.recipe.name if self.recipe and not self.untrained else self.path.resolve().name

    @property
    def seed(self) -> int | None:
        """The training's seed, if known."""
        return self.recipe.train.seed if self.recipe else None

    def metric(self, name: str) -> dict[int, float]:
        """Return a metric by step; nan where it was not finite, nothing for steps that did not log it."""
        found = {int(row["step"]): row[name] for row in self.metrics if name in row}
        return {step: _number(value) for step, value in found.items()}

    def total(self, name: str) -> float:
        """Return the sum of a metric over the steps."""
        return math.fsum(value for value in self.metric(name).values() if math.isfinite(value))

    def rollouts(self) -> Iterator[dict[str, Any]]:
        """Yield the saved training rollouts."""
        yield from read_lines(self.folder.rollouts)

    def generations(self, step: int, questions: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield the responses to ``questions`` in the evaluation after ``step`` steps, as the file has them."""
        marks = tuple(json.dumps(name, ensure_ascii=flag).encode() for name in questions for flag in (False, True))
        place = self.path if self.untrained else self.folder.evaluation(step)
        for row in read_lines(place / "generations.jsonl", holding=marks):
            if row.get("question_id") in questions:
                yield row


def read_run(path: Path) -> RunData:
    """Read the folder of one run.

    Raises:
        DataError: it is not a run folder, or something in it cannot be read.
    """
    folder = RunFolder(path)
    if not path.is_dir():
        raise DataError(f"{str(path)!r} is not a folder; give the folder of a run, for example runs/paint")
    if not _is_run(path):
        raise DataError(f"{str(path)!r} holds neither recipe.yaml nor metrics.jsonl; give the folder of a run or study")
    notes: list[str] = []
    by_step = {_step(row, folder.metrics): row for row in read_lines(folder.metrics)}
    recipe = _recipe(folder.recipe, notes)
    teachers = {step: _with(file, *SIDES) for step, file in _by_step(folder, "teacher.json")}
    summary = _optional(folder.result) or {}
    measured = path / "analysis" / "divergences.json"
    untrained = "outcomes" in summary and not by_step
    return RunData(
        path=path,
        metrics=tuple(by_step[step] for step in sorted(by_step)),
        evaluations={0: _evaluation(folder.result)}
        if untrained
        else {step: _evaluation(file) for step, file in _by_step(folder, "result.json")},
        warnings=tuple(read_lines(path / "warnings.jsonl")),
        teachers={step: row for step, row in teachers.items() if row.get("covered", 1)},
        divergences=_with(measured, "rollouts", "histograms") if measured.is_file() else None,
        environment=_optional(folder.environment) or {},
        recipe=recipe,
        recipe_text=folder.recipe.read_text(encoding="utf-8", errors="replace") if folder.recipe.is_file() else "",
        summary=summary,
        untrained=untrained,
        notes=tuple(notes),
    )


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """Return the run folders among ``paths``, with those of the studies among them, each once.

    Raises:
        DataError: a path is neither a run's folder nor a study's.
    """
    found: list[Path] = []
    for path in paths:
        own = [path] if _is_run(path) else study_runs(path)
        if not own:
            what = "holds no run" if path.is_dir() else "is not a folder"
            raise DataError(f"{str(path)!r} {what}; give the folder of a run or of a study, for example runs/paint")
        found += own
    unique: dict[Path, Path] = {}
    for run in found:
        unique.setdefault(run.resolve(), run)
    return list(unique.values())


def study_runs(path: Path) -> list[Path]:
    """Return the runs of a study: folders below it, or one further below if it has several groups."""
    return sorted(run for pattern in ("*", "*/*") for run in path.glob(pattern) if _is_run(run) and "final" != run.name)


def read_table(path: Path) -> list[Row]:
    """Return the rows of a study's table.json; none if the folder has no table.

    Raises:
        DataError: it is not a table of this package.
    """
    file = path / "table.json"
    if not file.is_file():
        return []
    rows = _read_json(file)
    if not isinstance(rows, list) or not all(isinstance(row, dict) and {"run", "avg"} <= set(row) for row in rows):
        raise DataError(f"{str(file)!r} is not the table of a study; write it again with --collect")
    return rows


def read_lines(file: Path, holding: Sequence[bytes] = ()) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file of JSON lines; a missing file has none, and a last line without its end is left out.

    Args:
        file: read line by line.
        holding: skip lines that hold none of these, unread.

    Raises:
        DataError: naming the file and the line that cannot be read.
    """
    if not file.is_file():
        return
    with file.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.endswith(b"\n"):
                return
            if holding and not any(mark in line for mark in holding):
                continue
            try:
                row = json.loads(line.decode("utf-8", errors="replace"))
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise DataError(f"{str(file)!r} line {number} is not a JSON object; remove that line and try again")
            yield row


def _is_run(path: Path) -> bool:
    folder = RunFolder(path)
    return folder.recipe.is_file() or folder.metrics.is_file()


def _step(row: Row, file: Path) -> int:
    try:
        return int(row["step"])
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{str(file)!r} has a line without a step; remove that line and try again") from None


def _by_step(folder: RunFolder, name: str) -> Iterator[tuple[int, Path]]:
    for step in folder.evaluated_steps():
        if (file := folder.evaluation(step) / name).is_file():
            yield step, file


def _evaluation(file: Path) -> EvaluationResult:
    try:
        return EvaluationResult.from_json(_read_json(file))
    except DataError as error:
        raise DataError(f"{str(file)!r}: {error}") from None


def _recipe(file: Path, notes: list[str]) -> Recipe | None:
    """Return the recipe; one of another version is noted rather than refused, since the numbers do not depend on it."""
    if not file.is_file():
        notes.append("there is no recipe.yaml: runs are told apart by their folders")
        return None
    try:
        return load_recipe(file)
    except SelfDistillError as error:
        notes.append(f"recipe.yaml cannot be used ({error}): the run is told apart by its folder")
        return None


def _optional(file: Path) -> Row | None:
    return _read_json(file) if file.is_file() else None


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{str(file)!r} is not JSON ({error}); remove it or make it again") from None


def _with(file: Path, *fields: str) -> Row:
    """Return a file's object, which has these fields."""
    row = _read_json(file)
    for name in fields:
        if not isinstance(row, dict) or name not in row:
            raise DataError(f"{str(file)!r} has no {name!r}; remove it or make it again")
    return dict(row)


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
