"""Groups of processes that stay, and do what they are asked at the same time: for benchmarks of several processes.

They speak gloo over the loopback interface, and meet in a file. While they are asked nothing they wait for a line,
which costs nothing: two groups can be started, and take turns.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.machine import ROOT
from benchmarks.timing import say

Answer = dict[str, Any]
"""What JSON can hold."""


class ProcessGroupError(RuntimeError):
    """A process of a group ended without an answer."""


class ProcessGroup:
    """So many processes of one module, whose ``main`` calls :func:`serve` when :func:`is_worker` says so.

    Args:
        module: its name, as after ``python -m``.
        processes: how many.
        threads: of torch, per process.
        settings: handed to each.
        folder: where they meet; must exist.
    """

    def __init__(self, module: str, processes: int, threads: int, settings: Mapping[str, Any], folder: Path) -> None:
        self.processes, self.threads = processes, threads
        store = folder / f"store-{module}-{processes}-{threads}"
        store.unlink(missing_ok=True)
        paths = [str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
        own = {"OMP_NUM_THREADS": str(threads), "GLOO_SOCKET_IFNAME": "lo", "SELFDISTILL_STORE": str(store)}
        own |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
        own |= {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}
        command = [sys.executable, "-W", "ignore", "-m", module, "--worker", json.dumps(dict(settings)), str(threads)]
        self._started = [
            subprocess.Popen(
                command,
                env=os.environ | own | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(processes)
        ]

    def ask(self, request: Mapping[str, Any]) -> list[Answer]:
        """Have every process do what ``request`` says, and return their answers by rank.

        Raises:
            ProcessGroupError: one has ended; all are.
        """
        with suppress(BrokenPipeError):
            for one in self._started:
                assert one.stdin is not None
                one.stdin.write(json.dumps(dict(request)) + "\n")
                one.stdin.flush()
        answers: list[Answer] = []
        for rank, one in enumerate(self._started):
            assert one.stdout is not None
            line = one.stdout.readline()
            if not line:
                self.close(kill=True)
                raise ProcessGroupError(f"process {rank} of {self.processes} ended with code {one.returncode}")
            answers.append(json.loads(line))
        return answers

    def close(self, *, kill: bool = False) -> None:
        """End the processes."""
        for one in self._started:
            if kill:
                one.kill()
            with suppress(BrokenPipeError):
                if one.stdin is not None:
                    one.stdin.close()
        for one in self._started:
            try:
                one.wait(timeout=60)
            except subprocess.TimeoutExpired:
                one.kill()
                one.wait()
            if one.stdout is not None:
                one.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(kill=kind is not None)


def is_worker() -> bool:
    """Whether this process was started by a :class:`ProcessGroup`."""
    return sys.argv[1:2] == ["--worker"]


def serve(answer: Callable[[Answer, Any], Callable[[Answer], Answer]]) -> None:
    """Answer requests until there are no more, as one of a group.

    Args:
        answer: given the settings and the :class:`~selfdistill.parallel.World`, returns what answers a request.
    """
    import torch

    from selfdistill.parallel import joined

    torch.set_num_threads(int(sys.argv[3]))
    lines = sys.stdout
    sys.stdout = sys.stderr  # what libraries print is no answer
    with joined(300.0, "cpu") as world:
        handle = answer(json.loads(sys.argv[2]), world)
        for line in sys.stdin:
            print(json.dumps(handle(json.loads(line))), file=lines, flush=True)


def progress(group: ProcessGroup, text: str) -> None:
    """Show what a group has done."""
    say(f"{group.processes} x {group.threads} threads: {text}")
