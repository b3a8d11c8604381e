r"""The comparison that runs inside the worker process: math-verify on two short LaTeX strings.

Imported in the child only. Time and memory are limited by :mod:`selfdistill.verifiers.worker`, so math-verify's own
limits (signals, main thread only) are off. The reference goes first: the relation is not symmetric (``1 < x < 2``
accepts ``(1, 2)``, but not the other way round).
"""

from __future__ import annotations

import logging
from typing import Any

from math_verify import parse, verify

# math-verify warns once that its time limits are off, and of every string that it cannot parse.
logging.disable(logging.CRITICAL)


def equal(gold: str, answer: str) -> bool:
    """Say whether ``answer`` means what the reference ``gold`` says."""
    return bool(verify(_parsed(gold), _parsed(answer), timeout_seconds=None))


def _parsed(text: str) -> list[Any]:
    parsed: list[Any] = parse("\\boxed{" + text + "}", parsing_timeout=None)
    return parsed
