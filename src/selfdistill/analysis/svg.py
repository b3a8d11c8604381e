"""Figures as SVG inside a page: ids of their own, the page's colours, series that can be hidden.

In: a :class:`Chart`. Out: an ``<svg>`` element, the same text for the same figure, or files for papers.
"""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

from selfdistill.analysis.figures import style
from selfdistill.analysis.figures.style import Chart
from selfdistill.analysis.pages.page import visible

SVG = "http://www.w3.org/2000/svg"
LINK = "{http://www.w3.org/1999/xlink}href"
DPI = 200
"""Of PNG files."""

_COLOURS = {
    style.INK: "currentColor",
    style.SOFT: "var(--soft)",
    style.LINE: "var(--line)",
    style.GROUND: "var(--ground)",
}
_NUMBER = re.compile(r"-?\d+\.\d{2,}")
_SERIES = re.compile(r"series-\d+")


def inline(chart: Chart, prefix: str) -> str:
    """Return a figure as markup.

    Args:
        chart: what is drawn.
        prefix: of all ids in it, unique on the page.
    """
    stream = io.StringIO()
    with style.styled(), _Quiet():
        chart.figure.savefig(
            stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    root = ElementTree.fromstring(stream.getvalue())
    for element in list(root):
        if element.tag == f"{{{SVG}}}metadata":
            root.remove(element)
    for element in root.iter():
        _adapt(element, prefix)
        element.text, element.tail = _kept(element.text), _kept(element.tail)
    root.set("role", "img")
    root.set("aria-label", visible(chart.alt))
    root.attrib.pop("version", None)
    ElementTree.register_namespace("", SVG)
    return ElementTree.tostring(root, encoding="unicode")


def write(chart: Chart, folder: Path, formats: Sequence[str]) -> list[Path]:
    """Write a figure into a folder, once per format; return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{chart.name}.{ending}" for ending in formats]
    for path in paths:
        undated = {} if path.suffix == ".png" else {"CreationDate": None} if path.suffix == ".pdf" else {"Date": None}
        with style.styled(), _Quiet():
            chart.figure.savefig(path, dpi=DPI, metadata=undated)
    return paths


def _adapt(element: ElementTree.Element, prefix: str) -> None:
    """Rename ids, turn series into classes, and hand the colours that depend on the theme to the page."""
    if name := element.attrib.pop("id", None):
        if _SERIES.fullmatch(name):
            element.set("class", name)
        else:
            element.set("id", f"{prefix}-{name}")
    if target := element.attrib.pop(LINK, None):
        element.set("href", target.replace("#", f"#{prefix}-"))
    for key, value in element.attrib.items():
        if "url(#" in value:
            value = value.replace("url(#", f"url(#{prefix}-")
        if key in ("style", "fill", "stroke"):
            for colour, variable in _COLOURS.items():
                value = value.replace(colour, variable)
        if key in ("d", "transform", "x", "y", "points"):
            value = _NUMBER.sub(_rounded, value)
        value = " ".join(value.split())
        element.set(key, _joined(value) if key == "d" else value)


def _rounded(found: re.Match[str]) -> str:
    """Return a length with a tenth of a point, which is less than a pixel."""
    return f"{float(found.group()):.1f}".removesuffix(".0")


def _joined(path: str) -> str:
    """Return a path of straight lines without what can be left out: the letter of each further line, and spaces."""
    return path if "C" in path or "Q" in path else path.replace(" L ", " ").replace(" -", "-")


def _kept(text: str | None) -> str | None:
    """Return text, but not the white space between elements."""
    return text if text and text.strip() else None


class _Quiet(warnings.catch_warnings):
    """A block in which a character that the drawing font lacks is no warning: browsers have other fonts."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
