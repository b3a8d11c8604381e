"""Siblings as one request: engines that draw n responses to a prompt do so from the seeds s, s+1 ... s+n-1.

In: the seeds that are wanted for each prompt. Out: the requests that draw exactly these, with the place of each one's
first response.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Group:
    """Responses that one request draws: ``seeds[prompt][first : first + count]``, which are consecutive numbers."""

    prompt: int
    """Index of the prompt."""
    first: int
    """Index of the first seed among the prompt's."""
    seed: int
    """The first response's; the others' follow it."""
    count: int
    """Number of responses."""


def grouped(seeds: Sequence[Sequence[int]], most: int) -> list[Group]:
    """Return the requests for ``seeds[prompt][sibling]``, prompt by prompt, each of at most ``most`` responses.

    Raises:
        ValueError: ``most`` is below 1.
    """
    if most < 1:
        raise ValueError(f"a request needs at least one response, not {most}")
    return [group for prompt, own in enumerate(seeds) for group in _runs(prompt, own, most)]


def _runs(prompt: int, seeds: Sequence[int], most: int) -> list[Group]:
    """Cut one prompt's seeds wherever they are not consecutive, and where a request would be too large."""
    groups: list[Group] = []
    for index, seed in enumerate(seeds):
        last = groups[-1] if groups else None
        if last is not None and seed == last.seed + last.count and last.count < most:
            groups[-1] = replace(last, count=last.count + 1)
        else:
            groups.append(Group(prompt, index, seed, 1))
    return groups
