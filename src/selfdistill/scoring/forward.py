"""One forward pass over given tokens: from (prompt ids, response ids) to the states that predict each response token.

Alignment (METHODS section 1): response token n is predicted from the position before it, in the student's and in the
teacher's sequence alike. Rows are padded on the right, so positions count from each row's own start and padding cannot
shift them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from selfdistill.models.head import backbone_of
from selfdistill.scoring.batching import micro_batches

if TYPE_CHECKING:
    from collections.abc import Iterator

TokenPair = tuple[Sequence[int], Sequence[int]]
"""(prompt ids, response ids); neither may be empty."""


def model_device(model: nn.Module) -> torch.device:
    """Return the device that the model's inputs must be on."""
    return next(model.parameters()).device


def sequence_length(pair: TokenPair) -> int:
    """Number of positions that a pair costs: the last response token is predicted, never read."""
    return len(pair[0]) + len(pair[1]) - 1


def response_states(model: nn.Module, pairs: Sequence[TokenPair], pad_id: int = 0) -> Float[Tensor, "N H"]:
    """Return the final hidden states from which each response token is predicted.

    Args:
        model: a causal language model.
        pairs: the rows of one micro-batch.
        pad_id: any valid id; padded positions are masked.

    Returns:
        Hidden states ``[N, H]`` in the model's dtype; rows one after the other in the given order, N = sum of response
        lengths.

    Raises:
        ValueError: a prompt or a response is empty; nothing would predict its first token, or nothing is to be scored.
    """
    if not all(len(prompt) and len(response) for prompt, response in pairs):
        raise ValueError("a row to be scored has an empty prompt or an empty response; leave such rows out")
    device = model_device(model)
    longest = max(sequence_length(pair) for pair in pairs)
    input_ids = torch.full((len(pairs), longest), pad_id, dtype=torch.long)
    attention_mask = torch.zeros((len(pairs), longest), dtype=torch.long)
    predicts_response = torch.zeros((len(pairs), longest), dtype=torch.bool)
    for row, (prompt, response) in enumerate(pairs):
        ids = [*prompt, *response[:-1]]
        input_ids[row, : len(ids)] = torch.tensor(ids)
        attention_mask[row, : len(ids)] = 1
        predicts_response[row, len(prompt) - 1 : len(ids)] = True
    output = backbone_of(model)(
        input_ids=input_ids.to(device), attention_mask=attention_mask.to(device), use_cache=False, return_dict=True
    )
    hidden: Tensor = output.last_hidden_state[predicts_response.to(device)]
    return hidden


def score_rows(
    model: nn.Module, pairs: Sequence[TokenPair], token_budget: int, pad_id: int = 0
) -> list[Float[Tensor, "n H"]]:
    """Return each row's hidden states in the order of ``pairs``: no gradient, ``token_budget`` tokens at a time."""
    states: list[Tensor | None] = [None] * len(pairs)
    with evaluation_mode(model), torch.no_grad():
        for batch in micro_batches([sequence_length(pair) for pair in pairs], token_budget):
            hidden = response_states(model, [pairs[index] for index in batch], pad_id)
            for index, rows in zip(batch, hidden.split([len(pairs[i][1]) for i in batch]), strict=True):
                states[index] = rows
    return [state for state in states if state is not None]


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switch dropout off inside the block and give every module its own mode back afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
