"""Micro-batches for a pass with gradient in which siblings share their prompt: from rows to lists of row indices.

Without gradient every pass is forgotten as soon as it has run. With gradient all passes of a micro-batch (its prompts,
then its responses on top) are remembered until the backward pass, and a prompt is shared only inside one. So siblings
are kept together as far as the token budget allows, and whether that pays is settled from the lengths alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from selfdistill.scoring.batching import micro_batches
from selfdistill.scoring.prefix import response_batches, rows_by_prompt, shared_prompts
from selfdistill.scoring.rows import TokenPair, sequence_length
from selfdistill.scoring.settings import Forwarding


@dataclass(frozen=True, slots=True)
class Work:
    """What the passes of one micro-batch cost and hold."""

    cost: int
    """Tokens of all passes, padding included, and ``pass_tokens`` per pass."""
    size: int
    """Positions that are remembered: activations, or the keys and values placed before responses if those are more."""
    is_shared: bool
    """Whether prompts are shared."""


def sibling_batches(pairs: Sequence[TokenPair], forwarding: Forwarding) -> list[list[int]]:
    """Group row indices with siblings together, or by length alone if that costs less; longest rows first.

    What a micro-batch remembers (:class:`Work`) stays within the budget, except for a row that exceeds it alone.
    """
    by_length = _by_length(pairs, range(len(pairs)), forwarding)
    families = [rows for rows in rows_by_prompt(pairs).values() if len(rows) > 1]
    lone = sorted(set(range(len(pairs))).difference(*families))
    together = [*_families_joined(pairs, families, forwarding), *_by_length(pairs, lone, forwarding)]

    def cost(batches: list[list[int]]) -> int:
        return sum(_work([pairs[row] for row in batch], forwarding).cost for batch in batches)

    if not families or cost(by_length) <= cost(together):
        return by_length
    return sorted(together, key=lambda batch: -_longest(pairs, batch))


def sharing_pays(pairs: Sequence[TokenPair], forwarding: Forwarding) -> bool:
    """Tell whether the rows of one micro-batch cost less if their prompts are shared, within the same memory."""
    return _work(pairs, forwarding).is_shared


def _families_joined(
    pairs: Sequence[TokenPair], families: Sequence[Sequence[int]], forwarding: Forwarding
) -> list[list[int]]:
    """Put siblings into micro-batches: those of similar length beside each other, as many as the budget holds.

    Siblings that the budget cannot hold are divided, those with long responses from those with short ones.
    """
    batches: list[list[int]] = []
    for family in sorted(families, key=lambda rows: (-_longest(pairs, rows), rows[0])):
        rows = sorted(family, key=lambda row: (-len(pairs[row][1]), row))
        while rows:
            held = next(count for count in range(len(rows), 0, -1) if _fits(pairs, rows[:count], forwarding))
            part, rows = rows[:held], rows[held:]
            if batches and _joinable(pairs, batches[-1], part, forwarding):
                batches[-1] += part
            else:
                batches.append(part)
    return batches


def _joinable(pairs: Sequence[TokenPair], batch: Sequence[int], part: Sequence[int], forwarding: Forwarding) -> bool:
    """Tell whether two families fit into one micro-batch, and whether padding a prompt costs less than a pass."""
    prompts = [len(pairs[row][0]) for row in (*batch, *part)]
    return max(prompts) - min(prompts) <= forwarding.pass_tokens and _fits(pairs, (*batch, *part), forwarding)


def _fits(pairs: Sequence[TokenPair], rows: Sequence[int], forwarding: Forwarding) -> bool:
    chosen = [pairs[row] for row in rows]
    longest = max(len(prompt) for prompt, _ in chosen) + max(len(response) for _, response in chosen) - 1
    if len(rows) == 1 or len(rows) * longest <= forwarding.token_budget:  # no division into passes remembers more
        return True
    return _work(chosen, forwarding).size <= forwarding.token_budget


def _work(pairs: Sequence[TokenPair], forwarding: Forwarding) -> Work:
    """Return the work of one micro-batch in the way that costs less."""
    size = len(pairs) * _longest(pairs, range(len(pairs)))
    padded = Work(size + forwarding.pass_tokens, size, is_shared=False)
    shared = _shared_work(pairs, forwarding)
    pays = shared.is_shared and shared.cost < padded.cost
    return shared if pays and shared.size <= max(padded.size, forwarding.token_budget) else padded


def _shared_work(pairs: Sequence[TokenPair], forwarding: Forwarding) -> Work:
    """Count the passes that :func:`selfdistill.scoring.prefix.shared_row_states` makes, and those of the other rows."""
    shapes: list[tuple[int, int]] = []
    copied = 0
    groups = shared_prompts(pairs, forwarding.token_budget)
    for group in groups:
        longest = max(len(prompt) for prompt in group.prompts)
        shapes.append((len(group.prompts), longest))
        for batch in response_batches(pairs, group, forwarding):
            shapes.append((len(batch), max(len(pairs[row][1]) for row, _ in batch) - 1))
            copied += len(batch) * longest
    lone = sorted(set(range(len(pairs))).difference(*(group.rows for group in groups)))
    for rows in _by_length(pairs, lone, forwarding):
        shapes.append((len(rows), _longest(pairs, rows)))
    read = sum(rows * columns for rows, columns in shapes)
    prompts = sum(len(group.prompts) * max(map(len, group.prompts)) for group in groups)
    return Work(read + forwarding.pass_tokens * len(shapes), max(read, read - prompts + copied), bool(groups))


def _by_length(pairs: Sequence[TokenPair], rows: Sequence[int], forwarding: Forwarding) -> list[list[int]]:
    lengths = [sequence_length(pairs[row]) for row in rows]
    batches = micro_batches(lengths, forwarding.token_budget, forwarding.pass_tokens)
    return [[rows[place] for place in batch] for batch in batches]


def _longest(pairs: Sequence[TokenPair], rows: Sequence[int]) -> int:
    return max(sequence_length(pairs[row]) for row in rows)
