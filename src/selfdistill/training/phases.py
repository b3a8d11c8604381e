"""Work in progress: how far a phase and a run are, how fast they go, and how long they will still take.

In: units that are done, steps that have finished, a clock. Out: numbers, and cells of text for a display.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Clock = Callable[[], float]
"""Seconds since some fixed moment."""

RATE_WINDOW = 60.0
"""Seconds over which a phase's speed is measured."""
STEP_WINDOW = 20
"""Steps over which the time per step is averaged."""


@dataclass(frozen=True, slots=True)
class Responses:
    """How many responses of a phase have finished."""

    done: int
    """Those that were there before included."""
    total: int
    tokens: int
    """Of the finished ones."""

    @property
    def tokens_left(self) -> float:
        """Tokens that the others will have, if they are as long on average; ``done`` must not be 0."""
        return max(0, self.total - self.done) * self.tokens / self.done


class Phase:
    """A phase in progress: what has been counted, and how fast it goes."""

    def __init__(self, name: str, total: int | None, unit: str, clock: Clock) -> None:
        self.name, self.total, self.unit = name, total, unit
        self.done = 0
        self.responses: Responses | None = None
        """Where the units are tokens of responses that are counted as well."""
        self._clock, self._started = clock, clock()
        self._marks: deque[tuple[float, int]] = deque()

    def advance(self, n: int) -> None:
        """Count ``n`` units."""
        self.done += n
        now = self._clock()
        # Between marks so that work which was found done already (a resumed comparison) is not taken for speed.
        if not self._marks or now - self._marks[-1][0] >= RATE_WINDOW / 100:
            self._marks.append((now, self.done))
        while len(self._marks) > 2 and now - self._marks[0][0] > RATE_WINDOW:
            self._marks.popleft()

    @property
    def seconds(self) -> float:
        """Time since the phase began."""
        return self._clock() - self._started

    @property
    def rate(self) -> float:
        """Units per second lately; 0 when unknown."""
        since, before = self._marks[0] if len(self._marks) > 1 else (self._started, 0)
        elapsed = self._clock() - since
        return (self.done - before) / elapsed if elapsed > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Time until all is done at the present rate, or None when unknown.

        All is what finished responses lead to expect; ``total`` as long as none has finished.
        """
        if self.rate <= 0:
            return None
        if self.responses is not None and self.responses.done:
            return self.responses.tokens_left / self.rate
        return None if self.total is None else max(0, self.total - self.done) / self.rate

    @property
    def bar(self) -> tuple[int | None, int]:
        """Total and done as a bar shows them."""
        if self.responses is not None:
            return self.responses.total, self.responses.done
        return self.total, min(self.done, self.total or self.done)

    def cells(self) -> tuple[str, str, str]:
        """Return how far, how fast and how long still, as text; empty where unknown."""
        counted: Phase | Responses = self if self.responses is None else self.responses
        far = f"{counted.done:,}" if counted.total is None else f"{counted.done:,} of {counted.total:,}"
        # A sampled response may end before its budget: until finished ones tell more, the total is a bound.
        foreseen = self.responses is not None and self.responses.done > 0
        bound = "at most " if self.unit == "tokens" and not foreseen else ""
        left = self.seconds_left
        return (
            f"{far} {self.unit if counted is self else 'responses'}" if counted.done or counted.total else "",
            f"{self.rate:,.0f} {self.unit}/s" if self.rate >= 1 else "",
            f"{bound}{duration(left)} left" if left is not None else "",
        )


class Steps:
    """The steps of a run: how many are done, and how long the rest will take."""

    def __init__(self, clock: Clock) -> None:
        self.done = 0
        self.total: int | None = None
        self._clock = clock
        self._last: float | None = None
        self._durations: deque[float] = deque(maxlen=STEP_WINDOW)

    def finished(self, metrics: Mapping[str, Any], total: int | None) -> None:
        """Count the step that ``metrics`` describe. What lies between two steps (evaluations) counts as step time."""
        now = self._clock()
        first = metrics.get("seconds/step")
        if self._last is not None:
            self._durations.append(now - self._last)
        elif isinstance(first, float):
            self._durations.append(first)
        self._last = now
        self.done, self.total = int(metrics.get("step", self.done + 1)), total

    @property
    def seconds_left(self) -> float | None:
        """The moving average of the time per step, times the steps that remain; None when unknown."""
        if self.total is None or not self._durations:
            return None
        return max(0, self.total - self.done) * sum(self._durations) / len(self._durations)

    def cells(self) -> tuple[str, str]:
        """Return how far and how long still, as text; empty where unknown."""
        far = f"step {self.done}" if self.total is None else f"step {self.done} of {self.total}"
        left = self.seconds_left
        return far, "" if left is None else f"{duration(left)} left"


def duration(seconds: float) -> str:
    """Return a time span in the one or two units that matter: ``45 s``, ``3 min 20 s``, ``1 h 05 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
