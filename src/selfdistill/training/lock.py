"""The lock of a run folder: two runs that write into one folder would spoil each other's records.

In: the folder. Out: a lock on ``.lock`` in it, held until :meth:`RunLock.release` or the end of the process. The kernel
takes a dead process's lock away, so it can never be stale; what stands in the file only says who has it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
import warnings
import weakref
from datetime import datetime
from pathlib import Path
from typing import Any

from selfdistill.errors import TrainingError

NAME = ".lock"
NO_LOCKS = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL)
"""What file systems without locks answer."""
POLL_SECONDS = 0.2

_HELD: weakref.WeakSet[RunLock] = weakref.WeakSet()


class RunLock:
    """The right to write into a run folder.

    Args:
        folder: the run folder; it is made if need be, and taken away again if nothing else was put there.
        wait_seconds: how long to wait for another holder to let go, for runs that are restarted: the process before
            may still be on its way out.
    """

    def __init__(self, folder: Path, *, wait_seconds: float = 0.0) -> None:
        self._folder, self._wait = folder, wait_seconds
        self._file: int | None = None

    @property
    def held(self) -> bool:
        """Whether this process has it."""
        return self._file is not None

    def acquire(self) -> None:
        """Take the lock; where the file system has none, warn and go on.

        Raises:
            TrainingError: another process has it, or the folder cannot be written.
        """
        deadline = time.monotonic() + self._wait
        while self._file is None:
            file = self._open()
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(file)
                if error.errno in NO_LOCKS:
                    warnings.warn(
                        f"the file system of {str(self._folder)!r} has no locks ({os.strerror(error.errno)}): see to "
                        "it that no second run writes there",
                        stacklevel=2,
                    )
                    return
                if not isinstance(error, BlockingIOError):
                    raise TrainingError(f"{self._folder / NAME} cannot be locked: {error.strerror}") from error
                if time.monotonic() >= deadline:
                    raise TrainingError(self._refusal()) from None
                time.sleep(POLL_SECONDS)
                continue
            if self._is_current(file):
                self._file = file
                self._sign(file)
                _HELD.add(self)
            else:  # the holder before has taken the file away with its empty folder
                os.close(file)

    def release(self) -> None:
        """Let go; without the lock, do nothing."""
        file, self._file = self._file, None
        if file is None:
            return
        _HELD.discard(self)
        try:
            if [path.name for path in self._folder.iterdir()] == [NAME]:
                (self._folder / NAME).unlink()
                self._folder.rmdir()
        except OSError:
            pass  # somebody removed the folder, or has just put something into it
        finally:
            os.close(file)

    def forget(self) -> None:
        """Close a forked child's copy: it would keep the lock when the run itself is gone."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> RunLock:
        self.acquire()
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()

    def _open(self) -> int:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            return os.open(self._folder / NAME, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise TrainingError(
                f"{str(self._folder)!r} cannot be written ({error.strerror}); set output.folder to a place with room "
                "that you may write to"
            ) from error

    def _is_current(self, file: int) -> bool:
        try:
            return os.path.samestat(os.fstat(file), os.stat(self._folder / NAME))
        except FileNotFoundError:
            return False

    def _sign(self, file: int) -> None:
        started = datetime.now().astimezone().isoformat(timespec="seconds")
        who = {"host": socket.gethostname(), "pid": os.getpid(), "started": started}
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(who).encode() + b"\n", 0)

    def _refusal(self) -> str:
        return (
            f"another run is writing into {str(self._folder)!r}: {_described(self._folder / NAME)}; wait for it or "
            "end it, or set output.folder to another place"
        )


def _described(file: Path) -> str:
    """Say whose lock it is, as far as the file tells."""
    try:
        who: Any = json.loads(file.read_text(encoding="utf-8"))
        return f"process {int(who['pid'])} on {who['host']}, since {who['started']}"
    except (OSError, ValueError, KeyError, TypeError):
        return f"a process that has not signed {file} yet"


def _forget_all() -> None:
    for lock in list(_HELD):
        lock.forget()


os.register_at_fork(after_in_child=_forget_all)
