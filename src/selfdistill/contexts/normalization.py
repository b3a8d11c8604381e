r"""Norm of PAINT's anchors: one spelling for the many ways of writing the same formula (METHODS 3.1).

In: any text, also untrusted model output. Out: the same text without layout. Every pattern is matched in time linear in
the text.

``canonical`` unifies the spelling and keeps white space, so that neighbouring numbers stay apart; ``normalize`` drops
the white space too.
"""

from __future__ import annotations

import re

# 1,234,567 and LaTeX's 1{,}234 and 1,\!234, but no comma of a list (12, 345), of 12345,678 or of 0.5,125.
_THOUSANDS = re.compile(r"(?<![0-9.])[0-9]{1,3}(?:(?:,(?:\\!)?|\{,\})[0-9]{3})+(?![0-9])")
_THOUSANDS_COMMA = re.compile(r",(?:\\!)?|\{,\}")

_SPELLING = re.compile(
    r"""
      (?P<newline>\\\\)                                              # kept, lest \\[2pt] seem to hold a \[
    | (?P<tight>\\[,!])                                              # \, and \! vanish even between digits: 1\,000
    | (?P<space>\\(?:left|right)(?![A-Za-z]) | \\[;()\[\]$\s] | \$)  # delimiters: as good as white space
    | (?P<fraction>\\[dt]frac(?![A-Za-z]))
    | (?P<times>\\(?:cdot|times)(?![A-Za-z]) | [\u00d7\u2715\u2a2f\u00b7\u22c5\u2219])
    | (?P<minus>[\u2010-\u2015\u2212\ufe63\uff0d])
    """,
    re.VERBOSE,
)
_SPELLED = {"newline": r"\\", "tight": "", "space": " ", "fraction": r"\frac", "times": "*", "minus": "-"}
_BARE_FRACTION = re.compile(r"\\frac\s*(\d)\s*(\d)")
r"""TeX reads ``\frac12`` as one half; unbraced it would look like the number 12. Ours, beyond METHODS 3.1."""
_WHITE_SPACE = re.compile(r"\s+")


def _spell(match: re.Match[str]) -> str:
    return _SPELLED[match.lastgroup or "space"]


def canonical(text: str) -> str:
    """Return ``text`` in lower case with one spelling per symbol; delimiters become spaces and white space is kept."""
    joined = _THOUSANDS.sub(lambda number: _THOUSANDS_COMMA.sub("", number[0]), text)
    return _BARE_FRACTION.sub(r"\\frac{\1}{\2}", _SPELLING.sub(_spell, joined).lower())


def normalize(text: str) -> str:
    """Return Norm(text): the canonical text without white space (METHODS 3.1)."""
    return _WHITE_SPACE.sub("", canonical(text))
