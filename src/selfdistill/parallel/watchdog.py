"""Finding out where a run hangs: when one process waits too long, every process writes down where it is.

In: blocks of work with the longest time that each may take. Out: ``<run folder>/hang/rank-00003.txt`` with the stacks
of all threads of each process, and one error that names who wrote and who did not. The request to write travels through
a file in the run folder, because whatever else the processes speak through may be what hangs. Clocks are monotonic:
nothing depends on the time of day.
"""

from __future__ import annotations

import faulthandler
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

from selfdistill.errors import TrainingError
from selfdistill.parallel.failures import describe, tell

EXIT_CODE = 75
"""Of a process that had to be ended because it hung (EX_TEMPFAIL: starting again may help)."""
POLL_SECONDS = 2.0
"""How often a process looks for a request, which costs one look at a file."""
GRACE_SECONDS = 10.0
"""How long a process that ran out of time may take to leave by itself."""
FROZEN_SECONDS = 60.0
"""When no Python has run for so long, the process is stuck in a call that never lets go of the interpreter (a regular
expression can do that), and its stacks are written without Python."""
FOLDER = "hang"

Clock = Callable[[], float]

_active: Watchdog | None = None


class HangError(TrainingError):
    """A block took longer than it may."""


@dataclass(slots=True)
class _Block:
    """Something that must not take too long."""

    what: str
    seconds: float
    since: float
    message: str | None = None
    """Set when it took too long."""


class Watchdog:
    """A thread that watches this process's blocks and answers the other processes' requests.

    Args:
        folder: the run folder, which all processes share.
        rank: this process.
        size: how many there are.
        poll_seconds: how often to look.
        grace_seconds: how long a block that took too long may take to end by itself, before the process is ended.
        frozen_seconds: how long no Python may run before the stacks are written without it.
        clock: seconds since some fixed moment.
        end: ends the process with an exit code, whatever its main thread does.
    """

    def __init__(
        self,
        folder: Path,
        rank: int,
        size: int,
        *,
        poll_seconds: float = POLL_SECONDS,
        grace_seconds: float = GRACE_SECONDS,
        frozen_seconds: float = FROZEN_SECONDS,
        clock: Clock = time.monotonic,
        end: Callable[[int], Any] = os._exit,
    ) -> None:
        self._folder, self._rank, self._size = folder / FOLDER, rank, size
        self._poll, self._grace, self._frozen = poll_seconds, grace_seconds, frozen_seconds
        self._clock, self._end = clock, end
        self._blocks: list[_Block] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._answered: str | None = None
        self._answered_at: float | None = None
        self._before: Watchdog | None = None
        self._frozen_file: IO[str] | None = None

    def __enter__(self) -> Self:
        """Begin to watch; what an earlier run wrote is taken away."""
        global _active
        self._folder.mkdir(parents=True, exist_ok=True)
        self._dump_file(self._rank).unlink(missing_ok=True)
        self._frozen_file = self._frozen_dump(self._rank).open("w", encoding="utf-8")
        self._answered = self._request()  # of a run before
        self._before, _active = _active, self
        self._arm()
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        global _active
        _active = self._before
        self._stop.set()
        self._thread.join()
        if self._frozen_file is not None:
            self._frozen_file.close()
            self._frozen_dump(self._rank).unlink(missing_ok=True)
        with suppress(OSError):  # it holds what somebody wrote
            self._folder.rmdir()

    @contextmanager
    def watching(self, what: str, seconds: float) -> Iterator[None]:
        """Let the block take so long at most.

        Raises:
            HangError: it took longer, and ended at last; if it does not end, the process does, with :data:`EXIT_CODE`.
        """
        block = _Block(what, seconds, self._clock())
        with self._lock:
            self._blocks.append(block)
        try:
            yield
        except Exception as error:  # often a consequence of what the others did about the hang
            if block.message is not None:
                raise HangError(block.message) from error
            raise
        finally:
            with self._lock:
                self._blocks.remove(block)
        if block.message is not None:
            raise HangError(block.message)

    def _watch(self) -> None:
        try:
            while not self._stop.wait(self._poll):
                self._arm()
                request = self._request()
                if request is not None and request != self._answered:
                    self._answered, self._answered_at = request, self._clock()
                    self._dump()
                overdue = self._overdue()
                if overdue is not None:
                    self._act(overdue)
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _arm(self) -> None:
        """Have the stacks written without Python if we do not come back here for long."""
        if self._frozen_file is not None and not self._frozen_file.closed:
            if os.fstat(self._frozen_file.fileno()).st_size:  # it went on after all
                self._frozen_file.truncate(0)
                self._frozen_file.seek(0)
            faulthandler.dump_traceback_later(self._frozen, file=self._frozen_file)

    def _overdue(self) -> _Block | None:
        """Return the block that has taken too long for the longest time, if there is one to be dealt with."""
        now = self._clock()
        with self._lock:
            late = [block for block in self._blocks if now - block.since > block.seconds and block.message is None]
        return min(late, key=lambda block: block.since + block.seconds, default=None)

    def _act(self, block: _Block) -> None:
        """Have everybody write, then let the block end with an error, or end the process."""
        patience = 3 * self._poll + 1.0
        if self._answered_at is None or self._clock() - self._answered_at > patience + self._grace:
            self._ask(block)
            self._dump()
        message = block.message = self._message(block, self._wait_for_dumps(patience))
        deadline = time.monotonic() + self._grace
        while time.monotonic() < deadline:
            with self._lock:
                if block not in self._blocks:
                    return
            self._stop.wait(0.05)
        with suppress(Exception):  # whatever cannot be written, the process has to end
            tell(describe(HangError(message), self._rank))
        self._end(EXIT_CODE)

    def _message(self, block: _Block, missing: list[int]) -> str:
        wrote = [rank for rank in range(self._size) if rank not in missing]
        frozen = [rank for rank in missing if _size(self._frozen_dump(rank))]
        silent = [rank for rank in missing if rank not in frozen]
        parts = [
            f"process {self._rank} of {self._size} has waited for more than {block.seconds:g} s ({block.what}), so the "
            f"run was given up; where each process was is in {str(self._folder)!r}: written by rank {_listed(wrote)}"
        ]
        if frozen:
            parts.append(f"rank {_listed(frozen)} (stuck outside of Python) has left .frozen.txt")
        if silent:
            parts.append(f"nothing came from rank {_listed(silent)}: dead or frozen")
        remedy = "look there for what was slow, or raise parallel.timeout_seconds; go on with --resume"
        return "; ".join([*parts, remedy])

    def _ask(self, block: _Block) -> None:
        identity = f"{self._rank}-{socket.gethostname()}-{os.getpid()}-{time.monotonic_ns()}"
        self._answered, self._answered_at = identity, self._clock()
        text = json.dumps({"request": identity, "what": block.what, "seconds": block.seconds})
        with suppress(OSError):  # a full disk must not keep the process from ending
            _replace(self._folder / "request.json", text)

    def _request(self) -> str | None:
        try:
            return str(json.loads((self._folder / "request.json").read_text(encoding="utf-8"))["request"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _wait_for_dumps(self, seconds: float) -> list[int]:
        """Give the others time to look; return who has not written by then."""
        deadline = time.monotonic() + seconds
        while True:
            missing = [rank for rank in range(self._size) if not self._dump_file(rank).exists()]
            if not missing or time.monotonic() >= deadline:
                return missing
            time.sleep(min(0.1, self._poll))

    def _dump(self) -> None:
        now = self._clock()
        with self._lock:
            blocks = [
                f"{block.what}, for {now - block.since:.1f} s (at most {block.seconds:g})" for block in self._blocks
            ]
        lines = [
            f"rank {self._rank} of {self._size}, host {socket.gethostname()}, pid {os.getpid()}",
            f"in: {'; '.join(blocks) or 'nothing that is watched'}",
            f"main thread: 0x{threading.main_thread().ident or 0:016x}",
        ]
        temporary = self._folder / f".rank-{self._rank:05d}.{os.getpid()}"
        with suppress(OSError), temporary.open("w", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
            temporary.replace(self._dump_file(self._rank))

    def _dump_file(self, rank: int) -> Path:
        return self._folder / f"rank-{rank:05d}.txt"

    def _frozen_dump(self, rank: int) -> Path:
        return self._folder / f"rank-{rank:05d}.frozen.txt"


@contextmanager
def watching(what: str, seconds: float) -> Iterator[None]:
    """Watch the block with this process's watchdog; without one, do nothing. Raises as :meth:`Watchdog.watching`."""
    if _active is None:
        yield
        return
    with _active.watching(what, seconds):
        yield


def _replace(file: Path, text: str) -> None:
    temporary = file.with_name(f".{file.name}.{socket.gethostname()}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(file)


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _listed(ranks: list[int]) -> str:
    return ", ".join(map(str, ranks)) or "nobody"
