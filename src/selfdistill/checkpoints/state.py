"""What changes while a run goes on, and the named tensors that stand for it in a checkpoint.

Names are those of the parameters, whatever the number of processes: ``weights/<parameter>`` are the values that the
optimizer updates (the float32 copies where the model is bf16), ``optimizer/<parameter>/<moment>`` is what it knows of
each, ``teacher/<parameter>`` the teacher's own weights. Random streams are addressed by name and step
(:mod:`selfdistill.randomness`), the learning rate is a function of the step, and the data order a function of the seed;
so the step number stands for generators, schedule and data position.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from selfdistill.checkpoints.shards import Description, Shard, empty_shard, shard_of
from selfdistill.contexts.success_buffer import SuccessBuffer
from selfdistill.teachers.self_teacher import SelfTeacher
from selfdistill.teachers.weights import trainable

WEIGHTS, OPTIMIZER, TEACHER = "weights/", "optimizer/", "teacher/"
"""Beginnings of the tensors' names."""


@dataclass(slots=True)
class TrainState:
    """What changes while a run goes on."""

    model: nn.Module
    optimizer: Optimizer
    teacher: SelfTeacher | None
    step: int = 0
    """Steps done, skipped ones included."""
    bad_steps: int = 0
    """Steps in a row with an update that was skipped because loss or gradient was not finite."""
    skipped_updates: int = 0
    """All updates that were skipped."""
    rollout_tokens: int = 0
    """Sampled for training so far; PACED's pass before it included, evaluations not."""
    successes: SuccessBuffer = field(default_factory=SuccessBuffer)
    """What solved a question in earlier steps."""
    pass_rates: dict[str, float] = field(default_factory=dict)
    """PACED's, of before training, by question id."""
    prior_tokens: int = 0
    """Sampled for those."""
    run_ids: dict[str, str] = field(default_factory=dict)
    """What the run is called in each tracker, by the tracker's name."""


def shards(state: TrainState) -> dict[str, Shard]:
    """Return this process's parts of all tensors of a checkpoint. They are views: the next step changes them."""
    return {name: shard_of(tensor) for name, tensor in _tensors(state)}


@torch.no_grad()
def targets(state: TrainState, saved: Mapping[str, Description]) -> dict[str, Shard]:
    """Return empty parts in CPU memory for what a checkpoint holds, divided as ``state`` is.

    Raises:
        ValueError: it is of another model, or of a run with another teacher.
    """
    wanted = {name: shard_of(tensor) for name, tensor in _lasting(state)}
    held = _held(state)
    for name, description in saved.items():
        if not name.startswith(OPTIMIZER):
            continue
        parameter = name.removeprefix(OPTIMIZER).rpartition("/")[0]
        if parameter not in held:
            raise ValueError(f"it is of another model: this one does not train {parameter!r}")
        scalar = not description.size
        wanted[name] = Shard(torch.empty(()), (), ()) if scalar else shard_of(held[parameter])
        wanted[name] = wanted[name].with_dtype(description.dtype)
    unmatched = wanted.keys() ^ saved.keys()
    if unmatched:
        name = min(unmatched)
        side = "which it lacks" if name in wanted else "which it alone has"
        raise ValueError(f"it is of another model or another teacher: see {name!r}, {side}")
    for name, shard in wanted.items():
        if shard.size != saved[name].size:
            raise ValueError(f"it is of another model: {name!r} is {list(saved[name].size)}, not {list(shard.size)}")
    return {name: empty_shard(shard) for name, shard in wanted.items()}


@torch.no_grad()
def restore(state: TrainState, saved: Mapping[str, Shard]) -> None:
    """Put what was read into the parts of :func:`targets` into ``state``: model, optimizer and teacher."""
    for name, tensor in _lasting(state):
        shard_of(tensor).local.copy_(saved[name].local)
    held, parameters = _held(state), trainable(state.model)
    for name, parameter in parameters.items():
        if held[name] is not parameter:
            parameter.copy_(held[name])
    moments: dict[str, dict[str, Shard]] = {name: {} for name in held}
    for name, shard in saved.items():
        if name.startswith(OPTIMIZER):
            owner, _, moment = name.removeprefix(OPTIMIZER).rpartition("/")
            moments[owner][moment] = shard
    for name, own in moments.items():
        state.optimizer.state.pop(held[name], None)
        if own:
            state.optimizer.state[held[name]] = {
                moment: _moment(state.optimizer, held[name], shard) for moment, shard in own.items()
            }


def _moment(optimizer: Optimizer, parameter: Tensor, saved: Shard) -> Tensor:
    """Return what the optimizer itself would hold: divided like the parameter, or a number where it wants numbers."""
    if not saved.size:
        group = next(one for one in optimizer.param_groups if any(own is parameter for own in one["params"]))
        on_device = group.get("fused") or group.get("capturable")
        return saved.local.to(parameter.device if on_device else "cpu", copy=True)
    value = torch.zeros_like(parameter, dtype=saved.local.dtype, requires_grad=False)
    shard_of(value).local.copy_(saved.local)
    return value


def _tensors(state: TrainState) -> Iterator[tuple[str, Tensor]]:
    yield from _lasting(state)
    for name, held in _held(state).items():
        for moment, value in state.optimizer.state.get(held, {}).items():
            yield f"{OPTIMIZER}{name}/{moment}", value


def _lasting(state: TrainState) -> Iterator[tuple[str, Tensor]]:
    """Yield what there is from the first step on: an optimizer makes its moments when it first needs them."""
    for name, held in _held(state).items():
        yield f"{WEIGHTS}{name}", held
    for name, value in ({} if state.teacher is None else state.teacher.weights).items():
        yield f"{TEACHER}{name}", value


def _held(state: TrainState) -> dict[str, Tensor]:
    """Return, by parameter name, what the optimizer updates: the float32 copy, or the parameter itself."""
    copies = {id(parameter): copy for parameter, copy in getattr(state.optimizer, "_copies", ())}
    return {name: copies.get(id(parameter), parameter) for name, parameter in trainable(state.model).items()}
