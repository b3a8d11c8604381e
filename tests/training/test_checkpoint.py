"""What was saved is what is loaded, bit by bit; the newest and the best stay."""

from __future__ import annotations

import errno
import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from selfdistill.checkpoints import Saver, TrainState, read_checkpoint, saver, storage
from selfdistill.checkpoints.folder import CheckpointFolder
from selfdistill.errors import TrainingError
from selfdistill.models import LoraConfig, ModelConfig, load_policy
from selfdistill.teachers import Initial, MovingAverage, start_teacher
from selfdistill.teachers.weights import trainable
from selfdistill.training.config import TrainConfig
from selfdistill.training.optimizer import make_optimizer


def state(step: int = 0, width: int = 2) -> TrainState:
    torch.manual_seed(step)
    model = nn.Linear(width, 2)
    return TrainState(model, make_optimizer(model, TrainConfig()), None, step=step)


@pytest.fixture
def savers(tmp_path: Path):
    """Return a function that makes savers of one folder, and closes them at the end; what they warn of is a list."""
    made: list[Saver] = []
    warnings: list[str] = []

    def make(**settings: Any) -> Saver:
        made.append(Saver(tmp_path / "checkpoints", **{"warn": warnings.append, **settings}))
        return made[-1]

    make.folder, make.warnings = tmp_path / "checkpoints", warnings  # type: ignore[attr-defined]
    yield make
    for one in made:
        one.close()


def take_step(state: TrainState) -> None:
    """Train on made-up gradients."""
    for parameter in trainable(state.model).values():
        parameter.grad = torch.randn_like(parameter)
    state.optimizer.step()
    state.optimizer.zero_grad()
    if state.teacher is not None:
        state.teacher.after_step()
    state.step += 1


def everything(state: TrainState) -> dict[str, Tensor]:
    """Return copies of all tensors that a run's future depends on, the rounded weights included."""
    named = {f"model/{name}": value for name, value in state.model.named_parameters()}
    for number, own in state.optimizer.state_dict()["state"].items():
        named |= {f"{number}/{moment}": value for moment, value in own.items()}
    named |= {f"copy/{number}": copy for number, (_, copy) in enumerate(getattr(state.optimizer, "_copies", ()))}
    named |= {f"teacher/{name}": value for name, value in (state.teacher.weights if state.teacher else {}).items()}
    return {name: value.detach().clone() for name, value in named.items()}


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert value.dtype == second[name].dtype and torch.equal(value, second[name]), name


LORA = LoraConfig(r=2, alpha=4)
AVERAGE = MovingAverage(rate=0.3, every="step")


@pytest.mark.parametrize("teacher", [Initial(), AVERAGE], ids=["initial", "moving average"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("lora", [None, LORA], ids=["all weights", "lora"])
def test_a_run_goes_on_with_the_same_bits(lora, dtype, teacher, savers) -> None:
    def start(seed: int) -> TrainState:
        torch.manual_seed(seed)
        model = load_policy(ModelConfig(lora=lora, dtype=dtype, device="cpu"), seed).model
        return TrainState(model, make_optimizer(model, TrainConfig(learning_rate=1e-3)), start_teacher(teacher, model))

    one, other = start(0), start(0)
    for _ in range(2):
        take_step(one)
    saving = savers()
    saving.save(one)
    saved = everything(one)
    take_step(one)  # while it is written
    take_step(other)  # what is loaded replaces moments that are there
    assert saving.load_newest(other) == 2
    assert_same(everything(other), saved)
    held = {name.partition("/")[0] for name in read_checkpoint(savers.folder / "step-000002").tensors}
    assert held == {"weights", "optimizer"} | (set() if lora and teacher == Initial() else {"teacher"})
    torch.manual_seed(5)
    take_step(other)
    again = start(0)
    saving.load_newest(again)
    torch.manual_seed(5)
    take_step(again)
    assert_same(everything(again), everything(other))


def test_bf16_is_saved_as_the_float32_values_that_are_updated(savers) -> None:
    model = nn.Linear(4, 3).bfloat16()
    half = TrainState(model, make_optimizer(model, TrainConfig(learning_rate=1e-5)), None)
    take_step(half)
    saving = savers()
    saving.save(half)
    single = nn.Linear(4, 3)
    loaded = TrainState(single, make_optimizer(single, TrainConfig()), None)
    saving.load_newest(loaded)
    assert not torch.equal(single.weight, model.weight.float())
    assert torch.equal(single.weight.bfloat16(), model.weight)


def test_everything_that_is_no_tensor_comes_back_too(savers) -> None:
    one, other = state(7), state(0)
    one.bad_steps, one.skipped_updates, one.rollout_tokens, one.prior_tokens = 2, 5, 1234, 99
    one.pass_rates, one.run_ids = {"q1": 1 / 3, "q2": 0.0}, {"wandb": "x1", "trackio": "y"}
    one.successes.per_question = other.successes.per_question = 3
    one.successes.load_state_dict([("q1", "a \N{SNOWMAN}\n\u2028 \ud800"), ("q1", "b"), ("q2", "a")])
    saving = savers()
    saving.save(one)
    one.pass_rates["q1"], one.run_ids["wandb"] = 9.0, "later"
    assert saving.load_newest(other) == 7
    assert (other.step, other.bad_steps, other.skipped_updates) == (7, 2, 5)
    assert (other.rollout_tokens, other.prior_tokens) == (1234, 99)
    assert other.pass_rates == {"q1": 1 / 3, "q2": 0.0} and other.run_ids == {"wandb": "x1", "trackio": "y"}
    assert other.successes.state_dict() == one.successes.state_dict()


def test_a_checkpoint_of_before_the_first_step_has_no_moments(savers) -> None:
    saving, begun = savers(), state(0)
    saving.save(begun)
    later = state(0)
    take_step(later)
    saving.load_newest(later)
    assert_same(everything(later), everything(begun))
    take_step(later)
    assert all(float(own["step"]) == 1 for own in later.optimizer.state.values())


def test_state_json_is_for_people(savers) -> None:
    saving = savers()
    saving.save(state(3))
    saving.wait()
    content = json.loads((savers.folder / "step-000003" / "state.json").read_text())
    assert content["step"] == 3 and content["world_size"] == 1 and content["versions"]["torch"] == torch.__version__
    assert sorted(content["files"]) == [".metadata", "__0_0.distcp"]
    raw = b"".join(path.read_bytes() for path in (savers.folder / "step-000003").iterdir())
    assert str(savers.folder).encode() not in raw


def test_equal_states_make_equal_files(tmp_path: Path) -> None:
    for name in ("one", "other"):
        with_saver = Saver(tmp_path / name)
        with_saver.save(state(3))
        with_saver.close()
    for path in (tmp_path / "one" / "step-000003").iterdir():
        assert path.read_bytes() == (tmp_path / "other" / "step-000003" / path.name).read_bytes()


def test_only_the_newest_are_kept_and_order_is_by_number(savers) -> None:
    saving = savers(keep=2)
    for step in (1, 999_999, 1_000_000):
        saving.save(state(step))
    saving.wait()
    assert sorted(path.name for path in savers.folder.iterdir()) == ["step-1000000", "step-999999"]
    assert saving.steps() == [999_999, 1_000_000]


def test_saving_again_replaces_the_checkpoint(savers) -> None:
    saving, changed, loaded = savers(), state(1), state(0)
    saving.save(state(1))
    with torch.no_grad():
        changed.model.weight.fill_(5)
    saving.save(changed)
    saving.load_newest(loaded)
    assert bool((loaded.model.weight == 5).all())
    assert [path.name for path in savers.folder.iterdir()] == ["step-000001"]


def test_the_best_is_kept_until_there_is_a_better_one(savers) -> None:
    saving = savers(keep=1)
    best = {1: 0.25, 2: 0.5, 3: 0.5, 4: float("nan"), 5: 0.1, 6: 0.75, 7: 0.0}
    said = {}
    for step, score in best.items():
        if step % 2:
            saving.save(state(step))
        said[step] = saving.keep_best(state(step), score)
    saving.save(state(8))
    saving.wait()
    assert [step for step, is_best in said.items() if is_best] == [1, 2, 6]
    assert saving.steps() == [6, 8]
    assert json.loads((savers.folder / "best.json").read_text()) == {
        "step": 6,
        "score": 0.75,
        "checkpoint": "step-000006",
    }


def test_a_resumed_run_knows_the_best_so_far(savers) -> None:
    before = savers(keep=1)
    before.keep_best(state(1), 0.5)
    before.close()
    resumed = savers(keep=1)
    assert resumed.best is not None and (resumed.best.step, resumed.best.score) == (1, 0.5)
    assert resumed.load_newest(state(0)) == 1
    assert not resumed.keep_best(state(1), 0.5) and not resumed.keep_best(state(2), 0.4)
    assert resumed.keep_best(state(3), 0.6)
    resumed.wait()
    assert resumed.steps() == [3]


def test_a_best_checkpoint_that_is_gone_is_no_best(savers) -> None:
    saving = savers()
    saving.keep_best(state(1), 0.5)
    saving.wait()
    CheckpointFolder(savers.folder).set_aside(1)
    assert savers().best is None
    (savers.folder / "best.json").write_text("{")
    assert savers().best is None


def test_training_goes_on_while_files_are_written(savers, monkeypatch) -> None:
    may_write, original = threading.Event(), saver.write_shards

    def slow(*arguments: Any) -> Any:
        assert may_write.wait(30)
        return original(*arguments)

    monkeypatch.setattr(saver, "write_shards", slow)
    saving, one = savers(), state(1)
    saving.save(one)
    assert saving.steps() == [] and saving.newest == 1
    before = everything(one)
    take_step(one)
    may_write.set()
    loaded = state(0)
    assert saving.load_newest(loaded) == 1
    assert_same(everything(loaded), before)


def test_without_a_thread_of_its_own_a_saver_returns_when_all_is_on_disk(savers) -> None:
    saving = savers(asynchronous=False)
    saving.save(state(1))
    assert saving.steps() == [1]
    assert saving.keep_best(state(2), 0.5) and (savers.folder / "best.json").exists()


def test_memory_for_copies_is_used_again(savers, monkeypatch) -> None:
    saving, later = savers(), state(2)
    saving.save(state(1))
    saving.wait()
    monkeypatch.setattr(torch, "empty", None)
    saving.save(later)
    saving.wait()
    assert saving.steps() == [1, 2]


def test_an_error_in_the_background_comes_with_the_next_save(savers, monkeypatch) -> None:
    saving = savers()
    saving.save(state(1))
    saving.wait()
    with monkeypatch.context() as full:
        full.setattr(storage.HashedFile, "write", no_room)
        saving.save(state(2))
        with pytest.raises(
            TrainingError, match=r"step-000002' cannot be written \(No space left on device\); make room"
        ):
            saving.save(state(3))
    assert saving.steps() == [1] and saving.newest is None
    saving.save(state(3))
    saving.wait()
    assert saving.steps() == [1, 3]


def test_closing_turns_an_error_that_nobody_has_seen_into_a_warning(savers, monkeypatch) -> None:
    monkeypatch.setattr(storage.HashedFile, "write", no_room)
    saving = savers()
    saving.save(state(2))
    saving.close()
    assert len(savers.warnings) == 1 and "step-000002' cannot be written" in savers.warnings[0]


def test_a_state_that_cannot_be_copied_is_an_error_of_the_checkpoint(savers, monkeypatch) -> None:
    def no_memory(*_: object) -> None:
        raise RuntimeError("can't allocate memory\nat ...")

    saving = savers()
    monkeypatch.setattr(saving._staging, "copy", no_memory)
    saving.save(state(2))
    with pytest.raises(TrainingError, match=r"step-000002' cannot be written \(can't allocate memory\)"):
        saving.wait()


def no_room(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")
