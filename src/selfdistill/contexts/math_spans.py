r"""Where a text holds mathematics: math spans, boxed answers, equations in plain text (METHODS 3.1).

In: a reference solution. Out: pieces of it, not yet normalised. One pass over the text each, so time is linear in its
length.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_DELIMITER = re.compile(r"\\\\|\\\$|\$\$|\$|\\[()\[\]]|\n[ \t]*\n")
_CLOSES = {"$": "$", "$$": "$$", r"\(": r"\)", r"\[": r"\]"}
# Two plain words in a row, or a long one by itself: found between two amounts of money, not inside a formula.
_PROSE = re.compile(r"(?<![\\A-Za-z'])[A-Za-z']{2,}[.,]?\s+[A-Za-z']{2,}|(?<!\S)[A-Za-z']{4,}(?!\S)")
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|textit|mathrm|mbox|operatorname)\s*\{[^{}]*\}")

_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)

_TIMES_LETTER = re.compile(r"(?<=[0-9])[ \t]+[xX][ \t]+(?=[0-9])")
_TOKEN = re.compile(
    r"""
      (?P<space>[ \t]+)
    | (?P<end><<|>>|<?=>|->                                 # calculator marks and arrows
        |\\(?:boxed|fbox|framebox)(?![A-Za-z])|[^\W\d_]{4,})  # the answer, prose
    | (?P<command>\\[A-Za-z]+)
    | (?P<operand>[^\W\d_]+|[0-9]+(?:\.[0-9]+)?|(?<!\.)\.[0-9]+|[%!'°])
    | (?P<open>[(\[{])
    | (?P<close>[)\]}])
    | (?P<operator>[-+*/^_=<>≤≥≠≈÷|&])
    | (?P<comma>,)
    | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_DANGLING_START = re.compile(r"(?:[+*/^_=<>≤≥≠≈÷|&,\s]|-(?=[\s-]))+")
_DANGLING_END = "+-*/^_=<>≤≥≠≈÷|&, \t"


def split_math(text: str) -> tuple[list[str], str]:
    r"""Return the contents of the math spans ``$..$``, ``$$..$$``, ``\(..\)``, ``\[..\]``, and the remaining text.

    No span crosses an empty line. A ``$`` before a digit does not close a span, nor does one after plain prose: those
    are amounts of money. In the remaining text each span has become a line break.
    """
    spans: list[str] = []
    rest: list[str] = []
    opener, begin, done = "", 0, 0  # opener of the span under way, start of its contents, end of the text dealt with
    for match in _DELIMITER.finditer(text):
        delimiter = match[0]
        if delimiter.isspace():
            opener = ""
        elif opener == "$" and delimiter == "$$":  # $a$$b$: one closes, one opens
            spans.append(text[begin : match.start()])
            rest.append(text[done : begin - 1])
            begin, done = match.end(), match.end() - 1
        elif opener and delimiter == _CLOSES[opener]:
            if opener == "$" and not _closes_inline(text, begin, match):
                begin = match.end()
                continue
            spans.append(text[begin : match.start()])
            rest.append(text[done : begin - len(opener)])
            opener, done = "", match.end()
        elif delimiter in _CLOSES and (not opener or opener == delimiter or (opener == "$" and delimiter != "$")):
            opener, begin = delimiter, match.end()
    rest.append(text[done:])
    return spans, "\n".join(rest)


def _closes_inline(text: str, begin: int, dollar: re.Match[str]) -> bool:
    if text[dollar.end() : dollar.end() + 1].isdecimal():
        return False
    return _PROSE.search(_TEXT_COMMAND.sub("", text[begin : dollar.start()])) is None


@dataclass(frozen=True, slots=True)
class Box:
    """Where a boxed answer is."""

    whole: slice
    """The command with its braces."""
    contents: slice
    """What is between the braces."""


def boxes(text: str) -> list[Box]:
    r"""Return every ``\boxed{..}``, ``\fbox{..}`` and ``\framebox{..}`` with balanced braces, in order."""
    starts = {match.end() - 1: match.start() for match in _BOX.finditer(text)}
    if not starts:
        return []
    found: list[Box] = []
    unclosed: list[int] = []
    for match in _BRACE.finditer(text):
        if match[0] == "{":
            unclosed.append(match.start())
        elif match[0] == "}" and unclosed:
            brace = unclosed.pop()
            if brace in starts:
                found.append(Box(slice(starts[brace], match.end()), slice(brace + 1, match.start())))
    return sorted(found, key=lambda box: int(box.whole.start))


def equations(text: str) -> Iterator[str]:
    """Yield the pieces of plain text in which an ``=`` stands between operands, like ``17+25=42`` or ``2(a + b) = 20``.

    Operands are numbers, variables, words of up to three letters, commands and brackets, joined by operators; two
    operands with only white space between them, a longer word, a line break, a calculator mark (``<<``) or an arrow end
    the piece.
    """
    text = _TIMES_LETTER.sub("x", text)
    start, end, depth = -1, 0, 0  # of the piece under way (start -1: none), and its open brackets
    after_operand = gap = False
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup
        if kind == "space":
            gap = True
            continue
        ends = kind in ("end", "other") or (depth <= 0 and kind in ("close", "comma"))
        unjoined = gap and after_operand and kind in ("operand", "command", "open")
        if start >= 0 and (ends or unjoined):
            yield from _equation(text[start:end])
        if ends or unjoined:
            start, depth = -1, 0
        gap = False
        if ends:
            after_operand = False
            continue
        if start < 0:
            start = match.start()
        depth += (kind == "open") - (kind == "close")
        end, after_operand = match.end(), kind in ("operand", "close")
    if start >= 0:
        yield from _equation(text[start:end])


def _equation(piece: str) -> Iterator[str]:
    if "=" not in piece:
        return
    unclosed = sum(map(piece.count, "([{")) - sum(map(piece.count, ")]}"))
    leading = len(piece) - len(piece.lstrip("([{"))
    piece = piece[max(0, min(unclosed, leading)) :]
    dangling = _DANGLING_START.match(piece)
    piece = piece[dangling.end() if dangling else 0 :].rstrip(_DANGLING_END)
    if piece.startswith("(") and piece.find(")") == len(piece) - 1:  # (x = 3)
        piece = piece[1:-1]
    left, _, right = piece.partition("=")
    if any(map(str.isalnum, left)) and any(map(str.isalnum, right)):
        yield piece
