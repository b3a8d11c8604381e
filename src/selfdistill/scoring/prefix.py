"""Prefix reuse: from rows of which several have the same prompt to hidden states, each such prompt computed once.

The siblings of a question differ in their responses only. A pass over G of them reads P + sum(R - 1) positions instead
of sum(P + R - 1), with the same result up to rounding. With gradient, every response's share of it flows through the
prompt's keys and values into the one pass that made them.

Prompts are forwarded together within the token budget; then all of their rows are, in order of length whatever their
prompt is, so that little is padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from selfdistill.models.head import backbone_of, run_backbone
from selfdistill.scoring.batching import micro_batches
from selfdistill.scoring.rows import TokenPair, model_device, padded_right
from selfdistill.scoring.settings import Forwarding

if TYPE_CHECKING:
    from selfdistill.scoring.architecture import Window
    from selfdistill.scoring.prefix_cache import LayerPrefix


@dataclass(frozen=True, slots=True)
class SharedPrompts:
    """Prompts that are forwarded together, with all of their rows."""

    prompts: tuple[tuple[int, ...], ...]
    rows: tuple[int, ...]
    """Indices of the rows, prompt by prompt."""
    owners: tuple[int, ...]
    """For each of them, which prompt is its own."""


@dataclass(frozen=True, slots=True, eq=False)
class EncodedPrompts:
    """What remains of a pass over prompts."""

    layers: Sequence[LayerPrefix]
    lengths: Int[Tensor, " D"]
    """Number of tokens per prompt, on the CPU."""
    last: Float[Tensor, "D H"]
    """The hidden state that predicts the first token of a response."""


def rows_by_prompt(pairs: Sequence[TokenPair]) -> dict[tuple[int, ...], list[int]]:
    """Return the indices of each prompt's rows, prompts in the order of their first row."""
    rows_of: dict[tuple[int, ...], list[int]] = {}
    for index, (prompt, _) in enumerate(pairs):
        rows_of.setdefault(tuple(prompt), []).append(index)
    return rows_of


def shared_prompts(pairs: Sequence[TokenPair], token_budget: int) -> list[SharedPrompts]:
    """Find the prompts that at least two rows share, in groups of at most ``token_budget`` padded tokens."""
    shared = [(prompt, rows) for prompt, rows in rows_by_prompt(pairs).items() if len(rows) > 1]
    groups = []
    # As few groups as possible: the more rows one has, the less they are padded.
    for batch in micro_batches([len(prompt) for prompt, _ in shared], token_budget, pass_tokens=token_budget):
        members = [(row, owner) for owner, index in enumerate(batch) for row in shared[index][1]]
        rows, owners = zip(*members, strict=True)
        groups.append(SharedPrompts(tuple(shared[index][0] for index in batch), rows, owners))
    return groups


def response_batches(
    pairs: Sequence[TokenPair], group: SharedPrompts, forwarding: Forwarding
) -> list[list[tuple[int, int]]]:
    """Divide the rows of a group into passes over their responses, rows of similar length together.

    Returns:
        Per pass, (row, which prompt is its own). A response of one token is predicted by the prompt alone and left out.
    """
    longer = [(row, owner) for row, owner in zip(group.rows, group.owners, strict=True) if len(pairs[row][1]) > 1]
    longest = max(len(prompt) for prompt in group.prompts)
    lengths = [longest + len(pairs[row][1]) - 1 for row, _ in longer]
    batches = micro_batches(lengths, forwarding.token_budget, forwarding.pass_tokens)
    return [[longer[index] for index in batch] for batch in batches]


def shared_row_states(
    model: nn.Module, pairs: Sequence[TokenPair], forwarding: Forwarding
) -> dict[int, Float[Tensor, "n H"]]:
    """Score the rows whose prompt another row has as well.

    To be called without dropout, whose masks the rows would share, and without gradient checkpointing, which makes
    transformers leave the cache unused; see :func:`selfdistill.scoring.architecture.shares_with_gradient`.

    Returns:
        By row index, the hidden states that predict its response tokens. Empty for architectures whose memory of a
        prompt is not plain keys and values: their rows are scored as if no prompt were shared.
    """
    groups = shared_prompts(pairs, forwarding.token_budget)
    if not groups:
        return {}
    from selfdistill.scoring.architecture import attention_windows  # loads transformers

    windows = attention_windows(backbone_of(model))
    if windows is None:
        return {}
    states: dict[int, Tensor] = {}
    for group in groups:
        encoded = _encode(model, group.prompts, windows, forwarding.pad_id)
        if encoded is None:
            break
        states |= _group_states(model, pairs, group, encoded, forwarding)
    return states


def _group_states(
    model: nn.Module,
    pairs: Sequence[TokenPair],
    group: SharedPrompts,
    encoded: EncodedPrompts,
    forwarding: Forwarding,
) -> dict[int, Float[Tensor, "n H"]]:
    """Score all rows of a group on top of its prompts, rows of similar length together."""
    first = encoded.last.split(1)
    states = {row: first[owner] for row, owner in zip(group.rows, group.owners, strict=True)}
    for batch in response_batches(pairs, group, forwarding):
        rows, owners = zip(*batch, strict=True)
        responses = [pairs[row][1] for row in rows]
        rest = _continue(model, encoded, torch.tensor(owners), responses, forwarding.pad_id)
        states.update((row, torch.cat((states[row], after))) for row, after in zip(rows, rest, strict=True))
    return states


def _encode(
    model: nn.Module, prompts: Sequence[Sequence[int]], windows: Sequence[Window], pad_id: int
) -> EncodedPrompts | None:
    """Forward each prompt once; None if the model does not keep its keys and values in the cache."""
    from selfdistill.scoring.prefix_cache import recorded, recording_cache

    ids, real = padded_right(prompts, pad_id, model_device(model))
    cache = recording_cache(windows)
    output: Any = run_backbone(
        model, input_ids=ids, attention_mask=real.long(), past_key_values=cache, use_cache=True, return_dict=True
    )
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    layers = recorded(cache, windows, lengths)
    hidden: Tensor = output.last_hidden_state
    ends = (lengths - 1).to(hidden.device)
    last = hidden[torch.arange(len(prompts), device=hidden.device), ends]
    return None if layers is None else EncodedPrompts(layers, lengths, last)


def _continue(
    model: nn.Module,
    encoded: EncodedPrompts,
    owner: Int[Tensor, " B"],
    responses: Sequence[Sequence[int]],
    pad_id: int,
) -> list[Float[Tensor, "m H"]]:
    """Forward responses on top of their prompts; return the states that predict all but their first tokens."""
    from selfdistill.scoring.prefix_cache import shared_cache

    device = model_device(model)
    ids, real = padded_right([response[:-1] for response in responses], pad_id, device)
    prompt_lengths = encoded.lengths[owner]
    longest = int(encoded.lengths.max())
    in_prompt = torch.arange(longest) >= longest - prompt_lengths[:, None]
    positions = prompt_lengths[:, None] + torch.arange(ids.shape[1])
    output: Any = run_backbone(
        model,
        input_ids=ids,
        attention_mask=torch.cat((in_prompt.to(device), real), dim=1).long(),
        position_ids=positions.to(device),
        past_key_values=shared_cache(encoded.layers, owner),
        use_cache=True,
        return_dict=True,
    )
    hidden: Tensor = output.last_hidden_state
    return list(hidden[real.to(hidden.device)].split([len(response) - 1 for response in responses]))
