"""What the transformers engines share: a wanted completion, how prompts become a batch, how a drawn row is finished."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from selfdistill.errors import ModelError
from selfdistill.rollouts.sampler import Completion, Sampling


@dataclass(frozen=True, slots=True)
class Request:
    """One wanted completion."""

    prompt: Sequence[int]
    seed: int
    place: tuple[int, int]
    """Index of the prompt and of the sibling."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is decoded side by side."""

    rows: int
    tokens: int
    """Rows x (longest prompt + new tokens): it bounds the cache."""

    def admit(self, rows: int, waiting: Sequence[Request], new_tokens: int) -> int:
        """Count the first requests of ``waiting``, shortest prompt first, that fit beside ``rows`` rows.

        A request always fits when nothing else is there.
        """
        count = 0
        for request in waiting:
            together = rows + count + 1
            if together > 1 and (together > self.rows or together * (len(request.prompt) + new_tokens) > self.tokens):
                break
            count += 1
        return count


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms responses are drawn: what those of one call have in common."""

    sampling: Sampling
    ends: Sequence[int]
    """Ids that end a response."""
    pad: int
    """Fills a batch; always masked."""
    on_tokens: Callable[[int], None] | None
    """Called with the number of tokens that have just been drawn."""


def left_padded(
    prompts: Sequence[Sequence[int]], pad: int
) -> tuple[Int64[Tensor, "rows tokens"], Int64[Tensor, "rows tokens"]]:
    """Return ids and mask with every prompt at the right edge, so that all rows continue at the same column."""
    width = max(map(len, prompts))
    ids = [[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids), torch.tensor(mask)


def completion(ids: Sequence[int], logprobs: Sequence[float], ends: Sequence[int]) -> Completion:
    """Return a drawn row, cut after its first end-of-turn id, which is kept.

    Raises:
        ModelError: a log-probability is not finite, because the logits were not.
    """
    length = next((position + 1 for position, token in enumerate(ids) if token in ends), None)
    kept = tuple(logprobs[: length or len(ids)])
    if not all(map(math.isfinite, kept)):
        raise ModelError("the model's logits are not finite; check its weights, and its precision (try bfloat16)")
    return Completion(tuple(ids[:length]), kept, "length" if length is None else "stop")
