"""``selfdistill train --nproc N``: the processes of a run on this machine, started, watched and ended together.

In: the words of the command. Out: the exit code of the whole. The processes meet through a file, so that nothing
listens. None outlives the launcher, and one that fails ends the others; of what they say, one message is shown.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue

from selfdistill.doctor import available_cores
from selfdistill.errors import RecipeError
from selfdistill.parallel.failures import FILE, Failure, first_cause, said
from selfdistill.signals import SIGNALS, signals_to

STORE = "SELFDISTILL_STORE"
"""Environment variable: the file through which the processes find each other."""
PARENT = "SELFDISTILL_LAUNCHER"
"""Environment variable: the launcher's process number."""
END_SECONDS = 15.0
"""How long processes may take to end after one has failed."""
INTERRUPTED = 130
PROGRAM = (sys.executable, "-m", "selfdistill")
KEPT_LINES = 40
"""Of what a process prints that does not speak to the user."""
PR_SET_PDEATHSIG = 1


@dataclass(slots=True)
class Child:
    """One process of the run."""

    rank: int
    process: subprocess.Popen[str]
    failure_file: Path
    printed: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT_LINES))
    ended: float | None = None
    """When it ended, by the monotonic clock."""
    asked: bool = False
    """Whether we asked it to stop or to end."""
    killed: bool = False
    """Whether we did not wait for it any longer."""

    @property
    def failed(self) -> bool:
        """Whether it ended otherwise than it should."""
        return self.process.poll() not in (None, 0)

    @property
    def exit_code(self) -> int:
        """What the whole ends with if this process is the cause.

        A process may have said what is wrong, and be ended by us before it could end itself: that is a 1, too.
        """
        code = self.process.returncode
        ours = self.killed or (self.asked and -code in SIGNALS)
        return 1 if ours else _exit_code(code)

    def failure(self) -> Failure | None:
        """Return why it ended: in its own words, else as the system has it; None if it did as it was asked."""
        code = self.process.poll()
        if not code:
            return None
        if own := Failure.load(self.failure_file):
            return own
        at = self.ended or time.monotonic()
        if self.killed or (self.asked and -code in SIGNALS):
            return None
        if code < 0:
            return Failure(self.rank, "run", f"it was killed by {_signal_name(-code)}", at)
        last = "".join(f"\n{line}" for line in self.printed)
        return Failure(self.rank, "bug", f"it ended with exit code {code}{last}", at)


Event = Child | int
"""A process ended, or a signal came."""


def launch(words: Sequence[str], processes: int, *, restarts: int = 0, end_seconds: float = END_SECONDS) -> int:
    """Run ``selfdistill`` with ``words`` in so many processes; return the exit code. To be called in the main thread.

    Args:
        words: ``train``, the recipe and its settings.
        processes: how many.
        restarts: how often all are started again, going on from the last checkpoint, when one fails.
        end_seconds: how long the others may take to end when one fails.

    Raises:
        RecipeError: this is a process of another launcher already.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RecipeError(
            f"--nproc is {processes}, but WORLD_SIZE is {os.environ['WORLD_SIZE']}: the processes are started by "
            "another launcher (torchrun); leave out --nproc, or unset WORLD_SIZE"
        )
    events: SimpleQueue[Event] = SimpleQueue()
    with signals_to(events):
        for attempt in range(restarts + 1):
            again = ["--auto-resume"] if attempt and not {"--resume", "--auto-resume"} & set(words) else []
            code, failure, interrupted = _attempt([*words, *again], processes, events, end_seconds)
            if failure is None:
                return code
            print(said(failure), file=sys.stderr, flush=True)
            if failure.kind == "input" or interrupted or attempt == restarts:
                return code
            print(
                f"selfdistill: starting all {processes} processes again from the last checkpoint "
                f"(restart {attempt + 1} of {restarts})",
                file=sys.stderr,
                flush=True,
            )
    raise AssertionError("the last attempt returns")


def end_with_launcher(environment: Mapping[str, str] = os.environ) -> None:
    """Let the system kill this process when its launcher is gone; without a launcher, do nothing."""
    if PARENT not in environment:
        return
    with suppress(AttributeError, OSError):  # Linux has it
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(environment[PARENT]):  # it went before we asked
        os.kill(os.getpid(), signal.SIGKILL)


def command_line(words: Sequence[str], environment: Mapping[str, str] = os.environ) -> str:
    """Return the command that a user would give for the run of this process: with ``--nproc``, if that started it."""
    number = ["--nproc", environment["WORLD_SIZE"]] if PARENT in environment else []
    return shlex.join(["selfdistill", *words, *number])


def rank(environment: Mapping[str, str] = os.environ) -> int:
    """Return which process this is; only 0 speaks to the user."""
    return int(environment.get("RANK", "0"))


def _attempt(
    words: Sequence[str], processes: int, events: SimpleQueue[Event], end_seconds: float
) -> tuple[int, Failure | None, bool]:
    """Start all, wait for all; return the exit code, the failure that it comes from, and whether a signal came."""
    with tempfile.TemporaryDirectory(prefix="selfdistill-") as folder:
        children: list[Child] = []
        try:
            for number in range(processes):
                children.append(_start(words, number, processes, Path(folder)))
                threading.Thread(target=_watch, args=(children[-1], events), daemon=True).start()
            interrupted = _wait(children, events, end_seconds)
        finally:
            _kill(children)
        cause = first_cause(failure for child in children if (failure := child.failure()))
    if cause is not None and not (interrupted and any(child.process.returncode == INTERRUPTED for child in children)):
        return children[cause.rank].exit_code, cause, interrupted
    return _exit_code(next((child.process.returncode for child in children if child.failed), 0)), None, interrupted


def _start(words: Sequence[str], number: int, processes: int, folder: Path) -> Child:
    file = folder / f"rank-{number:05d}.json"
    own = {
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        STORE: str(folder / "store"),
        FILE: str(file),
        PARENT: str(os.getpid()),
    }
    shared = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": str(max(1, available_cores() // processes))}
    process = subprocess.Popen(
        [*PROGRAM, *words],
        env=shared | os.environ | own,
        stdin=subprocess.DEVNULL,
        stdout=None if number == 0 else subprocess.DEVNULL,
        stderr=None if number == 0 else subprocess.PIPE,
        text=True,
        errors="replace",
        process_group=0,  # a Ctrl-C in the terminal reaches us alone, and we pass it on once
    )
    return Child(number, process, file)


def _watch(child: Child, events: SimpleQueue[Event]) -> None:
    reader = threading.Thread(target=_read, args=(child,), daemon=True)
    reader.start()
    child.process.wait()
    child.ended = time.monotonic()
    reader.join(1.0)  # not longer: a process that it has left behind may hold the pipe open
    events.put(child)


def _read(child: Child) -> None:
    if child.process.stderr is not None:
        with child.process.stderr as lines:
            child.printed.extend(line.rstrip("\n") for line in lines)


def _wait(children: Sequence[Child], events: SimpleQueue[Event], end_seconds: float) -> bool:
    """Wait until all have ended, or for so long after one has failed; return whether a signal came.

    Signals are passed on: a first one lets a run stop with a checkpoint, which may take as long as a step.
    """
    running, interrupted, deadline = len(children), False, None
    while running:
        try:
            event = events.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
        except Empty:
            break
        if isinstance(event, int):
            interrupted = True
            _send(children, event)
            continue
        running -= 1
        if event.failed and deadline is None:
            deadline = time.monotonic() + end_seconds
            _send(children, signal.SIGTERM)
    return interrupted


def _send(children: Sequence[Child], number: int) -> None:
    for child in children:
        if child.process.poll() is None:
            child.asked = True
            child.process.send_signal(number)


def _kill(children: Sequence[Child]) -> None:
    """Kill what is left of each process's group, and wait, so that no zombie stays."""
    for child in children:
        child.killed = child.process.poll() is None
        with suppress(ProcessLookupError, PermissionError):  # also where the process is gone: its workers may not be
            os.killpg(child.process.pid, signal.SIGKILL)
        child.process.wait()


def _exit_code(code: int) -> int:
    return 128 - code if code < 0 else code


def _signal_name(number: int) -> str:
    try:
        return f"signal {number} ({signal.Signals(number).name})"
    except ValueError:
        return f"signal {number}"
