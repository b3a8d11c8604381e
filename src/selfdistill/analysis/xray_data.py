"""An x-ray as the JSON that its page carries: small, and exact where a reader could tell the difference.

In: an :class:`~selfdistill.analysis.xray.Xray`. Out: plain values. Columns are base64 of little-endian arrays, which
the page reads with ``decodeColumn``: float32 (NaN stays NaN: unknown), int32 for ids, uint8 for flags. Probabilities
of top tokens are uint16: ``round(65534 sqrt(p))``, off by at most 1.6e-5 at p = 1 and less below; 65535 is unknown.
"""

from __future__ import annotations

import base64
import math
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from selfdistill.analysis.xray import COLUMNS, Context, RolloutXray, TokenTable, TopTokens, Xray

PROBABILITY_STEPS = 65534
"""Steps of sqrt(p); one more value says that it is unknown."""
CLIPPED = 0.99
"""Colours end at this quantile of a column: a few outliers would otherwise leave the rest pale."""


def pack(xray: Xray) -> dict[str, Any]:
    """Return everything that the page's scripts show; the question itself is in the markup."""
    return {
        "columns": dict(COLUMNS),
        "clipped": CLIPPED,
        "probabilitySteps": PROBABILITY_STEPS,
        "solution": xray.solution,
        "update": xray.update,
        "vocabulary": {str(index): word for index, word in xray.vocabulary.items()},
        "rollouts": [_rollout(one) for one in xray.rollouts],
    }


def _rollout(one: RolloutXray) -> dict[str, Any]:
    return {
        "sibling": one.sibling,
        "text": one.text,
        "finish": one.finish_reason,
        "reward": number(one.reward),
        "success": one.success,
        "answer": one.answer,
        "feedback": one.feedback,
        "objective": one.objective,
        "weight": number(one.weight),
        "advantage": number(one.advantage),
        "context": None if one.context is None else _context(one.context),
        "tokens": None if one.tokens is None else _tokens(one.tokens),
    }


def _context(one: Context) -> dict[str, Any]:
    return {
        "source": one.source,
        "shown": one.shown,
        "messages": [dict(message) for message in one.messages],
        "overlap": number(one.overlap),
        "hiddenRatio": number(one.hidden_ratio),
        "anchors": [asdict(anchor) for anchor in one.anchors],
        "parts": [{"text": words, "hidden": hidden} for words, hidden in one.solution_parts],
        "demonstrator": one.demonstrator,
        "truncated": one.truncated_tokens,
    }


def _tokens(table: TokenTable) -> dict[str, Any]:
    columns = {name: table.columns[name] for name in COLUMNS if name in table.columns}
    return {
        "ids": _column(table.ids, "<i4"),
        "columns": {name: _column(values, "<f4") for name, values in columns.items()},
        "selected": _column(table.selected, "u1"),
        "student": _top(table.student),
        "teacher": _top(table.teacher),
        "interpolated": _top(table.interpolated),
    }


def _top(top: TopTokens | None) -> dict[str, Any] | None:
    if top is None:
        return None
    return {
        "k": top.ids.shape[1],
        "ids": _column(top.ids, "<i4"),
        "probabilities": _column(quantised(top.probabilities), "<u2"),
    }


def quantised(probabilities: Float[Tensor, "n k"]) -> Tensor:
    """Return probabilities in steps of their square root, which keeps the small ones apart."""
    steps = (probabilities.detach().double().clamp(0, 1).sqrt() * PROBABILITY_STEPS).round()
    return torch.where(steps.isnan(), PROBABILITY_STEPS + 1, steps)


def _column(values: Tensor, kind: str) -> str:
    array = np.ascontiguousarray(values.detach().cpu().to(torch.float64).numpy()).astype(kind)
    return base64.b64encode(array.tobytes()).decode("ascii")


def number(value: float | None) -> float | None:
    """Return a number that JSON can say: None for an unknown one."""
    return None if value is None or not math.isfinite(value) else float(value)
