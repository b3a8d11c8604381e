"""Going on without being told to: for jobs that are requeued or restarted by somebody who does not look.

In: a recipe, and what its run folder holds. Out: whether there is a run to go on with, or its result if it is finished.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

from selfdistill.training.alarms import Alarm
from selfdistill.training.recipe import Recipe, parse_recipe, resume_conflicts
from selfdistill.training.recipe_file import read_yaml
from selfdistill.training.run import RunResult
from selfdistill.training.run_folder import RunFolder


def is_restart(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun has started this process again after a failure: it cannot change the command."""
    return environment.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def has_run(recipe: Recipe) -> bool:
    """Whether the run folder holds a run to go on with."""
    return RunFolder(recipe.folder).recipe.exists()


def finished_result(recipe: Recipe) -> RunResult | None:
    """Return the result of the run in the folder; None if it is not finished, or was made with other settings.

    A run that was to take fewer steps than ``recipe`` asks for is not finished: it goes on. So does one that a warning
    has ended, if ``recipe`` has other settings of ``warnings``.
    """
    folder = RunFolder(recipe.folder)
    if not (folder.result.exists() and folder.recipe.exists()):
        return None
    before = parse_recipe(read_yaml(folder.recipe), str(folder.recipe))
    if resume_conflicts(before, recipe):
        return None  # going on with it says what is wrong
    summary = json.loads(folder.result.read_text(encoding="utf-8"))
    step, sampled = summary["step"], summary.get("rollout_tokens", 0)
    early = summary.get("stopped_early")
    over = early is not None and before.warnings == recipe.warnings
    if step > recipe.train.steps or not (over or recipe.train.ends_after(step, sampled)):
        return None
    alarm = Alarm.from_json(early) if early else None
    return RunResult(folder.path, step, True, folder.read_evaluations(), alarm, summary.get("best_step"))
