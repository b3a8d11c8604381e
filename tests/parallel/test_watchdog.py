"""A run that hangs says where: every process writes its stacks, and the one that waited ends with one error."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from selfdistill.parallel import watchdog
from selfdistill.parallel.watchdog import EXIT_CODE, HangError, Watchdog, watching

ROOT = Path(__file__).resolve().parents[2]
PROCESS = """
import os, re, sys, time
from datetime import timedelta
from pathlib import Path
import torch.distributed as dist
from selfdistill.parallel.watchdog import Watchdog, watching

folder, rank, how = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]

def reward_function():
    if how == "sleeps":
        time.sleep(120)
    if how == "frozen":
        re.match("(a+)+$", "a" * 40 + "b")

dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2,
                        timeout=timedelta(seconds=90))
with Watchdog(folder, rank, 2, poll_seconds=0.1, grace_seconds=0.5, frozen_seconds=1.0):
    dist.barrier()
    if rank == 1:
        if how == "dies":
            os.kill(os.getpid(), 19)  # stopped: its connections stay open
        reward_function()
    with watching("gathering the gradients", 2.0):
        dist.barrier()
"""


def two_processes(folder: Path, how: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run both; return how the waiting one ended and when. The other is killed then."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    words = [sys.executable, "-c", PROCESS, str(folder)]
    stuck = subprocess.Popen([*words, "1", how], env=environment, stderr=subprocess.DEVNULL)
    try:
        before = time.monotonic()
        waiting = subprocess.run(
            [*words, "0", how], env=environment, stderr=subprocess.PIPE, text=True, timeout=60, check=False
        )
        return waiting, time.monotonic() - before
    finally:
        stuck.kill()
        stuck.wait()


def test_every_process_writes_where_it_is_although_one_waits_in_torch_and_one_in_the_users_code(tmp_path) -> None:
    waiting, seconds = two_processes(tmp_path, "sleeps")
    assert waiting.returncode == EXIT_CODE and seconds < 45
    said = waiting.stderr.strip().splitlines()[-1]
    assert said.startswith("selfdistill: [rank 0] process 0 of 2 has waited for more than 2 s (gathering the grad")
    assert f"{str(tmp_path / 'hang')!r}: written by rank 0, 1; look there" in said
    mine, other = ((tmp_path / "hang" / f"rank-0000{rank}.txt").read_text() for rank in range(2))
    assert re.match(r"rank 0 of 2, host \S+, pid \d+\nin: gathering the gradients, for \d+\.\d s \(at most 2\)\n", mine)
    assert "barrier" in mine
    assert "in: nothing that is watched" in other and "in reward_function" in other


def test_a_process_that_never_lets_go_of_the_interpreter_leaves_its_stacks_too(tmp_path) -> None:
    waiting, _ = two_processes(tmp_path, "frozen")
    assert waiting.returncode == EXIT_CODE
    assert "written by rank 0; rank 1 (stuck outside of Python) has left .frozen.txt" in waiting.stderr
    assert "in reward_function" in (tmp_path / "hang" / "rank-00001.frozen.txt").read_text()


def test_a_process_that_does_not_answer_is_named(tmp_path) -> None:
    waiting, _ = two_processes(tmp_path, "dies")
    assert waiting.returncode == EXIT_CODE
    assert "written by rank 0; nothing came from rank 1: dead or frozen" in waiting.stderr


def quick(folder: Path, **settings) -> Watchdog:
    return Watchdog(folder, 0, 1, poll_seconds=0.02, **settings)


def test_a_block_that_ends_late_by_itself_is_an_error_with_the_same_words(tmp_path) -> None:
    late = pytest.raises(HangError, match=r"more than 0.1 s \(sampling\)")
    with quick(tmp_path), late as caught, watching("sampling", 0.1):
        while watchdog._active._blocks[0].message is None:
            time.sleep(0.01)
        raise ConnectionError("what the others did about it")
    assert isinstance(caught.value.__cause__, ConnectionError)
    assert (tmp_path / "hang" / "rank-00000.txt").exists()


def test_nothing_is_left_of_a_run_that_did_not_hang(tmp_path) -> None:
    with quick(tmp_path) as dog, watching("outer", 60), dog.watching("inner", 60):
        time.sleep(0.1)
    assert list(tmp_path.iterdir()) == []
    assert not any(thread.name == "watchdog" for thread in threading.enumerate())


def test_an_error_inside_stays_what_it_is(tmp_path) -> None:
    with quick(tmp_path), pytest.raises(KeyError), watching("a block", 60):
        raise KeyError


def test_without_a_watchdog_nothing_is_watched() -> None:
    with watching("a block", 0.0):
        time.sleep(0.01)


def test_a_request_of_an_earlier_run_is_not_answered(tmp_path) -> None:
    (tmp_path / "hang").mkdir()
    (tmp_path / "hang" / "request.json").write_text('{"request": "old"}')
    (tmp_path / "hang" / "rank-00000.txt").write_text("old")
    with quick(tmp_path):
        time.sleep(0.2)
    assert [path.name for path in (tmp_path / "hang").iterdir()] == ["request.json"]


def test_a_jump_of_the_time_of_day_changes_nothing(tmp_path, monkeypatch) -> None:
    ended: list[int] = []
    with quick(tmp_path, end=ended.append), watching("a block", 30):
        monkeypatch.setattr(time, "time", lambda: 4e9)
        time.sleep(0.2)
        monkeypatch.setattr(time, "time", lambda: 0.0)
        time.sleep(0.2)
    assert ended == [] and list(tmp_path.iterdir()) == []


def test_a_process_that_does_not_leave_is_ended_and_says_why(tmp_path, capsys) -> None:
    ended = threading.Event()
    codes: list[int] = []
    dog = quick(tmp_path, grace_seconds=0.1, end=lambda code: (codes.append(code), ended.set()))
    with dog, pytest.raises(HangError), watching("a block", 0.05):
        assert ended.wait(20)
    assert codes == [EXIT_CODE]
    assert "selfdistill: [rank 0] process 0 of 1 has waited for more than 0.05 s (a block)" in capsys.readouterr().err
