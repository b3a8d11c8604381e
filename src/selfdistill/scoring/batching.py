"""Micro-batches by token budget: from row lengths to lists of row indices.

Rows of similar length share a micro-batch, so that little is spent on padding; the loss does not depend on the
grouping, because its denominators are global (see :mod:`selfdistill.objectives.reductions`). Longest rows come first,
so that a run that is going to exceed memory does so at once, and a row longer than the budget gets a micro-batch of its
own.
"""

from __future__ import annotations

from collections.abc import Sequence


def micro_batches(lengths: Sequence[int], token_budget: int, pass_tokens: int) -> list[list[int]]:
    """Group row indices so that ``rows * longest row`` stays within ``token_budget`` tokens.

    Of all such groupings of the sorted rows, return one of the least cost: the tokens of all passes, padding included,
    and ``pass_tokens`` per pass. Rows of very different lengths are thus kept apart even if the budget would hold them.

    Raises:
        ValueError: if ``token_budget`` is not positive.
    """
    order = _longest_first(lengths, token_budget)
    least = [0] * (len(order) + 1)  # cost of the rows from here on
    ends = [0] * len(order)
    for start in reversed(range(len(order))):
        longest = max(lengths[order[start]], 1)
        last = min(len(order), start + max(token_budget // longest, 1))
        costs = {end: longest * (end - start) + pass_tokens + least[end] for end in range(last, start, -1)}
        ends[start] = min(costs, key=costs.__getitem__)  # the largest group if several cost the same
        least[start] = costs[ends[start]]
    batches: list[list[int]] = []
    start = 0
    while start < len(order):
        batches.append(order[start : ends[start]])
        start = ends[start]
    return batches


def packed_batches(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Group row indices so that the sum of their lengths stays within ``token_budget`` tokens.

    Raises:
        ValueError: if ``token_budget`` is not positive.
    """
    batches: list[list[int]] = []
    room = 0
    for index in _longest_first(lengths, token_budget):
        if batches and lengths[index] <= room:
            batches[-1].append(index)
        else:
            batches.append([index])
            room = token_budget
        room -= lengths[index]
    return batches


def _longest_first(lengths: Sequence[int], token_budget: int) -> list[int]:
    if token_budget < 1:
        raise ValueError(f"train.micro_batch_tokens is {token_budget}; it must be at least 1")
    return sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
