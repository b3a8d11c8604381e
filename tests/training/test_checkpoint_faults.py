"""Killed while writing, a full disk, damaged files: there is the checkpoint before, or an error that says why."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from selfdistill.checkpoints import Saver, TrainState, manifest, read_checkpoint, storage
from selfdistill.errors import TrainingError
from selfdistill.training.config import TrainConfig
from selfdistill.training.optimizer import make_optimizer
from selfdistill.training.run import train
from selfdistill.training.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[2]
POINTS = {
    "first bytes": 1,
    "last bytes": 1,
    "fsync": 1,
    "metadata": 1,
    "state": 1,
    "renaming": 1,
    "replacing": 1,
    "renamed": 2,
    "removing": 2,
}
"""Where a process dies while it writes its second checkpoint, and which step can be resumed from then."""


def state(step: int = 0, width: int = 2) -> TrainState:
    torch.manual_seed(step)
    model = nn.Linear(width, 2)
    return TrainState(model, make_optimizer(model, TrainConfig()), None, step=step)


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """Return a folder with the checkpoints of three steps."""
    with_saver = Saver(tmp_path / "checkpoints", keep=5)
    for step in (1, 2, 3):
        with_saver.save(state(step))
    with_saver.close()
    return tmp_path / "checkpoints"


def load(folder: Path, into: TrainState) -> tuple[int | None, list[str]]:
    """Return which step was loaded, and the warnings."""
    warnings: list[str] = []
    with_saver = Saver(folder, warn=warnings.append)
    try:
        return with_saver.load_newest(into), warnings
    finally:
        with_saver.close()


def test_a_process_killed_while_it_writes_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    command = [sys.executable, str(Path(__file__).with_name("checkpoint_process.py"))]
    command.append(json.dumps([("killed", {"checkpoints": str(tmp_path), "points": list(POINTS)})]))
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    environment.pop("WORLD_SIZE", None)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    left = {point: sorted(path.name for path in (tmp_path / point).iterdir()) for point in POINTS}
    assert left["state"] == [".step-000002.partial", "step-000001"]
    assert left["replacing"] == [".step-000001.partial", ".step-000001.replaced"]
    assert left["removing"] == [".step-000001.partial", "step-000002"]
    for point, step in POINTS.items():
        with_saver = Saver(tmp_path / point, keep=1)
        assert with_saver.steps()[-1] == step, point
        assert not any(path.name.startswith(".") for path in (tmp_path / point).iterdir()), point
        found = read_checkpoint(tmp_path / point / f"step-{step:06d}")
        assert found.manifest.step == step
        assert float(found.moments["first.weight/step"]) == step, point
        with_saver.close()


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("failing", ["write", "close"])
def test_a_full_disk_leaves_the_previous_checkpoint_usable(tmp_path: Path, monkeypatch, failing, step) -> None:
    with_saver = Saver(tmp_path, keep=1, asynchronous=False)
    with_saver.save(state(1))
    calls: list[int] = []

    def full(*_: object) -> None:
        calls.append(1)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(storage.HashedFile, failing, full)
        with pytest.raises(TrainingError) as caught:
            with_saver.save(state(step))
    said = str(caught.value)
    assert f"step-00000{step}' cannot be written (No space left on device)" in said
    assert "make room" in said and "\n" not in said and calls
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]
    assert load(tmp_path, state(0)) == (1, [])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small file system")
def test_a_disk_that_really_is_full_is_said_to_be(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system may be mounted here")
    try:
        with_saver = Saver(disk / "checkpoints", keep=1)
        with_saver.save(state(1))
        with_saver.save(state(2, width=100_000))
        with pytest.raises(TrainingError, match="No space left on device"):
            with_saver.wait()
        with_saver.close()
        assert load(disk / "checkpoints", state(0)) == (1, [])
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_run_whose_disk_fills_up_goes_on_from_the_checkpoint_before(make_recipe, monkeypatch) -> None:
    recipe = make_recipe("sft", "train.save_every=1", "train.steps=3")
    train(recipe, stop_after=1)

    def no_room(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(storage.HashedFile, "write", no_room)
        with pytest.raises(TrainingError, match="No space left on device"):
            train(recipe, resume=True)
    checkpoints = RunFolder(recipe.folder).checkpoints
    assert [path.name for path in checkpoints.iterdir()] == ["step-000001"]
    assert train(recipe, resume=True).finished


def cut(folder: Path) -> None:
    tensors = folder / "__0_0.distcp"
    tensors.write_bytes(tensors.read_bytes()[:-100])


def flip(name: str, place: int):
    def damage(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[place] ^= 1
        (folder / name).write_bytes(bytes(content))

    return damage


def foreign(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    torch.save({"epoch": 3}, folder / "checkpoint.pt")


def foreign_state(folder: Path) -> None:
    (folder / "state.json").write_text('{"epoch": 3}')


def newer(folder: Path) -> None:
    text = (folder / "state.json").read_text()
    (folder / "state.json").write_text(text.replace(manifest.FORMAT, "selfdistill checkpoint 3"))


def other_step(folder: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("step-000001"), folder)


def other_model(folder: Path) -> None:
    shutil.rmtree(folder)
    with_saver = Saver(folder.parent, keep=5)
    with_saver.save(state(3, width=4))
    with_saver.close()


DAMAGE = {
    "cut": (cut, "its __0_0.distcp has "),
    "flipped": (flip("__0_0.distcp", 500), "its __0_0.distcp is damaged: the content is not what was written"),
    "flipped description": (flip(".metadata", 200), "its .metadata is damaged"),
    "flipped state": (flip("state.json", 50), "state.json"),
    "no tensors": (lambda folder: (folder / "__0_0.distcp").unlink(), "its __0_0.distcp is missing"),
    "no description": (lambda folder: (folder / ".metadata").unlink(), "its .metadata is missing"),
    "no state": (lambda folder: (folder / "state.json").unlink(), "it has no state.json"),
    "empty state": (lambda folder: (folder / "state.json").write_bytes(b""), "state.json is no JSON"),
    "foreign": (foreign, "it has no state.json"),
    "foreign state": (foreign_state, "its state.json is of another program"),
    "newer": (newer, "its format is 'selfdistill checkpoint 3'"),
    "another step": (other_step, "it was made after 1 steps, not after the 3 that its name says"),
    "another model": (other_model, "it is of another model: 'weights/weight' is [2, 4], not [2, 2]"),
}


@pytest.mark.parametrize("how", list(DAMAGE))
def test_a_checkpoint_that_cannot_be_used_is_named_and_the_one_before_is_taken(how, three: Path) -> None:
    damage, why = DAMAGE[how]
    damage(three / "step-000003")
    loaded = state(0)
    step, warnings = load(three, loaded)
    assert step == 2 and torch.equal(loaded.model.weight, state(2).model.weight)
    assert f"the checkpoint {str(three / 'step-000003')!r} cannot be used: " in warnings[0] and why in warnings[0]
    assert "step-000003 is now unusable-step-000003" in warnings[1] and len(warnings) == 2
    assert all("\n" not in warning for warning in warnings)
    assert sorted(path.name for path in three.iterdir()) == ["step-000001", "step-000002", "unusable-step-000003"]


def test_two_damaged_ones_are_passed_over(three: Path) -> None:
    for name in ("step-000003", "step-000002"):
        cut(three / name)
    step, warnings = load(three, state(0))
    assert step == 1 and len(warnings) == 4


def test_a_run_without_any_usable_checkpoint_does_not_start_from_the_beginning(three: Path) -> None:
    for name in ("step-000003", "step-000002", "step-000001"):
        cut(three / name)
    with pytest.raises(TrainingError) as caught:
        load(three, state(0))
    said = str(caught.value)
    assert "no checkpoint in" in said and all(f"step-00000{step} (its __0_0" in said for step in (1, 2, 3))
    assert "restore one from a copy, remove them all to start from the beginning, or set output.folder" in said
    assert sorted(path.name for path in three.iterdir()) == ["step-000001", "step-000002", "step-000003"]


def test_a_run_without_checkpoints_starts_from_the_beginning(tmp_path: Path) -> None:
    assert load(tmp_path / "nowhere", state(0)) == (None, [])
    (tmp_path / "step-000003").mkdir()  # of version 0.1.0, killed while it wrote
    (tmp_path / "step-000003" / ".state.pt").write_bytes(b"half")
    assert load(tmp_path, state(0)) == (None, [])
    assert list(tmp_path.iterdir()) == []


def test_a_state_is_as_it_was_when_its_checkpoint_cannot_be_read(three: Path, monkeypatch) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("selfdistill.checkpoints.saver.read_shards", broken)
    loaded = state(0)
    with pytest.raises(TrainingError, match="Input/output error"):
        load(three, loaded)
    assert loaded.step == 0 and torch.equal(loaded.model.weight, state(0).model.weight)


class Evil:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_a_description_that_would_run_code_is_refused(three: Path, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with (three / "step-000003" / ".metadata").open("wb") as stream:
        pickle.dump(Evil(), stream)
    _sign_again(three / "step-000003")
    step, warnings = load(three, state(0))
    assert step == 2 and ".metadata names posix.mkdir, which describes no tensor" in warnings[0]
    assert not (tmp_path / "ran").exists()


def test_a_description_of_something_else_than_tensors_is_refused(three: Path) -> None:
    folder = three / "step-000003"
    from torch.distributed.checkpoint.metadata import BytesStorageMetadata

    content = storage.read_metadata(folder)
    content.state_dict_metadata["weights/weight"] = BytesStorageMetadata()
    with (folder / ".metadata").open("wb") as stream:
        pickle.dump(content, stream)
    _sign_again(folder)
    step, warnings = load(three, state(0))
    assert step == 2 and ".metadata lists 'weights/weight', which is no tensor" in warnings[0]


def _sign_again(folder: Path) -> None:
    """Make the digests fit, as somebody would who means harm."""
    from dataclasses import replace

    known = manifest.read_manifest(folder)
    files = {}
    for name in known.files:
        digest = manifest.new_digest()
        digest.update((folder / name).read_bytes())
        files[name] = manifest.FileFacts((folder / name).stat().st_size, digest.hexdigest())
    (folder / "state.json").write_bytes(manifest.encode(replace(known, files=files)))


def _old(path: Path, state: TrainState) -> None:
    """Write what version 0.1.0 wrote."""
    path.mkdir(parents=True)
    content = {
        "model": {name: value.detach() for name, value in state.model.named_parameters()},
        "optimizer": state.optimizer.state_dict(),
        "teacher": {},
        "step": state.step,
        "bad_steps": 1,
        "skipped_updates": 2,
        "rollout_tokens": 3,
        "successes": [("q", "text")],
    }
    torch.save(content, path / "state.pt")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_checkpoint_of_version_0_1_0_is_read_on_one_process(tmp_path: Path, dtype) -> None:
    def half(step: int) -> TrainState:
        torch.manual_seed(step)
        model = nn.Linear(3, 2).to(dtype)
        return TrainState(model, make_optimizer(model, TrainConfig()), None, step=step)

    old, loaded = half(4), half(0)
    for parameter in old.model.parameters():
        parameter.grad = torch.randn_like(parameter)
    old.optimizer.step()
    _old(tmp_path / "step-000004", old)
    loaded.successes.per_question = 1
    with_saver = Saver(tmp_path, keep=1)
    assert with_saver.load_newest(loaded) == 4
    assert torch.equal(loaded.model.weight, old.model.weight)
    assert (loaded.bad_steps, loaded.skipped_updates, loaded.rollout_tokens) == (1, 2, 3)
    assert loaded.successes.state_dict() == [("q", "text")]
    assert with_saver.newest is None  # so that it is written anew
    with_saver.save(loaded)
    with_saver.wait()
    assert sorted(path.name for path in (tmp_path / "step-000004").iterdir()) == [
        ".metadata",
        "__0_0.distcp",
        "state.json",
    ]
    again = half(0)
    assert with_saver.load_newest(again) == 4
    own, saved = again.optimizer.state_dict(), old.optimizer.state_dict()
    assert all(torch.equal(own["state"][0][name], value) for name, value in saved["state"][0].items())
    with_saver.close()


def test_a_damaged_checkpoint_of_version_0_1_0_is_passed_over(tmp_path: Path) -> None:
    for step in (1, 2):
        _old(tmp_path / f"step-00000{step}", state(step))
    (tmp_path / "step-000002" / "state.pt").write_bytes(b"no checkpoint at all\n" * 50)
    step, warnings = load(tmp_path, state(0))
    assert step == 1 and "step-000002' cannot be used" in warnings[0]
