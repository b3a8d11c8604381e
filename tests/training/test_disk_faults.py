"""Disks that are full or read-only, for real: one clear error, nothing lost, and a resumed run once there is room."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from selfdistill.cli import main
from selfdistill.errors import SelfDistillError
from selfdistill.rollouts import journal
from selfdistill.training import run as run_module
from selfdistill.training.run import train
from selfdistill.training.run_folder import RunFolder

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a file system")


@contextmanager
def mounted(place: Path, options: str) -> Iterator[Path]:
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no file system may be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


class Disk:
    """A small disk, which can be filled to the last byte and emptied again."""

    def __init__(self, place: Path) -> None:
        self.place, self.ballast = place, place / "ballast"

    def fill(self) -> None:
        block = b"x" * (1 << 16)
        with self.ballast.open("ab", buffering=0) as file:
            while block:
                try:
                    file.write(block)
                except OSError as error:
                    assert error.errno == errno.ENOSPC
                    block = block[: len(block) // 2]

    def make_room(self) -> None:
        self.ballast.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with mounted(tmp_path / "disk", "size=100m") as place:
        yield Disk(place)


def fill_at_metrics(disk: Disk, patch: pytest.MonkeyPatch) -> None:
    append = RunFolder.append

    def appended(folder, file, records):
        records = list(records)
        if file == folder.metrics and records[0]["step"] == 1:  # a new file; an old one has room in its last block
            disk.fill()
        append(folder, file, records)

    patch.setattr(RunFolder, "append", appended)


def fill_at_journal(disk: Disk, patch: pytest.MonkeyPatch) -> None:
    flush = journal._Writer.flush

    def flushed(writer):
        if writer._path.name == "pending-000001.jsonl":
            disk.fill()
        flush(writer)

    patch.setattr(journal._Writer, "flush", flushed)


def fill_at_final_model(disk: Disk, patch: pytest.MonkeyPatch) -> None:
    save = run_module.save_pretrained

    def saved(*arguments):
        disk.fill()
        save(*arguments)

    patch.setattr(run_module, "save_pretrained", saved)


@pytest.mark.parametrize(
    ("fill", "named"),
    [
        (fill_at_metrics, "metrics.jsonl' cannot be written (No space left on device); make room"),
        (fill_at_journal, "pending-000001.jsonl' (No space left on device); make room"),
        (fill_at_final_model, "/final"),
    ],
)
def test_a_disk_that_fills_up_ends_the_run_with_one_error_and_it_goes_on_when_there_is_room(
    fill, named, disk, make_recipe, monkeypatch
) -> None:
    own = ("paint", "train.save_every=1", "train.steps=3", "rollouts.max_rows=1", "data.eval_limit=1")
    train(make_recipe(*own, folder="undisturbed"))
    recipe = make_recipe(*own, folder="disk/run")
    folder, other = RunFolder(recipe.folder), RunFolder(recipe.folder.parents[1] / "undisturbed")
    with monkeypatch.context() as patch:
        fill(disk, patch)
        with pytest.raises(SelfDistillError) as caught:
            train(recipe)
    assert named in str(caught.value) and "\n" not in str(caught.value)
    assert not folder.final.exists() and not folder.result.exists()
    disk.make_room()
    assert train(recipe, resume=True).finished
    assert (folder.final / "model.safetensors").read_bytes() == (other.final / "model.safetensors").read_bytes()
    assert folder.rollouts.read_bytes() == other.rollouts.read_bytes()
    assert folder.metrics.read_bytes().count(b"\n") == 3
    names = {str(path.relative_to(folder.path)) for path in folder.path.rglob("*")}
    assert names == {str(path.relative_to(other.path)) for path in other.path.rglob("*")}


def test_a_read_only_disk_is_one_line_and_exit_code_1(tmp_path, make_recipe, capsys) -> None:
    recipe = Path(__file__).resolve().parents[2] / "recipes" / "embedded" / "sft.yaml"
    with mounted(tmp_path / "disk", "ro,size=1m") as place:
        assert main(["train", str(recipe), f"output.folder={place / 'run'}"]) == 1
    said = capsys.readouterr()
    assert "cannot be written (Read-only file system); set output.folder to a place with room" in said.err
    assert said.err.count("\n") == 1 and not said.out
