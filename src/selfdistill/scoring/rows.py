"""The rows that are scored: (prompt, response) pairs, and their ids as rectangular tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

TokenPair = tuple[Sequence[int], Sequence[int]]
"""(prompt ids, response ids); neither may be empty."""


def sequence_length(pair: TokenPair) -> int:
    """Number of positions that a pair costs: the last response token is predicted, never read."""
    return len(pair[0]) + len(pair[1]) - 1


def read_ids(pair: TokenPair) -> list[int]:
    """Return the ids that the model reads: all but the last of the response."""
    return [*pair[0], *pair[1][:-1]]


def refuse_empty(pairs: Sequence[TokenPair]) -> None:
    """Check that every response token has something before it.

    Raises:
        ValueError: a prompt or a response is empty; nothing would predict its first token, or nothing is to be scored.
    """
    if not all(len(prompt) and len(response) for prompt, response in pairs):
        raise ValueError("a row to be scored has an empty prompt or an empty response; leave such rows out")


def padded_right(
    sequences: Sequence[Sequence[int]], pad_id: int, device: torch.device
) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Return the ids as one rectangle, and where they are real."""
    longest = max(len(sequence) for sequence in sequences)
    ids = torch.tensor([[*sequence, *[pad_id] * (longest - len(sequence))] for sequence in sequences])
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    return ids.to(device), (torch.arange(longest) < lengths[:, None]).to(device)


def model_device(model: nn.Module) -> torch.device:
    """Return the device that the model's inputs must be on."""
    return next(model.parameters()).device
