"""Reading a checkpoint without its run: on one process, in CPU memory, however many processes and GPUs wrote it."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from selfdistill.checkpoints.folder import OLD_STATE
from selfdistill.checkpoints.manifest import STATE, Manifest, check_digests, check_sizes, put_back, read_manifest
from selfdistill.checkpoints.shards import Shard
from selfdistill.checkpoints.state import OPTIMIZER, TEACHER, WEIGHTS, TrainState, restore, targets
from selfdistill.checkpoints.storage import describe, read_shards
from selfdistill.errors import TrainingError
from selfdistill.teachers.weights import trainable

UNREADABLE = (
    OSError,
    RuntimeError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    EOFError,
    AssertionError,
    ImportError,
    pickle.PickleError,
)
"""What torch and pickle raise for files that are cut short, overwritten, or of another program."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a checkpoint holds."""

    manifest: Manifest
    tensors: dict[str, Tensor]
    """Whole, in CPU memory, by name in the checkpoint."""

    @property
    def weights(self) -> dict[str, Tensor]:
        """The trained parameters by name, as the optimizer holds them."""
        return _below(WEIGHTS, self.tensors)

    @property
    def teacher(self) -> dict[str, Tensor]:
        """The teacher's own weights by parameter name."""
        return _below(TEACHER, self.tensors)

    @property
    def moments(self) -> dict[str, Tensor]:
        """What the optimizer knows, by ``parameter/moment``."""
        return _below(OPTIMIZER, self.tensors)


def read_checkpoint(path: Path, beginnings: tuple[str, ...] = (WEIGHTS, OPTIMIZER, TEACHER)) -> Checkpoint:
    """Return the checkpoint at ``path``, with the tensors whose names begin so.

    Raises:
        TrainingError: it is damaged, incomplete or of another program.
    """
    try:
        manifest = read_manifest(path)
        check_sizes(path, manifest)
        check_digests(path, manifest)
        metadata, described = describe(path)
        whole = {
            name: Shard(torch.empty(one.size, dtype=one.dtype), one.size, (0,) * len(one.size))
            for name, one in described.items()
            if name.startswith(beginnings)
        }
        read_shards(path, metadata, whole)
    except UNREADABLE as error:
        raise TrainingError(
            f"the checkpoint {str(path)!r} cannot be used ({reason(error)}); take another one, or restore it from a "
            "copy"
        ) from None
    return Checkpoint(manifest, {name: shard.local for name, shard in whole.items()})


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the trained parameters of a checkpoint by name, also of one that version 0.1.0 wrote.

    Raises:
        TrainingError: as :func:`read_checkpoint`.
    """
    if (path / STATE).exists() or not (path / OLD_STATE).exists():
        return read_checkpoint(path, (WEIGHTS,)).weights
    try:
        weights: dict[str, Tensor] = _read_old(path)["model"]
    except UNREADABLE as error:
        raise TrainingError(
            f"the checkpoint {str(path)!r} cannot be used ({reason(error)}); take another one"
        ) from None
    return weights


@torch.no_grad()
def put_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give ``model`` trained parameters, rounded to its dtype.

    Raises:
        ValueError: they are another model's.
    """
    parameters = trainable(model)
    unmatched = parameters.keys() ^ weights.keys()
    if unmatched:
        raise ValueError(f"it is of another model: see {min(unmatched)!r}")
    for name, value in weights.items():
        if parameters[name].shape != value.shape:
            raise ValueError(f"it is of another model: {name!r} is {list(value.shape)}")
        parameters[name].copy_(value)


def load_state(state: TrainState, path: Path) -> None:
    """Put the checkpoint at ``path`` into ``state``, on one process. The folder is left as it is: its run may go on.

    Raises:
        TrainingError: it is damaged, or of another model or teacher. ``state`` is of no more use then.
    """
    try:
        if not (path / STATE).exists():
            load_old(state, path)
            return
        manifest = read_manifest(path)
        check_sizes(path, manifest)
        check_digests(path, manifest)
        metadata, described = describe(path)
        parts = targets(state, described)
        read_shards(path, metadata, parts)
    except UNREADABLE as error:
        raise TrainingError(
            f"the checkpoint {str(path)!r} cannot be used ({reason(error)}); take another one, or restore it from a "
            "copy"
        ) from None
    restore(state, parts)
    put_back(manifest, state)


def load_old(state: TrainState, path: Path) -> None:
    """Put a checkpoint of version 0.1.0, a single file of one process, into ``state``.

    Raises:
        one of UNREADABLE: it is damaged or of another model. ``state`` is of no more use then.
    """
    content = _read_old(path)
    put_weights(state.model, content["model"])
    state.optimizer.load_state_dict(content["optimizer"])
    if state.teacher is not None:
        state.teacher.load_state_dict(content["teacher"])
    state.step, state.bad_steps = content["step"], content["bad_steps"]
    state.skipped_updates, state.rollout_tokens = content["skipped_updates"], content["rollout_tokens"]
    state.successes.load_state_dict(content["successes"])


def reason(error: BaseException) -> str:
    """Return the first line of what torch or the system says."""
    text = (getattr(error, "strerror", None) or str(error)).strip() or type(error).__name__
    return text.splitlines()[0][:200]


def _read_old(path: Path) -> Any:
    return torch.load(path / OLD_STATE, map_location="cpu", weights_only=True)


def _below(beginning: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(beginning): value for name, value in tensors.items() if name.startswith(beginning)}
