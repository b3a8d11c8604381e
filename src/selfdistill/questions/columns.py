"""Which column of a data file holds what.

In: the names in the recipe and the names in the file. Out: the names to use, with a note for each one that was guessed.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic.dataclasses import dataclass

from selfdistill.errors import DataError, nearest
from selfdistill.validation import PART

PROMPT_NAMES = ("prompt", "problem", "question")
"""Columns that hold the prompt in common data sets, tried in this order while the mapping is left at its default."""


@dataclass(frozen=True, config=PART, kw_only=True)
class ColumnMapping:
    """Column names. GSM8K: ``prompt: question, solution: answer, answer: null`` (it is read off the solution)."""

    prompt: str = "prompt"
    """A string, or chat messages that end with a user turn. By default ``problem`` and ``question`` are tried too."""
    solution: str | None = "solution"
    """The reference solution y*. At its default it may be absent from the file; null: there is none."""
    answer: str | None = "answer"
    """The final answer a*. At its default it may be absent; null or absent: the solution's last box or ``####``."""
    id: str | None = None
    """A name that is unique within the file; null: file stem and row index."""


_DEFAULT = ColumnMapping()


def resolve_columns(columns: ColumnMapping, available: Sequence[str], source: str) -> tuple[ColumnMapping, list[str]]:
    """Return the mapping with every name checked against the ``available`` ones, and notes on what was guessed.

    A name that differs from the default was asked for and must exist; ``solution`` and ``answer`` at their defaults
    become None when absent. Raises :class:`DataError` for a column that does not exist.
    """
    notes: list[str] = []
    prompt = columns.prompt
    if prompt == _DEFAULT.prompt and prompt not in available:
        prompt = next((name for name in PROMPT_NAMES if name in available), prompt)
        if prompt != columns.prompt:
            notes.append(f"{source}: the prompt is read from column {prompt!r}")
    _demand(prompt, "prompt", available, source)
    optional = {"solution": columns.solution, "answer": columns.answer}
    for field, name in optional.items():
        if name == getattr(_DEFAULT, field) and name not in available:
            optional[field] = None
        elif name is not None:
            _demand(name, field, available, source)
    if columns.id is not None:
        _demand(columns.id, "id", available, source)
    return ColumnMapping(prompt=prompt, id=columns.id, **optional), notes


def _demand(name: str, field: str, available: Sequence[str], source: str) -> None:
    if name not in available:
        raise DataError(
            f"{source} has no column {name!r} for data.columns.{field}{_closest(name, available)}; "
            f"its columns are {', '.join(available)}: set data.columns.{field} to one of them"
        )


def _closest(name: str, available: Sequence[str]) -> str:
    hint = nearest(name, available)
    return hint if "did you mean" in hint else ""
