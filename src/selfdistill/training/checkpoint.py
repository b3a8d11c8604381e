"""Checkpoints: everything that a run needs to go on as if it had never stopped.

Random streams are addressed by name and step (:mod:`selfdistill.randomness`), the learning rate is a function of the step, and the data order a function
of the seed; so the step number stands for generators, schedule and data position alike.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from selfdistill.errors import TrainingError
from selfdistill.teachers.self_teacher import SelfTeacher
from selfdistill.teachers.weights import trainable

STATE = "state.pt"


@dataclass(slots=True)
class TrainState:
    """What changes while a run goes on."""

    model: nn.Module
    optimizer: Optimizer
    teacher: SelfTeacher | None
    step: int = 0
    """Steps done."""
    bad_steps: int = 0
    """Steps in a row that were skipped because loss or gradient was not finite."""
    skipped_steps: int = 0
    """All steps that were skipped."""


def save_checkpoint(state: TrainState, folder: Path, keep: int) -> Path:
    """Write ``folder/step-N`` whole or not at all, then remove all but the newest ``keep``.

    Raises:
        TrainingError: if it cannot be written; checkpoints that were there before stay.
    """
    target = folder / f"step-{state.step:06d}"
    temporary = folder / f".step-{state.step:06d}"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        torch.save(_content(state), temporary / STATE)
        shutil.rmtree(target, ignore_errors=True)
        temporary.replace(target)
    except (OSError, RuntimeError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise TrainingError(
            f"checkpoint {str(target)!r} cannot be written ({error}); make room or set output.folder elsewhere, then resume from the checkpoint before"
        ) from None
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def load_checkpoint(state: TrainState, path: Path) -> None:
    """Put the checkpoint at ``path`` into ``state``.

    Raises:
        TrainingError: if it cannot be read or belongs to another model or optimiser.
    """
    try:
        content = torch.load(path / STATE, map_location="cpu", weights_only=True)
        parameters = trainable(state.model)
        if parameters.keys() != content["model"].keys():
            raise KeyError(sorted(parameters.keys() ^ content["model"].keys())[0])
        with torch.no_grad():
            for name, value in content["model"].items():
                parameters[name].copy_(value)
        state.optimizer.load_state_dict(content["optimizer"])
        if state.teacher is not None:
            state.teacher.load_state_dict(content["teacher"])
        state.step, state.bad_steps, state.skipped_steps = content["step"], content["bad_steps"], content["skipped_steps"]
    except (OSError, RuntimeError, KeyError, ValueError, EOFError) as error:
        raise TrainingError(
            f"checkpoint {str(path)!r} cannot be used ({type(error).__name__}: {error}); remove that folder to resume from the one before"
        ) from None


def checkpoints(folder: Path) -> list[Path]:
    """Return the finished checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / STATE).exists())


def _content(state: TrainState) -> dict[str, Any]:
    model: dict[str, Tensor] = {name: parameter.detach() for name, parameter in trainable(state.model).items()}
    return {
        "model": model,
        "optimizer": state.optimizer.state_dict(),
        "teacher": state.teacher.state_dict() if state.teacher is not None else {},
        "step": state.step,
        "bad_steps": state.bad_steps,
        "skipped_steps": state.skipped_steps,
    }
