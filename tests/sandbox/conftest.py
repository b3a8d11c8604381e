"""Sandboxes of both kinds, and a way to see from outside what a program left running."""

from __future__ import annotations

import os
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from selfdistill.sandbox import Sandbox
from selfdistill.sandbox.isolation import TOOLS
from selfdistill.sandbox.sandbox import fault

collect_ignore_glob = [] if sys.platform == "linux" else ["test_*.py"]


@pytest.fixture(params=["bubblewrap", "unshare"])
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    reason = fault(request.param)
    if reason is not None:
        pytest.skip(f"{request.param} does not isolate programs here: {reason} ({TOOLS[request.param].remedy})")
    return Sandbox(isolation=request.param)


class Mark:
    """A name that a program gives its processes, by which they can be found from outside."""

    def __init__(self) -> None:
        self.name = uuid.uuid4().hex[:12]
        self.code = f"import ctypes; ctypes.CDLL(None).prctl(15, b'{self.name}')\n"

    def running(self) -> list[int]:
        """Return the processes of that name, in whatever namespace."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and (entry / "comm").read_text().strip() == self.name:
                    found.append(int(entry.name))
            except OSError:  # it ended meanwhile
                continue
        return found

    def gone(self, seconds: float = 0.0) -> bool:
        """Say whether none of them runs, waiting for so long."""
        until = time.monotonic() + seconds
        while self.running():
            if time.monotonic() > until:
                return False
            time.sleep(0.02)
        return True


@pytest.fixture
def mark() -> Mark:
    return Mark()


def _own() -> tuple[set[str], int]:
    children: set[str] = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError):  # a thread that has ended meanwhile
            children.update(task.joinpath("children").read_text().split())
    return children, len(os.listdir("/proc/self/fd"))


@pytest.fixture(autouse=True)
def nothing_left_in_the_parent() -> Iterator[None]:
    """No test may leave a child process or an open descriptor behind."""
    children, descriptors = _own()
    yield
    after, still_open = _own()
    assert after <= children
    assert still_open <= descriptors
