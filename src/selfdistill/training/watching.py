"""Watching runs that go on elsewhere, from nothing but the files in their folders.

In: run folders. Out: one block of lines per run, refreshed until every run has its result. The files are only read, and
what was read once is not read again.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from selfdistill.errors import TrainingError
from selfdistill.training.phases import STEP_WINDOW, duration
from selfdistill.training.progress import printable
from selfdistill.training.recipe_file import read_yaml
from selfdistill.training.run_folder import RunFolder
from selfdistill.training.terminal import Overview, cropped

REFRESH_SECONDS = 2.0


class Tail:
    """The whole lines that were added to a file since the last look."""

    def __init__(self, file: Path) -> None:
        self._file, self._offset, self._identity = file, 0, 0

    @property
    def replaced(self) -> bool:
        """Whether it is another file than at the last look: a resumed run drops what it is going to write again."""
        if self._offset == 0:
            return False
        try:
            found = self._file.stat()
        except FileNotFoundError:
            return True
        return found.st_ino != self._identity or found.st_size < self._offset

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield the new JSON objects; a line that is none is left out."""
        try:
            with self._file.open("rb") as stream:
                self._identity = self._file.stat().st_ino
                stream.seek(self._offset)
                new = stream.read()
        except FileNotFoundError:
            return
        whole = new[: new.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.split(b"\n"):
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                yield record


class WatchedRun:
    """A run as its folder tells it.

    Args:
        path: the run folder.

    Raises:
        TrainingError: it is none.
    """

    def __init__(self, path: Path) -> None:
        self._folder = RunFolder(path)
        if not self._folder.recipe.exists():
            raise TrainingError(f"{str(path)!r} is no run folder: it has no recipe.yaml; give the folder of a run")
        self._start_over()

    def _start_over(self) -> None:
        self._metrics, self._warnings = Tail(self._folder.metrics), Tail(self._folder.warnings)
        self._overview, self._evaluated = Overview(), set[int]()
        self._seconds: deque[float] = deque(maxlen=STEP_WINDOW)
        self._step = 0
        self._result: dict[str, Any] | None = None

    @property
    def finished(self) -> bool:
        """Whether its result was there when it was last looked at."""
        return self._result is not None

    def refresh(self) -> None:
        """Read what is new."""
        if self._metrics.replaced or self._warnings.replaced:
            self._start_over()
        for row in self._metrics.records():
            self._overview.step(row)
            self._step = int(row.get("step", self._step))
            if isinstance(seconds := row.get("seconds/step"), int | float):
                self._seconds.append(seconds)
        for row in self._warnings.records():
            self._overview.warning(f"{row.get('text', '')}; {row.get('remedy', '')}")
        for step in self._folder.evaluated_steps():
            if step not in self._evaluated and (found := _read(self._folder.evaluation(step) / "result.json")):
                self._evaluated.add(step)
                self._overview.evaluation(step, float(found["avg"]["mean"]))
        self._result = _read(self._folder.result)

    def lines(self, encoding: str = "utf-8") -> list[Text]:
        """Return what was found, as lines."""
        title = Text(printable(str(self._folder.path)), "bold")
        return [title, Text(self._state()), *self._overview.lines(encoding)]

    def _state(self) -> str:
        """Return how far the run is, or how it ended."""
        train = read_yaml(self._folder.recipe).get("train", {})
        steps = int(train.get("steps", 0))
        if self._result is not None:
            return _ending(self._result, steps)
        cells = [f"step {self._step} of {steps} ({self._step / max(1, steps):.0%})"]
        if self._seconds:
            left = max(0, steps - self._step) * sum(self._seconds) / len(self._seconds)
            cells.append(f"{'at most ' if train.get('rollout_tokens') else ''}{duration(left)} left")
        if self._folder.metrics.exists():
            # The wall clock, because another process, perhaps on another machine, has written the file.
            cells.append(f"last step {duration(max(0.0, time.time() - self._folder.metrics.stat().st_mtime))} ago")
        return ", ".join(cells)


def watch_runs(
    paths: Sequence[Path],
    stream: TextIO,
    *,
    once: bool = False,
    every: float = REFRESH_SECONDS,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Show runs until all have their results; once, if ``once`` is set or ``stream`` is no terminal.

    Args:
        paths: run folders.
        stream: where to show them.
        once: do not wait.
        every: seconds between two looks.
        sleep: waits.

    Raises:
        TrainingError: a path is no run folder.
    """
    runs = [WatchedRun(path) for path in paths]
    console = Console(file=stream)
    if once or not stream.isatty():
        for line in _lines(runs, console.encoding):
            console.print(line, soft_wrap=True)
        return
    with Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(Group(*map(cropped, _lines(runs, console.encoding))), refresh=True)
            if all(run.finished for run in runs):
                return
            sleep(every)


def _lines(runs: Sequence[WatchedRun], encoding: str) -> Iterator[Text]:
    for number, run in enumerate(runs):
        run.refresh()
        if number:
            yield Text()
        yield from run.lines(encoding)


def _ending(result: dict[str, Any], steps: int) -> str:
    step, early, best = result.get("step"), result.get("stopped_early"), result.get("best_step")
    cells = [f"finished after step {step}"]
    if early:
        cells = [f"stopped early after step {step} of {steps} ({early.get('name')})"]
    if best is not None:
        cells.append(f"best checkpoint: step {best}")
    return printable(", ".join(cells))


def _read(file: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None
