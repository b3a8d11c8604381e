"""Stopping on request: a first SIGINT or SIGTERM asks a run to stop where it can go on later, a second ends it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequested(Exception):
    """Work that can be continued (an evaluation) was left because a stop is wanted."""


class StopFlag:
    """Whether a stop is wanted."""

    def __init__(self) -> None:
        self.requested = False

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
