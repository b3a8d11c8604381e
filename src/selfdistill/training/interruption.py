"""Stopping on request: a first SIGINT or SIGTERM asks a run to stop where it can go on later, a second ends it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from selfdistill.parallel.world import StopRequested

__all__ = ["SIGNALS", "StopFlag", "StopRequested", "request_stop"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)

_from_outside = threading.Event()


def request_stop() -> None:
    """Ask every run of this process to stop, from whichever thread: where no signal arrives (a worker of Ray)."""
    _from_outside.set()


class StopFlag:
    """Whether a stop is wanted."""

    def __init__(self) -> None:
        self._requested = False

    @property
    def requested(self) -> bool:
        """Whether one is."""
        return self._requested or _from_outside.is_set()

    @requested.setter
    def requested(self, requested: bool) -> None:
        self._requested = requested

    def check(self) -> None:
        """Raise :class:`StopRequested` if a stop is wanted."""
        if self.requested:
            raise StopRequested

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Listen inside the block; only in the main thread, elsewhere whoever embeds us has to."""
        previous = {}
        try:
            for number in SIGNALS:
                previous[number] = signal.signal(number, self._handle)
        except ValueError:
            pass
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
