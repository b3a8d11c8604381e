"""Between the event loop's thread, which receives, and the consumer's, which takes."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from selfdistill.rollouts.sampler import Completion, Place

_POLL_SECONDS = 0.2
"""How often a waiting consumer looks up, so that an interrupt reaches it."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What the consumer found."""

    tokens: int
    """Drawn since it looked last."""
    completions: tuple[tuple[Place, Completion], ...]
    ended: bool
    """Nothing more comes."""


class Outbox:
    """Finished completions on their way to the consumer.

    Args:
        most: how many may wait before no new request should be started.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._changed = threading.Condition()
        self._completions: deque[tuple[Place, Completion]] = deque()
        self._tokens = 0
        self._ended = False
        self._error: BaseException | None = None
        self._on_take: Callable[[], None] | None = None

    def count(self, tokens: int) -> None:
        """Report tokens that have just been drawn."""
        with self._changed:
            self._tokens += tokens
            self._changed.notify()

    def put(self, place: Place, completion: Completion) -> None:
        """Hand over a finished completion."""
        with self._changed:
            self._completions.append((place, completion))
            self._changed.notify()

    def end(self, error: BaseException | None = None) -> None:
        """Say that nothing more comes, and why if it is not that all is done."""
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify()

    def full(self) -> bool:
        """Whether the consumer has fallen behind."""
        with self._changed:
            return len(self._completions) >= self.most

    def notify_takes(self, call: Callable[[], None] | None) -> None:
        """Have ``call`` called, in the consumer's thread, when it has taken something."""
        with self._changed:
            self._on_take = call

    def take(self) -> Taken:
        """Wait a moment for something new and return what is there, perhaps nothing.

        An error comes after everything that was finished before it.

        Raises:
            BaseException: what :meth:`end` was given.
        """
        with self._changed:
            if not (self._completions or self._tokens or self._ended):
                self._changed.wait(_POLL_SECONDS)
            found = tuple(self._completions)
            tokens, ended = self._tokens, self._ended
            self._completions.clear()
            self._tokens = 0
            if found and self._on_take is not None:
                self._on_take()
            if ended and not found and self._error is not None:
                raise self._error
        return Taken(tokens, found, ended and (not found or self._error is None))
