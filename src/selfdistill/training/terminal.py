"""A run at a glance, as lines for a terminal: the last step, its phases, the accuracy so far, the last warnings.

In: metrics, evaluations and warnings as they come. Out: lines for rich, used by the display of a run under way and by
``selfdistill watch``. Text that may come from a model is made printable.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeGuard

from rich.text import Text

from selfdistill.training.progress import metrics_text, number, printable

BLOCKS = "▁▂▃▄▅▆▇█"
ASCII_BLOCKS = "_.:-=+*#"
"""The same for terminals that know no more than ASCII."""
SPARKS = 40
"""Points of a curve; more are averaged."""
RECENT = 400
"""Steps whose pass rate is shown."""
WARNINGS = 3
"""Warnings that are shown."""
NO_PHASES = ("step", "verifying_hidden", "sampling_ahead")
"""Seconds that are the sum of phases, or pass during others."""
LEAST_SECONDS = 0.05
"""A shorter phase is not shown."""
LEAST_SPAN = 0.05
"""A curve that moves less than this is drawn flat: its noise is no picture."""


def sparkline(values: Sequence[float], *, blocks: str = BLOCKS, width: int = SPARKS) -> str:
    """Return a curve in one line, as high as it is between its own least and largest value."""
    shown = _averaged([value for value in values if math.isfinite(value)], width)
    if not shown:
        return ""
    low = min(shown)
    span = max(max(shown) - low, LEAST_SPAN)
    return "".join(blocks[min(len(blocks) - 1, int((value - low) / span * len(blocks)))] for value in shown)


def blocks_for(encoding: str) -> str:
    """Return what curves are drawn with on a terminal with this encoding."""
    try:
        BLOCKS.encode(encoding)
    except (LookupError, UnicodeEncodeError):
        return ASCII_BLOCKS
    return BLOCKS


def phases_text(metrics: Mapping[str, Any]) -> str:
    """Return what each phase of a step took, and its tokens per second."""
    cells = []
    for name, seconds in metrics.items():
        phase = name.removeprefix("seconds/")
        if phase == name or phase in NO_PHASES or not _is_number(seconds) or seconds < LEAST_SECONDS:
            continue
        rate = metrics.get(f"tokens_per_second/{phase}")
        speed = f" ({number(round(rate))} tokens/s)" if _is_number(rate) else ""
        cells.append(f"{phase} {seconds:.1f} s{speed}")
    return ", ".join(cells)


class Overview:
    """What is shown of a run below its progress."""

    def __init__(self) -> None:
        self._metrics: dict[str, Any] = {}
        self._pass_rates: deque[float] = deque(maxlen=RECENT)
        self._accuracies: dict[int, float] = {}
        self._warnings: deque[str] = deque(maxlen=WARNINGS)

    def step(self, metrics: Mapping[str, Any]) -> None:
        """Take a finished step's metrics."""
        self._metrics = dict(metrics)
        if _is_number(rate := metrics.get("pass_rate")):
            self._pass_rates.append(rate)

    def evaluation(self, step: int, mean: float) -> None:
        """Take the accuracy of the weights after ``step`` steps."""
        self._accuracies[step] = mean

    def warning(self, text: str) -> None:
        """Take a warning."""
        self._warnings.append(text)

    def lines(self, encoding: str = "utf-8") -> list[Text]:
        """Return the lines; what is not known yet has none."""
        blocks = blocks_for(encoding)
        shown = [
            (metrics_text(self._metrics), "dim"),
            (phases_text(self._metrics), "dim"),
            (self._accuracy(blocks), "green"),
            (self._pass_rate(blocks), "green"),
            *((f"! {' '.join(printable(text).split())}", "yellow") for text in list(self._warnings)),
        ]
        return [Text(text, style) for text, style in shown if text]

    def _accuracy(self, blocks: str) -> str:
        found = sorted(dict(self._accuracies).items())  # a copy: another thread may add one meanwhile
        if not found:
            return ""
        (last, now), (best, highest) = found[-1], max(found, key=lambda one: one[1])
        curve = sparkline([mean for _, mean in found], blocks=blocks)
        return f"accuracy  {curve} {now:.1%} at step {last}, best {highest:.1%} at step {best}"

    def _pass_rate(self, blocks: str) -> str:
        rates = list(self._pass_rates)
        if not rates:
            return ""
        span = f"{min(rates):.2f} to {max(rates):.2f} in the last {len(rates)} steps" if len(rates) > 1 else ""
        return f"pass rate {sparkline(rates, blocks=blocks)} {rates[-1]:.2f}{span and ', '}{span}"


def cropped(line: Text) -> Text:
    """Return the line for one row of a terminal."""
    line.no_wrap, line.overflow = True, "ellipsis"
    return line


def _averaged(values: Sequence[float], width: int) -> list[float]:
    """Return at most ``width`` values: means of equal stretches."""
    if len(values) <= width:
        return list(values)
    ends = [round(place * len(values) / width) for place in range(width + 1)]
    return [sum(values[a:b]) / (b - a) for a, b in pairwise(ends)]


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)
