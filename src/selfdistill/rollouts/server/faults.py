"""What can go wrong with one server, sorted by what to do about it, and how long to wait before the next attempt.

Inside the package these are exceptions of their own; what leaves it is a :class:`~selfdistill.errors.RolloutError`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from selfdistill.errors import RolloutError

REMEDY = "start one with `selfdistill serve RECIPE`"
"""What helps when no server is left."""
SHOWN = 300
"""Most characters of a server's own words in a message."""


class Fault(Exception):
    """A request failed. ``str()`` is the reason, without the server's name."""


class Passing(Fault):
    """It may pass: 5xx, an abort, a malformed answer, or that nobody answers."""


class Absent(Passing):
    """Nobody answers: refused or broken connections, silence, a time limit."""


class StaleServer(Fault):
    """The server answers, but from other weights than it was given: it has to be given them again."""


class Refusal(Fault):
    """Asking again would not help: the server does not accept what we ask."""


class Unreachable(RolloutError):
    """A server could not be talked to, which may pass; the operation can be repeated when it is back."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait: twice as long after each failure, up to a bound, and never exactly as long as others wait."""

    first: float = 0.5
    """Seconds after the first failure, at most."""
    most: float = 15.0
    """Seconds after many failures, at most."""
    source: random.Random = field(default_factory=lambda: random.Random(0))
    """Of the jitter."""

    def seconds(self, failures: int) -> float:
        """Return the pause after so many failures in a row (from 1): between half of its bound and all of it."""
        bound = min(self.most, self.first * 2.0 ** min(max(failures, 1) - 1, 30))
        return bound * (0.5 + 0.5 * self.source.random())


def shortened(text: object) -> str:
    """Return a server's words as one line of printable characters, cut to :data:`SHOWN`."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in str(text)).split())
    return line if len(line) <= SHOWN else f"{line[: SHOWN - 3]}..."
