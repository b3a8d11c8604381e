"""Checkpoints are written whole or not at all."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from torch import nn

from selfdistill.errors import TrainingError
from selfdistill.training import checkpoint
from selfdistill.training.checkpoint import TrainState, checkpoints, load_checkpoint, save_checkpoint
from selfdistill.training.config import TrainConfig
from selfdistill.training.optimizer import make_optimizer
from selfdistill.training.run import train
from selfdistill.training.run_folder import RunFolder


def state(step: int = 0, width: int = 2) -> TrainState:
    torch.manual_seed(step)
    model = nn.Linear(width, 2)
    return TrainState(model, make_optimizer(model, TrainConfig()), None, step=step)


def no_room(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_what_was_saved_is_what_is_loaded(tmp_path: Path) -> None:
    one, other = state(7), state(0)
    one.bad_steps, one.skipped_updates = 2, 5
    load_checkpoint(other, save_checkpoint(one, tmp_path, keep=1))
    assert torch.equal(one.model.weight, other.model.weight)
    assert (other.step, other.bad_steps, other.skipped_updates) == (7, 2, 5)


def test_only_the_newest_are_kept_and_order_is_by_number(tmp_path: Path) -> None:
    for step in (1, 999_999, 1_000_000):
        save_checkpoint(state(step), tmp_path, keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-999999", "step-1000000"]


def test_saving_again_replaces_the_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(state(1), tmp_path, keep=2)
    changed = state(1)
    with torch.no_grad():
        changed.model.weight.fill_(5)
    path, loaded = save_checkpoint(changed, tmp_path, keep=2), state(0)
    load_checkpoint(loaded, path)
    assert bool((loaded.model.weight == 5).all())
    assert [file.name for file in path.iterdir()] == ["state.pt"]


@pytest.mark.parametrize(
    "failure", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("write failed\nat")]
)
@pytest.mark.parametrize("step", [1, 2])
def test_a_full_disk_leaves_the_previous_checkpoint_usable(tmp_path: Path, monkeypatch, failure, step) -> None:
    first = save_checkpoint(state(1), tmp_path, keep=1)

    def half_written(content: object, stream) -> None:
        stream.write(b"half")
        raise failure

    monkeypatch.setattr(checkpoint.torch, "save", half_written)
    with pytest.raises(TrainingError) as caught:
        save_checkpoint(state(step), tmp_path, keep=1)
    said = str(caught.value)
    assert f"step-00000{step}' cannot be written" in said and "make room" in said and "\n" not in said
    monkeypatch.undo()
    assert checkpoints(tmp_path) == [first]
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["state.pt"]
    load_checkpoint(state(0), first)


def test_a_run_whose_disk_fills_up_goes_on_from_the_checkpoint_before(make_recipe, monkeypatch) -> None:
    recipe = make_recipe("sft", "train.save_every=1", "train.steps=3")
    train(recipe, stop_after=1)
    with monkeypatch.context() as full:
        full.setattr(checkpoint.torch, "save", no_room)
        with pytest.raises(TrainingError, match="No space left on device"):
            train(recipe, resume=True)
    folder = RunFolder(recipe.folder)
    assert [path.name for path in checkpoints(folder.checkpoints)] == ["step-000001"]
    assert train(recipe, resume=True).finished


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    path = save_checkpoint(state(1, width=3), tmp_path, keep=1)
    with pytest.raises(TrainingError, match="cannot be used"):
        load_checkpoint(state(0, width=2), path)


def test_a_folder_without_a_finished_state_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "step-000003").mkdir()
    (tmp_path / "step-000003" / ".state.pt").write_bytes(b"half")
    assert checkpoints(tmp_path) == []
    assert checkpoints(tmp_path / "nowhere") == []
