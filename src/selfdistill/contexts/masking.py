"""PAINT's partial solution: how much of the reference is hidden, and where (arXiv 2604.26573; METHODS 3.2).

In: the overlap of response and reference, the reference. Out: the hidden ratio, the reference with one contiguous part
replaced by a marker.

    rho = rho_wrong + (rho_correct - rho_wrong) * alpha        (published 0.30 and 0.40: a HIGH overlap hides MORE)
"""

from __future__ import annotations

import math
import re
from typing import Literal, cast, get_args

from selfdistill.contexts.templates import OMISSION_MARKER
from selfdistill.errors import RecipeError, nearest
from selfdistill.randomness import python_random

Placement = Literal["suffix", "prefix", "middle", "random", "suffix_at_sentence"]
"""Which part is hidden: the end (published), the start, the centre, a seeded random stretch, or the end from the
nearest sentence end on."""

PLACEMENT_ALIASES = {
    "sentence": "suffix_at_sentence",
    "suffix_sentence": "suffix_at_sentence",
    "sentence_suffix": "suffix_at_sentence",
}
"""Other names that are understood."""

_RATIO_UNITS = 10**12  # a ratio is read to 12 decimals, so that 0.35 - 1e-17 hides as much as 0.35
_SENTENCE_END = re.compile(r"""(?<=[.!?。])\s|(?<=[.!?]["')\]])\s|\n""")


def hidden_ratio(overlap: float, wrong: float = 0.30, correct: float = 0.40) -> float:
    """Return the share of the solution's characters to hide, between ``wrong`` (overlap 0) and ``correct`` (overlap 1).

    Raises:
        RecipeError: if any argument is outside [0, 1].
    """
    overlap, wrong, correct = _share("overlap", overlap), _share("wrong", wrong), _share("correct", correct)
    return min(1.0, max(0.0, wrong + (correct - wrong) * overlap))


def mask_solution(text: str, ratio: float, placement: str = "suffix", seed: int | None = None) -> str:
    """Return ``text`` with round_half_up(ratio * len) characters (code points) replaced by one omission marker.

    Nothing to hide returns ``text`` itself, without a marker. ``middle`` is centred (the odd character stays behind
    it); ``random`` depends on ``seed`` alone (None counts as 0); ``suffix_at_sentence`` moves the suffix's start to the
    nearest inner sentence end or line end, the earlier of two equally near, and is the plain suffix where there is
    none.

    Raises:
        RecipeError: if ``ratio`` is outside [0, 1] or ``placement`` is unknown.
    """
    name = placement_name(placement)
    hidden = _round_half_up(_share("ratio", ratio), len(text))
    if hidden == 0:
        return text
    start, end = _hidden_part(text, hidden, name, seed)
    return text[:start] + OMISSION_MARKER + text[end:]


def shown_parts(text: str, shown: str) -> tuple[tuple[str, bool], ...]:
    """Return ``text`` in consecutive parts, each with whether it is hidden in ``shown``.

    ``shown`` is what :func:`mask_solution` made of it, perhaps cut off at its end to fit a prompt.
    """
    start = shown.find(OMISSION_MARKER)
    while start >= 0 and text[:start] == shown[:start]:
        rest = shown[start + len(OMISSION_MARKER) :]
        place = len(text) - len(rest) if text.endswith(rest) else text.find(rest, start)
        if place > start:
            end = place + len(rest)
            parts = ((text[:start], False), (text[start:place], True), (text[place:end], False), (text[end:], True))
            return tuple((part, hidden) for part, hidden in parts if part)
        start = shown.find(OMISSION_MARKER, start + 1)
    same = (one == other for one, other in zip(text, shown, strict=False))
    kept = next((place for place, is_same in enumerate(same) if not is_same), min(len(text), len(shown)))
    return tuple((part, hidden) for part, hidden in ((text[:kept], False), (text[kept:], True)) if part)


def placement_name(name: str) -> Placement:
    """Return the placement that ``name`` or its alias stands for.

    Raises:
        RecipeError: if it stands for none.
    """
    resolved = PLACEMENT_ALIASES.get(name, name)
    if resolved not in get_args(Placement):
        raise RecipeError(f"placement {name!r} is unknown{nearest(name, get_args(Placement))}")
    return cast(Placement, resolved)


def _hidden_part(text: str, hidden: int, placement: Placement, seed: int | None) -> tuple[int, int]:
    kept = len(text) - hidden
    if placement == "prefix":
        start = 0
    elif placement == "middle":
        start = kept // 2
    elif placement == "random":
        start = python_random(seed or 0, "mask").randint(0, kept)
    elif placement == "suffix_at_sentence":
        return _nearest_sentence_end(text, kept), len(text)
    else:
        start = kept
    return start, start + hidden


def _nearest_sentence_end(text: str, position: int) -> int:
    ends = (match.start() for match in _SENTENCE_END.finditer(text.rstrip()))
    return min((end for end in ends if end > 0), key=lambda end: abs(end - position), default=position)


def _round_half_up(ratio: float, length: int) -> int:
    """Return ``ratio * length`` rounded half up, in integers, because a float product may fall short of the half."""
    return (2 * round(ratio * _RATIO_UNITS) * length + _RATIO_UNITS) // (2 * _RATIO_UNITS)


def _share(name: str, value: float) -> float:
    share = float(value)
    if not (math.isfinite(share) and 0.0 <= share <= 1.0):
        raise RecipeError(f"{name} is {share:g}: it is a share, give a number from 0 to 1")
    return share
