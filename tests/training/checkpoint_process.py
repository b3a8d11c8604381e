"""One process of a run that saves and loads checkpoints; tests start it with actions as JSON on its command line.

Weights, gradients and the teacher are small and unequal on purpose: 7, 6, 3 and 1 rows over up to four processes leave
parts of different sizes, and processes without any part.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from selfdistill.checkpoints import Saver, TrainState, folder, saver, storage
from selfdistill.checkpoints.state import shards
from selfdistill.errors import TrainingError
from selfdistill.parallel import World, join
from selfdistill.teachers import SelfTeacher
from selfdistill.teachers.weights import trainable
from selfdistill.training.config import TrainConfig
from selfdistill.training.optimizer import make_optimizer


class Tiny(nn.Module):
    """Never run forward: gradients are made up."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(7, 5)
        self.first = nn.Linear(5, 6)
        self.second = nn.Linear(6, 3, bias=False)
        self.last = nn.Linear(3, 1)
        self.unused = nn.Linear(2, 2)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def make(world: World, seed: int, dtype: str = "float32", replicas: int = 1) -> TrainState:
    """Return a state of this process's part of the model, with a teacher of its own."""
    model = Tiny(seed)
    if world.size > 1:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (replicas, world.size // replicas), mesh_dim_names=("replicate", "shard"))
        fully_shard(model, mesh=mesh)
    else:
        model.to(getattr(torch, dtype))
    weights = {name: parameter.detach().float() * 3 + seed for name, parameter in trainable(model).items()}
    return TrainState(model, make_optimizer(model, TrainConfig(learning_rate=1e-3)), SelfTeacher(model, weights))


def step(state: TrainState) -> None:
    """Take an optimizer step; one layer never gets a gradient."""
    for number, (name, parameter) in enumerate(trainable(state.model).items()):
        if name.startswith("unused"):
            continue
        torch.manual_seed(100 * state.step + number)
        gradient = torch.randn(parameter.shape, dtype=parameter.dtype)
        if isinstance(parameter, DTensor):
            gradient = distribute_tensor(gradient, parameter.device_mesh, parameter.placements)
        parameter.grad = gradient
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.step += 1


def whole(state: TrainState) -> dict[str, Tensor]:
    """Return every tensor of a checkpoint in one piece."""
    from selfdistill.checkpoints.state import _tensors

    found = {name: value.detach() for name, value in _tensors(state)}
    return {name: value.full_tensor() if isinstance(value, DTensor) else value.clone() for name, value in found.items()}


def save(world: World, checkpoints: str, seed: int = 0, steps: int = 2, expected: str = "", **how: Any) -> None:
    """Save after some steps, and go on at once: what is written must be of before."""
    state = make(world, seed, **how)
    for _ in range(steps):
        step(state)
    state.rollout_tokens, state.pass_rates, state.run_ids = 17, {"q": 0.25}, {"wandb": "abc"}
    state.prior_tokens, state.bad_steps, state.skipped_updates = 5, 1, 3
    state.successes.load_state_dict([])
    before = whole(state)
    with_saver = Saver(Path(checkpoints), world, keep=5, warn=say)
    with_saver.save(state)
    step(state)
    with_saver.wait()
    with_saver.close()
    if expected and world.is_main:
        torch.save(before, expected)


def load(world: World, checkpoints: str, expected: str, at: int = 2, **how: Any) -> None:
    """Load into a model with other weights, and compare bit by bit."""
    state = make(world, seed=9, **how)
    step(state)  # so that there are moments to be replaced
    with_saver = Saver(Path(checkpoints), world, keep=5, warn=say)
    assert with_saver.load_newest(state) == at == state.step
    with_saver.close()
    found, wanted = whole(state), torch.load(expected, weights_only=True)
    assert found.keys() == wanted.keys(), found.keys() ^ wanted.keys()
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name
    for name, parameter in trainable(state.model).items():
        value = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        assert torch.equal(value, wanted[f"weights/{name}"].to(value.dtype)), name
    assert (state.rollout_tokens, state.pass_rates, state.run_ids) == (17, {"q": 0.25}, {"wandb": "abc"})
    assert (state.prior_tokens, state.bad_steps, state.skipped_updates) == (5, 1, 3)
    if world.size > 1:
        assert all(isinstance(value, DTensor) for value in state.teacher.weights.values())
        parts = sum(shard.local.numel() for name, shard in shards(state).items() if name.startswith("weights/"))
        assert parts < sum(value.numel() for name, value in wanted.items() if name.startswith("weights/"))
    step(state)  # an optimizer that can go on


def refused(world: World, checkpoints: str, says: str, **how: Any) -> None:
    """Load what cannot be loaded: every process must say why."""
    try:
        Saver(Path(checkpoints), world, warn=say).load_newest(make(world, 9, **how))
    except TrainingError as error:
        assert says in str(error), error
    else:
        raise AssertionError("it was loaded")


def remove(world: World, file: str) -> None:
    """Remove a file."""
    world.main(Path(file).unlink)


def fails_to_write(world: World, checkpoints: str, rank: int) -> None:
    """Let one process's disk be full: all must learn of it."""

    def no_room(*_: object) -> None:
        raise OSError(28, "No space left on device")

    original = storage.HashedFile.write
    if world.rank == rank:
        storage.HashedFile.write = no_room
    state = make(world, 0)
    with_saver = Saver(Path(checkpoints), world, warn=say)
    step(state)
    with_saver.save(state)
    try:
        with_saver.wait()
    except TrainingError as error:
        assert "step-000001'" in str(error) and "No space left on device" in str(error), error
    else:
        raise AssertionError("it was saved")
    storage.HashedFile.write = original
    assert with_saver.steps() == []
    assert not world.is_main or not any(Path(checkpoints).iterdir())


def loses_a_process(world: World, checkpoints: str, rank: int) -> None:
    """Let one process be killed while it writes: the others must not wait for it."""
    state = make(world, 0)
    step(state)
    with_saver = Saver(Path(checkpoints), world, keep=1, warn=say)
    with_saver.save(state)
    with_saver.wait()
    if world.rank == rank:
        _die("first bytes")
    step(state)
    with_saver.save(state)
    try:
        with_saver.wait()
    except TrainingError as error:
        say(str(error))
    else:
        raise AssertionError("it was saved")
    os._exit(0)  # without those who are gone there is nothing to take down in order


def fails_to_read(world: World, checkpoints: str, rank: int, at: int) -> None:
    """Let one process fail to read the newest: all must take the one before."""
    original, calls = saver.read_shards, []

    def broken(*arguments: Any) -> None:
        calls.append(arguments)
        if world.rank == rank and len(calls) == 1:
            raise OSError(5, "Input/output error")
        original(*arguments)

    saver.read_shards = broken
    try:
        assert Saver(Path(checkpoints), world, warn=say).load_newest(make(world, 9)) == at
    finally:
        saver.read_shards = original


def killed(world: World, checkpoints: str, points: list[str]) -> None:
    """For each point, let a process die there while it writes its second checkpoint, below ``checkpoints/point``."""
    for when in points:
        child = os.fork()  # the libraries are loaded once
        if child == 0:
            try:
                _write_and_die(world, Path(checkpoints) / when, when)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, when


def _write_and_die(world: World, checkpoints: Path, when: str) -> None:
    state = make(world, 0)
    step(state)
    with_saver = Saver(checkpoints, world, keep=1, warn=say)
    with_saver.save(state)
    with_saver.wait()
    step(state)
    if when == "replacing":  # the same step again
        state.step = 1
    _die(when)
    with_saver.save(state)
    with_saver.wait()


def _die(when: str) -> None:
    """Kill this process at a point of writing."""
    module, name, call = {
        "first bytes": (storage.HashedFile, "write", 3),
        "last bytes": (storage.HashedFile, "write", 60),
        "fsync": (os, "fsync", 1),
        "metadata": (storage.HashedFile, "close", 3),
        "state": (storage.HashedFile, "write", -1),
        "renaming": (os, "rename", 2),
        "replacing": (os, "rename", 3),
        "renamed": (folder, "sync_folder", 2),
        "removing": (folder.shutil, "rmtree", 2),
    }[when]
    original: Callable[..., Any] = getattr(module, name)
    calls: list[int] = []

    def dying(*arguments: Any, **keywords: Any) -> Any:
        calls.append(1)
        manifest = call == -1 and b'"format"' in bytes(arguments[1])
        if manifest:
            original(arguments[0], arguments[1][:50])
        if manifest or len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **keywords)

    setattr(module, name, dying)


def say(text: str) -> None:
    """Print a warning for the test to read."""
    print(text, flush=True)


ACTIONS = {
    each.__name__: each
    for each in (save, load, refused, remove, fails_to_write, loses_a_process, fails_to_read, killed)
}


def main() -> None:
    """Do the actions of the command line, one after the other."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    world = join(60, "cpu")
    for action, arguments in json.loads(sys.argv[1]):
        ACTIONS[action](world, **arguments)
    if world.size > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
