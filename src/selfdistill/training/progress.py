"""The progress display: which phase, how far, how fast, how long still.

In: what the loop reports (a phase begins, n units are done, a step's metrics). Out: on a terminal a few live lines at
the bottom of standard error; elsewhere plain text, one line per step, and a sign of life during long phases.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TextIO

if TYPE_CHECKING:
    from rich.console import Group

Clock = Callable[[], float]
"""Seconds since some fixed moment."""

HEADLINES = {
    "loss": "loss",
    "pass_rate": "pass rate",
    "informative_share": "informative",
    "response_length": "length",
    "grad_norm": "gradient",
    "tokens_per_second/sampling": "sampled tokens/s",
    "tokens_per_second/update": "trained tokens/s",
}
"""The metrics that a step's line shows, and what it calls them; the rest is in metrics.jsonl."""

RATE_WINDOW = 60.0
"""Seconds over which a phase's speed is measured."""
STEP_WINDOW = 20
"""Steps over which the time per step is averaged."""


class Progress(Protocol):
    """What the training loop tells a display."""

    def phase(self, name: str, total: int | None = None, unit: str = "tokens") -> AbstractContextManager[None]:
        """Show that ``name`` is going on; ``total`` units of work are expected (at most, for sampled tokens)."""
        ...

    def advance(self, n: int) -> None:
        """Count ``n`` more units of the innermost phase."""
        ...

    def responses(self, done: int, total: int, tokens: int) -> None:
        """Show that ``done`` of the innermost phase's ``total`` responses have finished, ``tokens`` long altogether."""
        ...

    def step_line(self, metrics: Mapping[str, Any], total: int | None = None) -> None:
        """Show a finished step; ``metrics["step"]`` of ``total`` steps are done."""
        ...

    def message(self, text: str) -> None:
        """Show a line that stays. Control characters in it (it may quote a model) are not sent to the terminal."""
        ...


class NullProgress:
    """Shows nothing."""

    def phase(self, name: str, total: int | None = None, unit: str = "tokens") -> AbstractContextManager[None]:
        """Do nothing."""
        return nullcontext()

    def advance(self, n: int) -> None:
        """Do nothing."""

    def responses(self, done: int, total: int, tokens: int) -> None:
        """Do nothing."""

    def step_line(self, metrics: Mapping[str, Any], total: int | None = None) -> None:
        """Do nothing."""

    def message(self, text: str) -> None:
        """Do nothing."""


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


class _Display:
    """What both displays share: the phases, the steps, and the ``with`` statement."""

    def __init__(self, stream: TextIO, clock: Clock) -> None:
        self._stream, self._clock = stream, clock
        self._phases: list[Phase] = []
        self._steps = Steps(clock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to clean up by default."""

    @contextmanager
    def phase(self, name: str, total: int | None = None, unit: str = "tokens") -> Iterator[None]:
        """Show that ``name`` is going on."""
        self._phases.append(Phase(name, total, unit, self._clock))
        try:
            yield
        finally:
            self._phases.pop()

    def advance(self, n: int) -> None:
        """Count ``n`` more units of the innermost phase; outside of a phase nothing is counted."""
        if self._phases:
            self._phases[-1].advance(n)

    def responses(self, done: int, total: int, tokens: int) -> None:
        """Show how many responses of the innermost phase have finished; outside of a phase nothing is shown."""
        if self._phases:
            self._phases[-1].responses = Responses(done, total, tokens)


class PlainProgress(_Display):
    """Plain lines: one per step, one per message, and one every ``every`` seconds while a phase goes on."""

    def __init__(self, stream: TextIO, *, every: float = 30.0, clock: Clock = time.monotonic) -> None:
        super().__init__(stream, clock)
        self._every, self._written = every, clock()

    def advance(self, n: int) -> None:
        """Count, and give a sign of life if nothing was written for a while."""
        super().advance(n)
        if self._phases and self._clock() - self._written >= self._every:
            phase = self._phases[-1]
            self._write(", ".join(cell for cell in (f"  {phase.name}: {phase.cells()[0]}", *phase.cells()[1:]) if cell))

    def step_line(self, metrics: Mapping[str, Any], total: int | None = None) -> None:
        """Write the step's line."""
        self._steps.finished(metrics, total)
        far, left = self._steps.cells()
        self._write("  ".join(cell for cell in (far, metrics_text(metrics), left) if cell))

    def message(self, text: str) -> None:
        """Write ``text``."""
        self._write(printable(text))

    def _write(self, line: str) -> None:
        self._written = self._clock()
        self._stream.write(f"{line}\n")
        self._stream.flush()


class LiveProgress(_Display):
    """Live lines at the bottom of a terminal: the run, the phase, the last step's metrics."""

    def __init__(self, stream: TextIO, *, clock: Clock = time.monotonic) -> None:
        from rich.console import Console
        from rich.live import Live

        super().__init__(stream, clock)
        self._metrics = ""
        self._live = Live(
            get_renderable=self.picture,
            console=Console(file=stream),
            refresh_per_second=4,
            transient=True,
            redirect_stdout=False,
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the live lines away, also after an error."""
        self._live.stop()

    def step_line(self, metrics: Mapping[str, Any], total: int | None = None) -> None:
        """Show the step's metrics in place of the last one's."""
        self._steps.finished(metrics, total)
        self._metrics = metrics_text(metrics)

    def message(self, text: str) -> None:
        """Print ``text`` above the live lines."""
        from rich.text import Text

        self._live.console.print(Text(printable(text)))

    def picture(self) -> Group:
        """Return the live lines as they are now. Runs in the display's own thread."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        rows = Table.grid(padding=(0, 2))
        if self._steps.done:
            far, left = self._steps.cells()
            rows.add_row(Text(far), ProgressBar(self._steps.total, self._steps.done, width=24), Text(left))
        for phase in list(self._phases):
            far, speed, left = phase.cells()
            total, done = phase.bar
            bar = ProgressBar(total, done, width=24, pulse=not total)
            cells = [cell for cell in (far, speed, left) if cell] or [duration(phase.seconds)]
            rows.add_row(Text(phase.name, "cyan"), bar, Text(", ".join(cells)))
        return Group(rows, Text(self._metrics, "dim")) if self._metrics else Group(rows)


def make_progress(stream: TextIO | None = None) -> PlainProgress | LiveProgress:
    """Return the display that suits ``stream`` (standard error by default), to be used in a ``with`` statement."""
    stream = sys.stderr if stream is None else stream
    return LiveProgress(stream) if stream.isatty() else PlainProgress(stream)


def metrics_text(metrics: Mapping[str, Any]) -> str:
    """Return the headline metrics in one line; every number (but ``step``) if there is no headline among them."""
    named = {label: metrics[name] for name, label in HEADLINES.items() if name in metrics}
    shown = named or {name: value for name, value in metrics.items() if name != "step"}
    return "  ".join(f"{name} {number(value)}" for name, value in shown.items() if isinstance(value, int | float))


def number(value: float) -> str:
    """Return a number as a person reads it: three significant digits, whole numbers in full."""
    if isinstance(value, int) or (abs(value) >= 100 and abs(value) < 1e15):
        return f"{value:,.0f}"
    return f"{value:#.3g}" if 1e-3 <= abs(value) else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Return a time span in the one or two units that matter: ``45 s``, ``3 min 20 s``, ``1 h 05 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def printable(text: str) -> str:
    """Return ``text`` without control characters (escape sequences, carriage returns), line breaks and tabs kept."""
    return "".join(
        character if character.isprintable() or character in "\n\t" else "\N{REPLACEMENT CHARACTER}"
        for character in text
    )
