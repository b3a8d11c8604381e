"""One forward pass over given tokens: from (prompt ids, response ids) to the states that predict each response token.

Alignment (METHODS section 1): response token n is predicted from the position before it, in the student's and in the
teacher's sequence alike. Rows are padded on the right, or not at all, so positions count from each row's own start and
no neighbour can shift them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from selfdistill.models.head import run_backbone
from selfdistill.parallel.sharding import empty_pass
from selfdistill.scoring.batching import micro_batches, packed_batches
from selfdistill.scoring.mode import evaluation_mode
from selfdistill.scoring.packing import packed_states
from selfdistill.scoring.prefix import shared_row_states
from selfdistill.scoring.rows import TokenPair, model_device, padded_right, read_ids, refuse_empty, sequence_length
from selfdistill.scoring.settings import Forwarding
from selfdistill.scoring.siblings import sharing_pays, sibling_batches

__all__ = ["TokenPair", "response_states", "row_batches", "score_rows", "sequence_length"]

_PADDED = Forwarding(token_budget=1, reuse_prefix=False)  # a micro-batch is given, so the budget plays no role


def row_batches(pairs: Sequence[TokenPair], forwarding: Forwarding, model: nn.Module | None = None) -> list[list[int]]:
    """Group row indices into micro-batches for :func:`response_states`, longest rows first.

    Given the model, rows with the same prompt are kept together if it can share the prompt and if that pays.
    """
    if model is not None and _may_share(model, forwarding):
        return sibling_batches(pairs, forwarding)
    lengths = [sequence_length(pair) for pair in pairs]
    if forwarding.padding_free:
        return packed_batches(lengths, forwarding.token_budget)
    return micro_batches(lengths, forwarding.token_budget, forwarding.pass_tokens)


def response_states(
    model: nn.Module, pairs: Sequence[TokenPair], forwarding: Forwarding = _PADDED
) -> Float[Tensor, "N H"]:
    """Return the final hidden states from which each response token is predicted, with gradient where it is enabled.

    Args:
        model: a causal language model.
        pairs: the rows of one micro-batch.
        forwarding: whether to pad, and with which id; whether to read a prompt that rows share only once, where that
            pays and changes nothing (no dropout, no gradient checkpointing, memory of plain keys and values).

    Returns:
        Hidden states ``[N, H]`` in the model's dtype; rows one after the other in the given order, N = sum of response
        lengths.

    Raises:
        ValueError: a prompt or a response is empty; nothing would predict its first token, or nothing is to be scored.
        ModelError: padding-free, and the model would let rows see each other.
    """
    refuse_empty(pairs)
    if _may_share(model, forwarding) and sharing_pays(pairs, forwarding):
        states = shared_row_states(model, pairs, forwarding)
        return torch.cat(_completed(model, pairs, forwarding, states))
    return _plain_states(model, pairs, forwarding)


def score_rows(
    model: nn.Module,
    pairs: Sequence[TokenPair],
    forwarding: Forwarding,
    together: Callable[[int], int] | None = None,
) -> list[Float[Tensor, "n H"]]:
    """Return each row's hidden states in the order of ``pairs``: no gradient, ``token_budget`` tokens at a time.

    A prompt that several rows share is computed once if ``forwarding.reuse_prefix`` and if the architecture allows it.
    ``together`` (see :func:`selfdistill.parallel.sharding.scoring`) is for processes that have to keep in step; then no
    prompt may be shared.
    """
    refuse_empty(pairs)
    with evaluation_mode(model), torch.no_grad():
        states = shared_row_states(model, pairs, forwarding) if forwarding.reuse_prefix and together is None else {}
        own = len(row_batches(pairs, forwarding))
        all_make = own if together is None else together(own)  # before the first pass, which waits for the others'
        rows = _completed(model, pairs, forwarding, states)
        for _ in range(all_make - own):
            empty_pass(model, model_device(model))
        return rows


def _may_share(model: nn.Module, forwarding: Forwarding) -> bool:
    if not forwarding.reuse_prefix or forwarding.padding_free:
        return False
    from selfdistill.scoring.architecture import shares_with_gradient  # loads transformers

    return shares_with_gradient(model)


def _completed(
    model: nn.Module, pairs: Sequence[TokenPair], forwarding: Forwarding, states: dict[int, Tensor]
) -> list[Float[Tensor, "n H"]]:
    """Compute the rows that ``states`` lacks without sharing anything; return all of them in the order of ``pairs``."""
    rest = [index for index in range(len(pairs)) if index not in states]
    for batch in row_batches([pairs[index] for index in rest], forwarding):
        rows = [rest[place] for place in batch]
        hidden = _plain_states(model, [pairs[row] for row in rows], forwarding)
        states.update(zip(rows, hidden.split([len(pairs[row][1]) for row in rows]), strict=True))
    return [states[index] for index in range(len(pairs))]


def _plain_states(model: nn.Module, pairs: Sequence[TokenPair], forwarding: Forwarding) -> Float[Tensor, "N H"]:
    return packed_states(model, pairs) if forwarding.padding_free else _padded_states(model, pairs, forwarding.pad_id)


def _padded_states(model: nn.Module, pairs: Sequence[TokenPair], pad_id: int) -> Float[Tensor, "N H"]:
    input_ids, real = padded_right([read_ids(pair) for pair in pairs], pad_id, model_device(model))
    prompt_lengths = torch.tensor([len(prompt) for prompt, _ in pairs], device=real.device)
    after_prompt = torch.arange(real.shape[1], device=real.device) >= prompt_lengths[:, None] - 1
    output: Any = run_backbone(
        model, input_ids=input_ids, attention_mask=real.long(), use_cache=False, return_dict=True
    )
    hidden: Tensor = output.last_hidden_state
    return hidden[(real & after_prompt).to(hidden.device)]
