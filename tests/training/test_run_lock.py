"""One run folder, one run: the lock is refused to a second one, and gone with its holder however that ends."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from selfdistill.errors import TrainingError
from selfdistill.training.lock import RunLock

ROOT = Path(__file__).resolve().parents[2]
KEEPS = "import sys, time; from pathlib import Path; from selfdistill.training.lock import RunLock\n" + (
    "lock = RunLock(Path(sys.argv[1])); lock.acquire(); print('held', flush=True); time.sleep(60)"
)


@pytest.fixture
def holder(tmp_path: Path):
    process = subprocess.Popen(
        [sys.executable, "-c", KEEPS, str(tmp_path / "run")],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_run_is_told_who_has_the_folder(tmp_path, holder) -> None:
    with pytest.raises(TrainingError) as caught:
        RunLock(tmp_path / "run").acquire()
    said = re.escape(f"process {holder.pid} on {socket.gethostname()}, since ") + r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d"
    assert re.search(said, str(caught.value))
    assert str(tmp_path / "run") in str(caught.value) and "output.folder" in str(caught.value)


def test_the_lock_of_a_killed_run_is_free_at_once(tmp_path, holder) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait(10)
    with RunLock(tmp_path / "run") as lock:
        assert lock.held
        assert json.loads((tmp_path / "run" / ".lock").read_text())["pid"] == os.getpid()


def test_a_restarted_run_waits_for_the_one_before_to_be_gone(tmp_path, holder) -> None:
    killed = subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -9 {holder.pid}"])
    before = time.monotonic()
    with RunLock(tmp_path / "run", wait_seconds=20):
        assert 0.3 < time.monotonic() - before < 15
    killed.wait()


def test_the_same_process_cannot_run_twice_into_one_folder_but_one_after_the_other(tmp_path) -> None:
    (tmp_path / "metrics.jsonl").touch()
    with RunLock(tmp_path), pytest.raises(TrainingError, match=f"process {os.getpid()} on "):
        RunLock(tmp_path).acquire()
    with RunLock(tmp_path) as lock:
        assert lock.held
    assert not lock.held and (tmp_path / ".lock").exists()


def test_a_folder_in_which_nothing_was_written_is_taken_away_again(tmp_path) -> None:
    with RunLock(tmp_path / "run"):
        assert (tmp_path / "run" / ".lock").exists()
    assert not (tmp_path / "run").exists()


def test_a_forked_child_does_not_keep_the_lock(tmp_path) -> None:
    (tmp_path / "metrics.jsonl").touch()
    lock = RunLock(tmp_path)
    lock.acquire()
    heard, told = os.pipe()
    child = os.fork()
    if not child:
        os.write(told, b"up")
        time.sleep(60)
        os._exit(0)
    try:
        assert os.read(heard, 2) == b"up"
        os.close(lock._file)  # as the kernel does when the run is killed
        lock._file = None
        with RunLock(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.ENOLCK])
def test_without_locks_there_is_one_warning_and_the_run_goes_on(tmp_path, monkeypatch, number) -> None:
    def refuse(file: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    lock = RunLock(tmp_path)
    with pytest.warns(UserWarning, match="has no locks") as warned:
        lock.acquire()
    assert len(warned) == 1 and not lock.held
    lock.release()


def test_a_folder_that_cannot_be_made_is_one_error(tmp_path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match="cannot be written"):
        RunLock(tmp_path / "file" / "run").acquire()
