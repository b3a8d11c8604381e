"""Headings with rows, as a command prints them: tables on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TextIO


@dataclass(frozen=True, slots=True)
class Section:
    """A heading with rows; every row has as many columns as the others."""

    title: str
    rows: tuple[tuple[str, ...], ...]
    numbers: tuple[int, ...] = (1,)
    """Columns that are aligned on the right."""


def draw(sections: Iterable[Section], stream: TextIO) -> None:
    """Print sections: tables on a terminal, else plain lines. Text in them is text, whatever brackets it holds."""
    one = _draw_table if stream.isatty() else _draw_lines
    for section in sections:
        one(section, stream)


def _draw_lines(section: Section, stream: TextIO) -> None:
    widths = [max(len(row[column]) for row in section.rows) for column in range(len(section.rows[0]))]
    stream.write(f"{section.title}\n")
    for row in section.rows:
        cells = [
            cell.rjust(width) if column in section.numbers else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        stream.write(f"  {'  '.join(cells).rstrip()}\n")
    stream.write("\n")


def _draw_table(section: Section, stream: TextIO) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=section.title, title_justify="left", box=None, pad_edge=False, show_header=False)
    for column in range(len(section.rows[0])):
        table.add_column(justify="right" if column in section.numbers else "left", no_wrap=column < 2)
    last = len(section.rows[0]) - 1
    for row in section.rows:
        table.add_row(*_cells(row, last, Text))
    Console(file=stream).print(table, "")


def _cells(row: Sequence[str], last: int, text: Any) -> list[Any]:
    """Return the cells as they are, whatever brackets they hold; the last column is in the background."""
    return [text(cell, "dim" if column == last else "") for column, cell in enumerate(row)]
