"""What must not end a run, or change what it computes: too little memory for a micro-batch, and a clock that jumps."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file

from selfdistill.checkpoints import CheckpointFolder, Saver
from selfdistill.errors import TrainingError
from selfdistill.teachers.self_teacher import SelfTeacher
from selfdistill.training import loop
from selfdistill.training import start as start_module
from selfdistill.training.progress import NullProgress
from selfdistill.training.run import train
from selfdistill.training.run_folder import RunFolder
from selfdistill.training.update import _Passes

CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
CPU = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"
)
BUDGET = ("train.micro_batch_tokens=1024", "train.learning_rate=1e-5", "train.evaluate_first=false")


class Memory:
    """A device on which layers fail with more than so many positions, in one of a step's passes."""

    def __init__(self, where: str, most: int, error: BaseException) -> None:
        self.where, self.most, self.error = where, most, error
        self.passes = ""
        self.failed: list[int] = []
        self.largest = 0

    def passed(self, module, inputs, output) -> None:
        if self.passes != self.where.removesuffix("'s backward pass"):
            return
        states = output[0] if isinstance(output, tuple) else output
        positions = states.shape[0] * states.shape[1]
        self.largest = max(self.largest, positions)
        if not self.where.endswith("backward pass"):
            self.check(positions)
        elif states.requires_grad:
            states.register_hook(lambda gradient: self.check(positions))

    def check(self, positions: int) -> None:
        if positions > self.most:
            self.failed.append(positions)
            raise self.error

    @contextmanager
    def during(self, passes: str):
        self.passes = passes
        try:
            yield
        finally:
            self.passes = ""


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Memory]:
    """Return a function that makes the runs of a test have little memory."""

    def little_memory(where: str, most: int, error: BaseException = CUDA) -> Memory:
        memory = Memory(where, most, error)
        load, score, learn = start_module.load_policy, SelfTeacher.score, _Passes.learn

        def load_policy(*arguments):
            policy = load(*arguments)
            policy.model.model.layers[0].register_forward_hook(memory.passed)  # its gradient is the last to come
            return policy

        def scoring(teacher, *arguments):
            with memory.during("the teacher"):
                return score(teacher, *arguments)

        def learning(passes, *arguments):
            with memory.during("the student"):
                return learn(passes, *arguments)

        monkeypatch.setattr(start_module, "load_policy", load_policy)
        monkeypatch.setattr(SelfTeacher, "score", scoring)
        monkeypatch.setattr(_Passes, "learn", learning)
        return memory

    return little_memory


@pytest.fixture
def gradients(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """The gradient of every update, in order: Adam would not show one that is doubled."""
    found: list[dict[str, torch.Tensor]] = []
    accumulate = loop.accumulate_gradients

    def accumulated(rows, method, policy, *rest):
        loss = accumulate(rows, method, policy, *rest)
        found.append({name: one.grad.clone() for name, one in policy.model.named_parameters() if one.grad is not None})
        return loss

    monkeypatch.setattr(loop, "accumulate_gradients", accumulated)
    return found


class Said(NullProgress):
    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


@pytest.mark.parametrize("error", [CUDA, CPU], ids=["cuda", "cpu"])
@pytest.mark.parametrize("where", ["the student", "the student's backward pass", "the teacher"])
def test_a_micro_batch_that_does_not_fit_is_made_again_in_halves_and_nothing_counts_twice(
    where, error, make_recipe, little_memory, gradients, monkeypatch
) -> None:
    with monkeypatch.context() as plenty:
        train(make_recipe("sc_sdpo", *BUDGET, folder="undisturbed"))
        plenty.undo()
    expected = gradients[:]
    del gradients[:]
    memory, said = little_memory(where, 300, error), Said()
    recipe = make_recipe("sc_sdpo", *BUDGET)
    train(recipe, progress=said)
    folder = RunFolder(recipe.folder)
    assert memory.failed and max(memory.failed) > 300
    kept = json.loads(folder.memory.read_text())["micro_batch_tokens"]
    assert kept < 1024
    told = [message for message in said.messages if "out of memory" in message]
    assert told[-1].endswith(f"going on with train.micro_batch_tokens={kept}, also when resumed")
    assert len(gradients) == len(expected) == 2
    for own, other in zip(gradients, expected, strict=True):
        assert own.keys() == other.keys()
        scale = max(float(one.abs().max()) for one in other.values())
        assert all(torch.allclose(own[name], other[name], rtol=0, atol=1e-5 * scale) for name in own)
    own, other = (
        load_file(one / "final" / "model.safetensors") for one in (folder.path, folder.path.parent / "undisturbed")
    )
    assert max(float((own[name] - other[name]).abs().max()) for name in own) < 1e-6


def test_a_resumed_run_begins_with_what_was_found_to_fit(make_recipe, little_memory) -> None:
    memory = little_memory("the student", 300)
    recipe = make_recipe("sc_sdpo", *BUDGET, "train.steps=3")
    train(recipe, stop_after=1)
    assert memory.failed
    del memory.failed[:]
    said = Said()
    train(recipe, resume=True, progress=said)
    assert 0 < memory.largest and not memory.failed
    assert not any("out of memory" in message for message in said.messages)


@pytest.mark.parametrize("where", ["the student", "the student's backward pass", "the teacher"])
def test_a_row_that_does_not_fit_alone_is_one_clear_error_and_what_was_done_is_kept(
    where, make_recipe, little_memory
) -> None:
    recipe = make_recipe("sc_sdpo", *BUDGET)
    train(recipe, stop_after=1)
    little_memory(where, 2)
    with pytest.raises(TrainingError, match=r"out of memory .*: a row of \d+ tokens alone is too much; set model.grad"):
        train(recipe, resume=True)
    assert RunFolder(recipe.folder).metrics.read_bytes().count(b"\n") == 1


def test_another_error_of_torch_stays_what_it_is(make_recipe, little_memory) -> None:
    little_memory("the student", 2, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        train(make_recipe("sc_sdpo", *BUDGET))


def test_the_best_checkpoint_is_known_although_the_run_was_killed_right_after_its_evaluation(
    make_recipe, monkeypatch
) -> None:
    class Died(BaseException):
        """Stands for a process that is gone."""

    def die(*_: object) -> None:
        raise Died

    recipe = make_recipe("paint", "train.save_every=1", "train.evaluate_every=1")
    with monkeypatch.context() as patch:
        patch.setattr(Saver, "keep_best", die)
        with pytest.raises(Died):
            train(recipe)
    train(recipe, resume=True, stop_after=1)
    assert CheckpointFolder(RunFolder(recipe.folder).checkpoints).best() is not None


def test_a_time_of_day_that_jumps_changes_nothing(make_recipe, read_lines, monkeypatch) -> None:
    train(make_recipe("paint", folder="undisturbed"))
    now, calls = time.time, [0]

    def jumping() -> float:
        calls[0] += 1
        return now() + 86_400 * (-1) ** calls[0] * calls[0]

    recipe = make_recipe("paint")
    monkeypatch.setattr(time, "time", jumping)
    train(recipe, stop_after=1)
    assert train(recipe, resume=True).finished
    folder, other = RunFolder(recipe.folder), RunFolder(recipe.folder.parent / "undisturbed")
    assert (folder.final / "model.safetensors").read_bytes() == (other.final / "model.safetensors").read_bytes()
    for line in read_lines(folder.metrics):
        assert all(0 <= value < 600 for name, value in line.items() if name.startswith("seconds/"))
