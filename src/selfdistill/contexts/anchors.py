r"""PAINT's anchors and their overlap with a response (arXiv 2604.26573; METHODS 3.1).

In: a reference solution y* and a response y (untrusted text). Out: the anchors A(y*), and the share of them that the
response contains:

    alpha = |{a in A(y*) : a is contained in Norm(y)}| / |A(y*)|, in [0, 1]; no anchors -> 0

It is a recall of anchors: not n-grams, not a longest common subsequence. Time is linear in the two texts' lengths up to
the substring searches.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from selfdistill.contexts.math_spans import boxes, equations, split_math
from selfdistill.contexts.normalization import canonical, normalize

__all__ = ["anchor_hits", "anchor_overlap", "anchors", "normalize"]

MIN_FORMULA_CHARACTERS = 3
"""Shortest formula that counts, after Norm."""

_DIGITS = r"(?:[0-9]+(?:\.[0-9]+)?|(?<!\.)\.[0-9]+)"
# In canonical text. After a digit, letter or bracket a sign may be a subtraction or a range: it does not count there.
_NUMBER = re.compile(
    rf"(?P<sign>(?<![0-9a-z)\]}}])[-+])?(?<![0-9])(?P<number>{_DIGITS})"
    rf"(?:[ \t]*/[ \t]*(?P<denominator>{_DIGITS}))?(?P<percent>[ \t]*\\?%)?"
)
_IS_NUMBER = re.compile(rf"[-+]?{_DIGITS}(?:/{_DIGITS})?(?:\\?%)?")
_LATEX_FRACTION = re.compile(r"\\frac\s*\{\s*[0-9]+\s*\}\s*\{\s*[0-9]+\s*\}")
_HASHES = re.compile(rf"####\s*(?P<number>(?:-\s*)?{_DIGITS}(?:\s*/\s*{_DIGITS})?)")


def anchors(reference: str) -> frozenset[str]:
    r"""Return A(y*), normalised: the final answer, formula-like spans, informative numbers.

    - the answer: the last ``\boxed{..}``, or else the number after the last ``####``; a single digit counts here;
    - formula-like spans of at least 3 characters: the contents of math spans, and plain text with an ``=`` between
      operands. A span that is nothing but a box counts as the box's contents. Outer punctuation and a dangling ``=``
      are left off;
    - informative numbers, without sign (a hyphen may be a minus, a dash or a subtraction): two or more digits, a
      decimal or a fraction.
    """
    spaced = canonical(reference)
    found = {normalize(_answer(reference, spaced))}
    spans, plain = split_math(reference)
    formulas = (
        normalize(piece).lstrip("=,;:").rstrip("=.,;:") for piece in (*map(_unbox, spans), *equations(canonical(plain)))
    )
    found.update(formula for formula in formulas if len(formula) >= MIN_FORMULA_CHARACTERS)
    found.update(_informative_numbers(spaced))
    found.update(map(normalize, _LATEX_FRACTION.findall(spaced)))
    return frozenset(found - {""})


def anchor_overlap(reference: str, response: str) -> float:
    """Return alpha, the share of the reference's anchors that the response contains, in [0, 1]; 0 without anchors.

    A number is matched as a whole number (12 is in neither 3124 nor 12.5), where white space also separates numbers:
    ``=42`` and ``42+38`` on two lines both hold 42. A signed number needs its sign. Every other anchor has to be a
    substring of Norm(response).
    """
    hits = anchor_hits(reference, response)
    return sum(hits.values()) / len(hits) if hits else 0.0


def anchor_hits(reference: str, response: str) -> dict[str, bool]:
    """Return the reference's anchors, normalised and sorted, each with whether the response contains it."""
    wanted = anchors(reference)
    if not wanted:
        return {}
    dense = normalize(response)
    numbers = {anchor for anchor in wanted if _IS_NUMBER.fullmatch(anchor)}
    found = numbers & (_numbers(canonical(response)) | _numbers(dense)) | _contained(wanted - numbers, dense)
    return {anchor: anchor in found for anchor in sorted(wanted)}


def _answer(reference: str, spaced: str) -> str:
    for box in reversed(boxes(reference)):
        if answer := reference[box.contents].strip().rstrip("."):
            return answer
    after_hashes = [match["number"] for match in _HASHES.finditer(spaced)]
    return after_hashes[-1] if after_hashes else ""


def _unbox(span: str) -> str:
    content = span.strip().rstrip(".,;:")
    if not content.startswith("\\"):
        return content
    found = boxes(content)
    return content[found[0].contents] if found and found[0].whole == slice(0, len(content)) else content


def _informative_numbers(spaced: str) -> Iterator[str]:
    for match in _NUMBER.finditer(spaced):
        number, denominator = match["number"], match["denominator"]
        yield from (part for part in (number, denominator) if part and len(part) >= 2)
        if denominator:
            yield f"{number}/{denominator}"


def _contained(formulas: frozenset[str], dense: str) -> set[str]:
    # The trigrams rule out most absent formulas without a search.
    trigrams = {dense[start : start + 3] for start in range(len(dense))}
    possible = {one for one in formulas if len(one) < 3 or {one[:3], one[-3:]} <= trigrams}
    return {formula for formula in possible if formula in dense}


def _numbers(text: str) -> set[str]:
    """Return every number of a canonical text in all forms: with and without its sign, denominator and percent sign."""
    found: set[str] = set()
    for match in _NUMBER.finditer(text):
        sign, number, denominator, percent = match.group("sign", "number", "denominator", "percent")
        forms = [number]
        if denominator:
            found.add(denominator)
            forms.append(f"{number}/{denominator}")
        if percent:
            forms.append(forms[-1] + percent.strip())
        found.update(forms)
        if sign:
            found.update(sign + form for form in forms)
    return found
