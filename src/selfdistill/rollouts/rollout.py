"""A rollout: one response of the student to a question, exactly as it was sampled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from selfdistill.questions.question import Question

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled response. Built only by :mod:`selfdistill.rollouts.collect`.

    ``response_ids`` are the ids that the sampler drew, never decoded and re-tokenised; the end-of-turn id is part of
    them when it was drawn.
    """

    question: Question
    sibling: int
    """Index within the question's group, 0 .. G-1."""
    prompt_ids: tuple[int, ...]
    """The student's rendered prompt, no padding."""
    response_ids: tuple[int, ...]
    logprobs: tuple[float, ...] | None
    """Log-probability (nats) of each response id under the policy that drew it, at the sampling temperature, before
    top-p and top-k; None if not sampled (a reference)."""
    text: str
    """The decoded response without special tokens."""
    finish_reason: FinishReason
    """``stop``: an end-of-turn id was drawn; ``length``: the budget ran out (truncated)."""
