"""Alternating repeats: A B A B, after a warm-up; and the ratio of two of the things that were timed.

A machine's speed drifts. Contestants therefore take turns, and a ratio is taken within each round, where both saw the
same machine, before the median over rounds is.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch

Work = Callable[[], object]


class Spread(NamedTuple):
    """The middle and the ends of a few figures."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Return median, minimum and maximum."""
    return Spread(statistics.median(values), min(values), max(values))


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """Return the spread of the rounds' ratios."""
    return spread([above / below for above, below in zip(numerators, denominators, strict=True)])


def alternate(
    contestants: Mapping[str, Work], *, repeats: int, warmup: int, device: torch.device
) -> dict[str, list[float]]:
    """Return each contestant's seconds, one figure per round; every round runs all of them in the given order."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    gc.freeze()  # what the libraries hold need not be looked through before every run
    try:
        for index in range(-warmup, repeats):
            for name, work in contestants.items():
                taken = seconds_of(work, device)
                if index >= 0:
                    seconds[name].append(taken)
                say(f"{'warm-up' if index < 0 else f'round {index + 1} of {repeats}'}: {name} {taken:.3f} s")
    finally:
        gc.unfreeze()
    return seconds


def seconds_of(work: Work, device: torch.device) -> float:
    """Run ``work`` once and return its wall-clock seconds, the device's queue included."""
    gc.collect()
    synchronise(device)
    started = time.perf_counter()
    result = work()
    synchronise(device)
    taken = time.perf_counter() - started
    del result
    return taken


def synchronise(device: torch.device) -> None:
    """Wait for a CUDA device; others never run ahead."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def say(message: str) -> None:
    """Show progress, apart from the table on standard output."""
    print(message, file=sys.stderr, flush=True)
