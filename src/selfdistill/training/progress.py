"""The progress display: which phase, how far, how fast, how long still.

In: what the loop reports (a phase begins, n units are done, a step's metrics). Out: on a terminal a few live lines at
the bottom of standard error; elsewhere plain text, one line per step, and a sign of life during long phases.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TextIO

from selfdistill.training.phases import Clock, Phase, Responses, Steps, duration

if TYPE_CHECKING:
    from rich.console import Group

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

    def evaluation(self, step: int, mean: float) -> None:
        """Show the accuracy (avg@k) of the weights after ``step`` steps."""
        ...

    def message(self, text: str) -> None:
        """Show a line that stays. Control characters in it (it may quote a model) are not sent to the terminal."""
        ...

    def warning(self, text: str) -> None:
        """Show a sign that training goes wrong; as :meth:`message`, and harder to miss."""
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

    def evaluation(self, step: int, mean: float) -> None:
        """Do nothing."""

    def message(self, text: str) -> None:
        """Do nothing."""

    def warning(self, text: str) -> None:
        """Do nothing."""


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

    def evaluation(self, step: int, mean: float) -> None:
        """Do nothing by default: a message says it as well."""

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

    def warning(self, text: str) -> None:
        """Write ``text``, marked as a warning."""
        self._write(f"warning: {printable(text)}")

    def _write(self, line: str) -> None:
        self._written = self._clock()
        self._stream.write(f"{line}\n")
        self._stream.flush()


class LiveProgress(_Display):
    """Live lines at the bottom of a terminal: run, phase, last step, accuracy so far, warnings."""

    def __init__(self, stream: TextIO, *, clock: Clock = time.monotonic) -> None:
        from rich.console import Console
        from rich.live import Live

        from selfdistill.training.terminal import Overview

        super().__init__(stream, clock)
        self._overview = Overview()
        console = Console(file=stream)
        self._encoding = console.encoding
        self._live = Live(
            get_renderable=self.picture,
            console=console,
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
        self._overview.step(metrics)

    def evaluation(self, step: int, mean: float) -> None:
        """Add to the accuracy's curve."""
        self._overview.evaluation(step, mean)

    def message(self, text: str) -> None:
        """Print ``text`` above the live lines."""
        self._print(text)

    def warning(self, text: str) -> None:
        """Print ``text`` above the live lines, and keep its beginning among them."""
        self._print(f"warning: {text}", "yellow")
        self._overview.warning(text)

    def _print(self, text: str, style: str = "") -> None:
        from rich.text import Text

        self._live.console.print(Text(printable(text), style))

    def picture(self) -> Group:
        """Return the live lines as they are now. Runs in the display's own thread."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        from selfdistill.training.terminal import cropped

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
        return Group(rows, *map(cropped, self._overview.lines(self._encoding)))


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


def printable(text: str) -> str:
    """Return ``text`` without control characters (escape sequences, carriage returns), line breaks and tabs kept."""
    return "".join(
        character if character.isprintable() or character in "\n\t" else "\N{REPLACEMENT CHARACTER}"
        for character in text
    )
