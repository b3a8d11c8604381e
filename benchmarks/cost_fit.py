"""The form of the cost model, and its coefficients by least squares.

Seconds of a step on P processes, whose trained model has N parameters in L layers; all coefficients are >= 0 and belong
to one number of processes:

    sampling = a + b L longest + c 2N sampled / P + d sampled / P + exchange
    scoring  = a + b L + c 2N teacher / P + exchange
    update   = a + b N / P + c 6N student / P + exchange
    exchange = calls x latency + bytes / bandwidth           (P > 1; measured by itself, not fitted here)
    sync     = a + bytes / bandwidth of the folder

``longest`` is the number of decoding steps; ``sampled``, ``teacher`` and ``student`` are positions of all rows. The
attention's own products (quadratic in the length) are left out: these sequences are short.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

PARTS = ("sampling", "scoring", "update")
TERMS = {
    "sampling": ("once", "per layer and decoding step", "per FLOP", "per sampled position"),
    "scoring": ("once", "per layer", "per FLOP"),
    "update": ("once", "per parameter", "per FLOP"),
}
"""What the coefficients are."""


@dataclass(frozen=True, slots=True)
class Line:
    """seconds = once + bytes / bandwidth."""

    once: float
    per_byte: float

    def seconds(self, size: float, calls: float = 1) -> float:
        """Return the seconds for so many bytes in so many calls."""
        return calls * self.once + size * self.per_byte

    @property
    def bandwidth(self) -> float:
        """Bytes per second."""
        return 1 / max(self.per_byte, 1e-15)


def features(part: str, row: Mapping[str, Any]) -> list[float]:
    """Return what the coefficients of a part are multiplied by."""
    share, parameters, layers = 1 / row["processes"], row["parameters"], row["layers"]
    if part == "sampling":
        sampled = row["sampled"] * share
        return [1.0, layers * row["longest"], 2 * parameters * sampled, sampled]
    if part == "scoring":
        return [1.0, layers, 2 * parameters * row["teacher"] * share]
    return [1.0, parameters * share, 6 * parameters * row["student"] * share]


def exchanged(part: str, row: Mapping[str, Any], line: Line) -> float:
    """Return the seconds in which weights are brought together before a part, and gradients after the update."""
    if row["processes"] == 1:
        return 0.0
    own = 4 * row["parameters"] / row["processes"]  # float32; what each process hands to the others
    times = 2 if part == "update" else 1
    return times * line.seconds(own, calls=row["layers"] + 1)


def fit_line(rows: Sequence[Mapping[str, Any]]) -> Line:
    """Return the line through (bytes, seconds) with the least relative errors."""
    once, per_byte = least_squares([[1.0, row["bytes"]] for row in rows], [row["seconds"] for row in rows])
    return Line(once, per_byte)


def fit(part: str, rows: Sequence[Mapping[str, Any]], line: Line) -> list[float]:
    """Return the coefficients of a part for rows of one number of processes."""
    wanted = [max(row[part] - exchanged(part, row, line), 0.1 * row[part]) for row in rows]
    return least_squares([features(part, row) for row in rows], wanted)


def predict(part: str, row: Mapping[str, Any], coefficients: Sequence[float], line: Line) -> float:
    """Return the seconds of a part."""
    own = sum(a * b for a, b in zip(coefficients, features(part, row), strict=True))
    return own + exchanged(part, row, line)


def least_squares(rows: Sequence[Sequence[float]], wanted: Sequence[float]) -> list[float]:
    """Return coefficients >= 0 with the least sum of squared relative errors.

    Relative, because seconds span two orders of magnitude; >= 0, because nothing takes less time the more there is of
    it. A coefficient that would be negative is left out, and the rest is fitted again.
    """
    target = torch.tensor(wanted, dtype=torch.float64)
    matrix = torch.tensor(rows, dtype=torch.float64) / target[:, None]
    kept = list(range(matrix.shape[1]))
    answer = [0.0] * matrix.shape[1]
    while kept:
        scale = matrix[:, kept].norm(dim=0).clamp_min(1e-300)
        found = torch.linalg.lstsq(matrix[:, kept] / scale, torch.ones(len(wanted), 1, dtype=torch.float64)).solution
        values = (found[:, 0] / scale).tolist()
        lowest = min(range(len(kept)), key=lambda place: values[place] * float(scale[place]))
        if values[lowest] >= 0:
            for place, value in zip(kept, values, strict=True):
                answer[place] = value
            break
        kept.pop(lowest)
    return answer
