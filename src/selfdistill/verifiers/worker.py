"""A function run in a child process that may be killed: hard limits on time and memory for work on untrusted text.

In: keyword arguments that JSON can hold. Out: what the function returned (JSON again), or :class:`WorkerFault` saying
how it failed. Limits by signals do not work off the main thread and cannot interrupt one long C call; killing a process
always works.

The child is a fresh interpreter (nothing of the parent's memory, no re-import of the user's script), kept between calls
and replaced after a fault. It ends with its parent: its input closes, and a timer of its own stops even a computation
that never reads on.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import weakref
from typing import IO, Any, Literal

from selfdistill.errors import SelfDistillError

START_SECONDS = 120.0
"""Longest wait for a child to import its function; a busy machine is slow, a broken installation fails at once."""

_GRACE_SECONDS = 2.0
"""A child ends itself this long after its parent should have killed it."""

_BOOTSTRAP = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from selfdistill.verifiers.worker import serve; serve(sys.argv[2], float(sys.argv[3]), int(sys.argv[4]))"
)


class WorkerFault(Exception):
    """One call failed; the next one gets a new child. ``kind`` is ``timeout`` or ``crash``."""

    def __init__(self, kind: Literal["timeout", "crash"], reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


class BoundedWorker:
    """Runs ``target`` (``"package.module:function"``) in one child process, one call at a time, from any thread."""

    def __init__(self, target: str, *, timeout: float, memory_mib: int = 1024) -> None:
        """``timeout``: seconds per call, start-up excluded. ``memory_mib``: the child's address space, MiB (POSIX)."""
        self.target, self.timeout, self.memory_mib = target, timeout, memory_mib
        self.starts = 0
        """Child processes started so far."""
        self._lock = threading.Lock()
        self._child: _Child | None = None

    def call(self, **arguments: Any) -> Any:
        """Return the function's result. Raises :class:`WorkerFault` when it was too slow, raised or died."""
        with self._lock:
            child = self._running_child()
            try:
                child.send(arguments)
                reply = child.receive(self.timeout)
            except BaseException as error:
                self._discard()
                if isinstance(error, queue.Empty):
                    raise WorkerFault("timeout", f"it took more than {self.timeout:g} s") from None
                if isinstance(error, (OSError, EOFError)):
                    raise WorkerFault("crash", "its process ended") from None
                raise
        if "fault" in reply:
            raise WorkerFault("crash", reply["fault"])
        return reply["result"]

    def close(self) -> None:
        """End the child; a later call starts another. Also happens when the worker is collected and at exit."""
        with self._lock:
            self._discard()

    def _discard(self) -> None:
        if self._child is not None:
            self._child.end()
            self._child = None

    def _running_child(self) -> _Child:
        # A child inherited through fork belongs to the process that started it: its pipes must not be shared.
        if self._child is None or self._child.owner != os.getpid():
            self.starts += 1
            self._child = _Child(self.target, self.timeout, self.memory_mib)
        return self._child


class _Child:
    """One child process, and a thread that reads its replies: so waiting has a limit on every platform."""

    def __init__(self, target: str, timeout: float, memory_mib: int) -> None:
        command = [sys.executable, "-c", _BOOTSTRAP, json.dumps(sys.path), target, str(timeout), str(memory_mib)]
        self.owner = os.getpid()
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"},
            start_new_session=True,  # an interrupt from the keyboard is the parent's to handle
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.requests, self.replies = self.process.stdin, queue.SimpleQueue[str | None]()
        threading.Thread(target=_forward, args=(self.process.stdout, self.replies), daemon=True).start()
        self.end = weakref.finalize(self, _end, self.process, self.owner)
        try:
            ready = self.receive(START_SECONDS)
        except (queue.Empty, EOFError):
            ready = {"fault": "it ended or hung while starting"}
        if "fault" in ready:
            self.end()
            raise SelfDistillError(
                f"the worker process for {target} did not start: {ready['fault']}; run `selfdistill doctor` to see "
                "what is missing"
            )

    def send(self, arguments: dict[str, Any]) -> None:
        self.requests.write(json.dumps(arguments) + "\n")
        self.requests.flush()

    def receive(self, seconds: float) -> dict[str, Any]:
        line = self.replies.get(timeout=seconds)
        if line is None:
            raise EOFError
        reply: dict[str, Any] = json.loads(line)
        return reply


def _forward(source: IO[str], replies: queue.SimpleQueue[str | None]) -> None:
    with contextlib.suppress(ValueError, OSError), source:
        for line in source:
            replies.put(line)
    replies.put(None)


def _end(process: subprocess.Popen[str], owner: int) -> None:
    if os.getpid() != owner:  # after a fork the child still belongs to the original process
        return
    process.kill()
    with contextlib.suppress(OSError):
        if process.stdin is not None:
            process.stdin.close()
    process.wait()


def serve(target: str, timeout: float, memory_mib: int) -> None:
    """The child's main loop: one JSON object per line in, one per line out, until the input closes."""
    # Whatever the libraries print must not be taken for a reply.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def reply(message: dict[str, Any]) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    try:
        module, _, name = target.partition(":")
        function = getattr(importlib.import_module(module), name)
    except Exception as error:
        reply({"fault": f"{type(error).__name__}: {error}"})
        return
    _limit_memory(memory_mib)
    reply({"result": "ready"})
    for line in sys.stdin:
        _end_after(timeout + _GRACE_SECONDS)
        try:
            answer = {"result": function(**json.loads(line))}
        except Exception as error:
            answer = {"fault": type(error).__name__}
        _end_after(0)
        reply(answer)


def _limit_memory(memory_mib: int) -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory_mib << 20, memory_mib << 20))


def _end_after(seconds: float) -> None:
    """Let the system end this process unless that is revoked with 0: the backstop for a parent that is gone."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)
