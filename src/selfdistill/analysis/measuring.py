"""Measure a run after the fact, from its newest checkpoint, into ``analysis/`` of its folder, for the report."""

from __future__ import annotations

from pathlib import Path

from selfdistill.analysis.divergences import study
from selfdistill.analysis.subject import open_subject
from selfdistill.checkpoints import CheckpointFolder
from selfdistill.training.progress import Progress
from selfdistill.training.recipe import load_recipe
from selfdistill.training.run_folder import RunFolder, write_json

DIVERGENCES = Path("analysis") / "divergences.json"
"""Where SC-SDPO's four measures of a run are kept, below its folder."""


def measurable(run: Path) -> str | None:
    """Return why a run's divergences cannot be measured; None: they can, as far as its folder tells."""
    folder = RunFolder(run)
    if not folder.recipe.exists():
        return "it has no recipe.yaml"
    if load_recipe(folder.recipe).method.distillation is None:
        return "its method has no self-teacher"
    return None if CheckpointFolder(folder.checkpoints).steps() else "it has no checkpoint"


def measure_divergences(run: Path, questions: int, progress: Progress | None = None) -> Path:
    """Write SC-SDPO's four measures for the newest checkpoint of a run and return the file.

    Args:
        run: the run folder, which may still be going on.
        questions: training questions whose rollouts are drawn and scored.
        progress: where to show what goes on.

    Raises:
        SelfDistillError: there is no such run or checkpoint, its model cannot be loaded, or its method has no teacher.
    """
    with open_subject(str(run), progress=progress) as subject:
        found = study(subject, questions)
    write_json(run / DIVERGENCES, found)
    return run / DIVERGENCES
