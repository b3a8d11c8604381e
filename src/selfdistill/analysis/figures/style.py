"""How figures look: Okabe and Ito's colours, each with a line style and a marker, so that colour never stands alone.

In: the place of a series. Out: how it is drawn; figures without a display, in one style on screen and on paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, cast

from selfdistill.errors import SelfDistillError

INK, SOFT, LINE, GROUND = "#1b1f27", "#565d6b", "#d5d9e0", "#ffffff"
"""Colours of base.css in its light theme; a page replaces them by its variables."""
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", INK)
"""Okabe and Ito, without the yellow that white swallows."""
LINES = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
HATCHES = ("", "//", "..", "\\\\", "xx", "--", "++")
GOOD, BAD = "#009e73", "#d55e00"
"""Of right and of wrong responses, which differ in line style too."""
WIDTH = 4.6
"""Inches: 440 pixels of a page, and a column of a paper."""

RC: Mapping[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "text.color": INK,
    "text.parse_math": False,  # names come from recipes and folders
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.facecolor": GROUND,
    "figure.facecolor": GROUND,
    "savefig.facecolor": GROUND,
    "hatch.linewidth": 0.6,
    "svg.fonttype": "none",  # text stays text: it can be searched, and is a third of the size
    "svg.hashsalt": "selfdistill",  # the same figure is the same file
}


@dataclass(frozen=True, slots=True)
class Chart:
    """A figure with all that a page says about it."""

    name: str
    """Anchor and file name."""
    title: str
    caption: str
    alt: str
    """What there is to see, for readers who cannot."""
    figure: Any
    """matplotlib's."""
    columns: tuple[str, ...]
    rows: Sequence[Sequence[float | str | None]]
    """The numbers that are drawn."""
    wide: bool = False


@dataclass(frozen=True, slots=True)
class Missing:
    """A figure that could not be drawn."""

    title: str
    reason: str


def require_matplotlib() -> None:
    """Check that figures can be drawn.

    Raises:
        SelfDistillError: matplotlib is not installed.
    """
    if not has_matplotlib():
        raise SelfDistillError(
            "a report draws its figures with matplotlib, which is not installed; "
            "install it with: pip install 'selfdistill[report]'"
        )


def has_matplotlib() -> bool:
    """Say whether figures can be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def styled() -> AbstractContextManager[None]:
    """Return a block in which figures are made and saved in this style."""
    import matplotlib

    context: AbstractContextManager[None] = matplotlib.rc_context(cast(Any, RC))
    return context


def new_figure(width: float = WIDTH, height: float = 2.7, legend: Sequence[tuple[int, str]] = ()) -> Any:
    """Return an empty figure, in inches, that belongs to no window; a ``legend`` of many rows makes it higher."""
    from matplotlib.figure import Figure

    rows = -(-len(legend) // fitting([label for _, label in legend], width))
    return Figure(figsize=(width, height + 0.18 * max(0, rows - 1)), layout="constrained")


def colour(index: int) -> str:
    """Return the colour of a series."""
    return PALETTE[index % len(PALETTE)]


def line_style(index: int) -> Any:
    """Return the dashes of a series."""
    return LINES[index % len(LINES)]


def marker(index: int) -> str:
    """Return the marker of a series."""
    return MARKERS[index % len(MARKERS)]


def tag(artist: Any, index: int) -> None:
    """Say which series an artist belongs to, so that a page can hide it."""
    artist.set_gid(f"series-{index}")


def add_legend(figure: Any, entries: Sequence[tuple[int, str]]) -> None:
    """Put a legend of series, each by place and label, below all axes; none for one series."""
    from matplotlib.lines import Line2D

    if len(entries) < 2:
        return
    handles = [
        Line2D([], [], color=colour(index), linestyle=line_style(index), marker=marker(index), markersize=4)
        for index, _ in entries
    ]
    labels = [short(label) for _, label in entries]
    legend = figure.legend(handles, labels, loc="outside lower center", ncols=fitting(labels, figure.get_figwidth()))
    for (index, _), handle, label in zip(entries, legend.legend_handles, legend.get_texts(), strict=True):
        tag(handle, index)
        tag(label, index)


def fitting(labels: Sequence[str], width: float = WIDTH) -> int:
    """Return how many columns of a legend fit below a figure of a width in inches."""
    longest = max((len(short(label)) + 6 for label in labels), default=1)
    return max(1, min(len(labels), 6, int(15 * width) // longest))


def short(label: str, limit: int = 48) -> str:
    """Return a label that fits; matplotlib leaves out labels that begin with an underscore."""
    label = f" {label}" if label.startswith("_") else label
    return label if len(label) <= limit else f"{label[: limit - 1]}…"
