"""What processes say to each other, and what they make of a failure; the exchanges of two are in test_same_numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest

from selfdistill.errors import SelfDistillError, TrainingError
from selfdistill.parallel import ALONE, PeerError, join
from selfdistill.parallel.world import losing_peers

TWO = """
import json, sys
from selfdistill.errors import RolloutError
from selfdistill.parallel import joined
from selfdistill.parallel.world import StopRequested

def fails(rank, error):
    def work():
        if world.rank == rank:
            raise error
        return world.rank
    return work

def outcome(call):
    try:
        return call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"

with joined(60.0, "cpu") as world:
    found = [
        world.gather(world.rank * 10),
        world.each(lambda: world.rank + 1),
        world.main(lambda: f"from {world.rank}"),
        world.any(world.rank == 1),
        outcome(lambda: world.each(fails(1, RolloutError("no server")))),
        outcome(lambda: world.each(fails(0, ValueError("bad row")))),
        outcome(lambda: world.each(fails(1, StopRequested()))),
        outcome(lambda: world.main(fails(0, ValueError("no room")))),
        world.gather("still together"),
    ]
    print(json.dumps(found))
"""


def test_alone_every_exchange_returns_what_it_was_given() -> None:
    assert (ALONE.gather(3), ALONE.each(lambda: 4), ALONE.main(lambda: 5), ALONE.any(False)) == ([3], [4], 5, False)
    with pytest.raises(ZeroDivisionError):
        ALONE.each(lambda: 1 // 0)


def test_what_fails_on_one_process_fails_on_all_and_none_is_lost(tmp_path) -> None:
    own = {"SELFDISTILL_STORE": str(tmp_path / "store"), "WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "lo"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(TWO)],
            env=os.environ | own | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    first, second = (json.loads(one.communicate(timeout=120)[0]) for one in started)
    assert first[:4] == second[:4] == [[0, 10], [1, 2], "from 0", True]
    assert first[4] == "RolloutError: process 1 of 2 failed: no server" and second[4] == "RolloutError: no server"
    assert first[5] == "ValueError: bad row" and second[5] == "PeerError: process 0 of 2 failed: bad row"
    assert first[6].startswith("StopRequested") and second[6].startswith("StopRequested")
    assert first[7] == "ValueError: no room" and second[7] == "PeerError: process 0 of 2 failed: no room"
    assert first[8] == second[8] == ["still together"] * 2


def test_a_launcher_that_says_too_little_is_named() -> None:
    with pytest.raises(SelfDistillError, match=r"WORLD_SIZE is 2, but RANK, MASTER_ADDR, MASTER_PORT is not set"):
        join(1.0, "cpu", {"WORLD_SIZE": "2"})
    assert join(1.0, "cpu", {}) is ALONE


def test_a_lost_process_is_one_sentence_and_other_errors_stay_what_they_are() -> None:
    with pytest.raises(
        PeerError, match=r"another process of the run is gone or hangs \(\[.*\] Connection closed by peer"
    ):
        with losing_peers():
            raise RuntimeError("[gloo/transport/tcp] Connection closed by peer [127.0.0.1]")
    with pytest.raises(RuntimeError, match="shapes") as caught, losing_peers():
        raise RuntimeError("shapes do not fit")
    assert not isinstance(caught.value, TrainingError)
