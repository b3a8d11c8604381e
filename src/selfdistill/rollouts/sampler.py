"""What it takes to sample: the settings, what comes back, and the protocol that every sampler implements.

In: prompt ids and one seed per wanted completion. Out: completions, with the log-probabilities that training needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass as plain_dataclass
from typing import Protocol

from pydantic import Field
from pydantic.dataclasses import dataclass

from selfdistill.rollouts.rollout import FinishReason
from selfdistill.validation import PART


@dataclass(frozen=True, config=PART, kw_only=True)
class Sampling:
    """How responses are drawn: temperature, then top-k, then top-p."""

    temperature: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """Logits are divided by it. 0 takes the most probable token (log-probabilities are then those at temperature 1)."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Keep the smallest set of most probable tokens that reaches this probability; 1 keeps all."""
    top_k: int = Field(default=0, ge=0)
    """Keep this many most probable tokens; 0 keeps all."""
    max_new_tokens: int = Field(default=1024, ge=1)
    """Longest response in tokens, end-of-turn id included."""


@plain_dataclass(frozen=True, slots=True)
class Completion:
    """One sampled response."""

    ids: tuple[int, ...]
    """The sampled ids, the end-of-turn id included when it was drawn; never padding."""
    logprobs: tuple[float, ...]
    """Log-probability (nats) of each id at the sampling temperature, before top-k and top-p; as long as ``ids``."""
    finish_reason: FinishReason
    """``stop``: an end-of-turn id was drawn; ``length``: the budget ran out."""


class Sampler(Protocol):
    """Draws completions from a model."""

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        on_tokens: Callable[[int], None] | None = None,
    ) -> list[list[Completion]]:
        """Return one completion per seed, in the order of ``prompts`` and ``seeds``.

        A completion depends on (weights, prompt, seed, sampling) and not on what else is asked for, up to rounding.

        Args:
            prompts: rendered prompts, no padding.
            seeds: ``seeds[i]`` holds one seed per wanted completion of prompt i.
            sampling: how to draw.
            on_tokens: called with the number of tokens that have just been drawn, as they appear.
        """
        ...
