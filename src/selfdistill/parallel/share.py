"""Who does what: the responses of a batch, and the rows of an update, divided over processes.

Pure functions of what every process knows, so that all divide alike without a word. Every response keeps the seed of
its question and sibling, whoever draws it: what a run draws does not depend on the number of processes, and no two
processes draw the same.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Literal, TypeVar

T = TypeVar("T")


def own_siblings(
    questions: int, siblings: Sequence[int], rank: int, size: int, groups: Literal["whole", "split"]
) -> list[list[int]]:
    """Return, per question, which of its siblings the process draws; question by question, or one by one in turn."""
    if groups == "whole":
        return [list(siblings) if question % size == rank else [] for question in range(questions)]
    count = len(siblings)
    return [
        [sibling for place, sibling in enumerate(siblings) if (question * count + place) % size == rank]
        for question in range(questions)
    ]


def own_rows(
    costs: Sequence[int], families: Sequence[Hashable], rank: int, size: int, groups: Literal["whole", "split"]
) -> list[int]:
    """Return the indices of the rows that the process trains on, so that all have about as much to do.

    The dearest family first, each to the process with the least so far (longest processing time first: at most 4/3 of
    the best division). Rows of a family share their prompts, so they stay together unless ``groups`` is ``split``; a
    family that is more than a process's fair share is divided in any case.
    """
    if size == 1:
        return list(range(len(costs)))
    load = [0] * size
    own: list[int] = []
    for rows in sorted(
        _units(costs, families, size, groups), key=lambda rows: (-sum(costs[row] for row in rows), rows)
    ):
        least = min(range(size), key=load.__getitem__)
        load[least] += sum(costs[row] for row in rows)
        if least == rank:
            own += rows
    return sorted(own)


def _units(
    costs: Sequence[int], families: Sequence[Hashable], size: int, groups: Literal["whole", "split"]
) -> Iterable[list[int]]:
    """Yield lists of rows that stay together."""
    members: dict[Hashable, list[int]] = {}
    for row, family in enumerate(families):
        members.setdefault(row if groups == "split" else family, []).append(row)
    fair = sum(costs) / size
    for rows in members.values():
        part: list[int] = []
        for row in rows:
            if part and sum(costs[one] for one in part) + costs[row] > max(fair, 1):
                yield part
                part = []
            part.append(row)
        yield part
