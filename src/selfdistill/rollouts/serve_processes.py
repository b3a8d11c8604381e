"""Rollout servers as child processes: started together, watched together, ended together.

In: the commands of :mod:`selfdistill.rollouts.serve`. Their output is passed through. Nothing is left running behind:
whoever is still there some time after it was asked to end is killed.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from queue import SimpleQueue
from urllib.parse import urlsplit

from selfdistill.errors import RolloutError
from selfdistill.rollouts.serve import ServeCommand
from selfdistill.signals import signals_to

END_SECONDS = 20.0
"""How long servers may take to end once they are asked to."""
KILL_SECONDS = 5.0
"""How long a killed process is waited for."""

Event = tuple[ServeCommand, int] | int
"""A server ended with an exit code, or a signal came."""


def run_servers(commands: Sequence[ServeCommand], end_seconds: float = END_SECONDS) -> int:
    """Run the servers on this machine until a signal ends them; return the exit code, 128 + the signal's number.

    To be called in the main thread.

    Args:
        commands: those for other machines are left out.
        end_seconds: how long servers may take to end before they are killed.

    Raises:
        RolloutError: none of the servers is to run here, an address or the API key is not to be had, or a server could
            not be started or ended by itself; the others have been ended then.
    """
    local = [command for command in commands if command.local]
    if not local:
        raise RolloutError(
            "rollouts.server.urls names no address of this machine; start the servers where they are to run, with the "
            "commands that `selfdistill serve` prints without --run"
        )
    for command in local:
        _require_free(command.url)
    environments = [_environment(command) for command in local]
    events: SimpleQueue[Event] = SimpleQueue()
    children: list[subprocess.Popen[bytes]] = []
    with signals_to(events):
        try:
            for command, environment in zip(local, environments, strict=True):
                children.append(_start(command, environment))
                threading.Thread(target=_watch, args=(command, children[-1], events), daemon=True).start()
            event = events.get()
        finally:
            _end(children, events, end_seconds)
    if isinstance(event, int):
        return 128 + event
    command, code = event
    raise RolloutError(
        f"the server at {command.url} ended {_how(code)}, so the others were ended too; "
        "read what it printed above, and start again"
    )


def _start(command: ServeCommand, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    try:
        # In a process group of its own: a Ctrl-C in the terminal reaches us alone, and we end the servers in order.
        return subprocess.Popen(command.words, env=environment, stdin=subprocess.DEVNULL, process_group=0)
    except OSError as error:
        raise RolloutError(
            f"the server at {command.url} could not be started: {command.words[0]}: {error.strerror}; "
            "name the Python that has vLLM with --python"
        ) from error


def _environment(command: ServeCommand) -> dict[str, str]:
    environment = {**os.environ, **command.environment}
    if command.secret is not None:
        if not os.environ.get(command.secret):
            raise RolloutError(
                f"rollouts.server.api_key_variable names {command.secret}, which is not set; export it, or leave the "
                "setting out"
            )
        environment["VLLM_API_KEY"] = os.environ[command.secret]
    return environment


def _require_free(url: str) -> None:
    """Find out before a model is loaded that somebody else listens there."""
    address = urlsplit(url)
    try:
        with socket.create_connection((address.hostname, address.port or 80), timeout=2):
            pass
    except OSError:
        return
    raise RolloutError(f"something already listens at {url}; end it, or choose another port in rollouts.server.urls")


def _watch(command: ServeCommand, child: subprocess.Popen[bytes], events: SimpleQueue[Event]) -> None:
    events.put((command, child.wait()))


def _end(children: Sequence[subprocess.Popen[bytes]], events: SimpleQueue[Event], seconds: float) -> None:
    """Ask the servers to end, wait, and kill what is left of their process groups; a further signal ends the wait."""
    for child in children:
        if child.poll() is None:
            with suppress(ProcessLookupError):
                child.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + seconds
    while any(child.poll() is None for child in children):
        remaining = deadline - time.monotonic()
        if remaining <= 0 or _interrupted(events, min(remaining, 0.1)):
            break
    for child in children:
        # Also where the server itself is gone: its workers may not be.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            child.wait(KILL_SECONDS)


def _interrupted(events: SimpleQueue[Event], seconds: float) -> bool:
    """Wait for an event; whether it was a signal."""
    from queue import Empty

    try:
        return isinstance(events.get(timeout=seconds), int)
    except Empty:
        return False


def _how(code: int) -> str:
    if code >= 0:
        return f"with exit code {code}"
    try:
        return f"by {signal.Signals(-code).name}"
    except ValueError:
        return f"by signal {-code}"
