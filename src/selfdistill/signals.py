"""Signals as events: for commands that start processes and wait for whatever happens first."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def signals_to(events: SimpleQueue[Any]) -> Iterator[None]:
    """Put the number of every SIGINT and SIGTERM into ``events`` inside the block. For the main thread."""

    def handle(number: int, frame: FrameType | None) -> None:
        events.put(number)

    previous = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
