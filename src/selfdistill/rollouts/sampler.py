"""What it takes to sample: the settings, what comes back, and the protocols that every sampler implements.

In: prompt ids and one seed per wanted completion. Out: completions, with the log-probabilities that training needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
    stop_token_ids: tuple[int, ...] = ()
    """More ids that end a response, besides those that end a turn; kept in it like those."""
    thinking_budget: int | None = Field(default=None, ge=1)
    """Longest thinking in tokens: a response that has not closed its thinking block by then has it closed for it, and
    goes on with its answer. For evaluation; null: no limit but ``max_new_tokens``."""


@plain_dataclass(frozen=True, slots=True)
class Completion:
    """One sampled response."""

    ids: tuple[int, ...]
    """The sampled ids, the end-of-turn id included when it was drawn; never padding."""
    logprobs: tuple[float, ...] | None
    """Log-probability (nats) of each id at the sampling temperature, before top-k and top-p; as long as ``ids``. None:
    not asked for, or not to be had from this engine at these settings."""
    finish_reason: FinishReason
    """``stop``: an end-of-turn id was drawn; ``length``: the budget ran out."""


Place = tuple[int, int]
"""Where a completion belongs: the index of its prompt, and that of its seed among the prompt's."""


class Sampler(Protocol):
    """Draws completions from a model."""

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        logprobs: bool = True,
        on_tokens: Callable[[int], None] | None = None,
    ) -> Iterator[tuple[Place, Completion]]:
        """Yield one completion per seed as it finishes, with its place.

        A completion depends on (weights, prompt, seed, sampling) and not on what else is asked for, up to rounding.
        When the consumer stops early (closes the iterator, or raises), what is still being drawn is given up.

        Args:
            prompts: rendered prompts, no padding.
            seeds: ``seeds[i]`` holds one seed per wanted completion of prompt i. Consecutive seeds (s, s+1, s+2 ...)
                are the siblings of one request, for engines that know such requests.
            sampling: how to draw.
            logprobs: whether log-probabilities are wanted; an engine may return them all the same.
            on_tokens: called, in the consumer's thread, with the number of tokens that have just been drawn.
        """
        ...

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        logprobs: bool = True,
        on_tokens: Callable[[int], None] | None = None,
    ) -> list[list[Completion]]:
        """Return all completions of :meth:`stream` at once, in the order of ``prompts`` and ``seeds``."""
        done = dict(self.stream(prompts, seeds, sampling, logprobs=logprobs, on_tokens=on_tokens))
        return [[done[index, sibling] for sibling in range(len(own))] for index, own in enumerate(seeds)]


@plain_dataclass(frozen=True, slots=True)
class SyncReport:
    """How an engine came by the policy's present weights, and the proof that it has them."""

    version: str
    bytes: int
    """What was written or sent, for one engine."""
    seconds: float
    mean_difference: float
    """Of log-probabilities (nats) between engine and trainer over the fixed text, absolute."""
    max_difference: float


class Engine(Sampler, Protocol):
    """A sampler that a run owns. It draws from the weights that the policy had at the last :meth:`sync`."""

    in_policy: bool = False
    """Whether it draws from the policy's own parameters, on every process of a run. Otherwise one process uses it."""

    def sync(self, version: str) -> SyncReport | None:
        """Take over the policy's present weights and call them ``version``; None when they are shared anyway.

        Raises:
            RolloutError: the engine cannot be given the weights, or does not prove to have them.
        """
        ...

    def close(self) -> None:
        """Let go of everything that was started or written for this engine."""
        ...


def draws_from_policy(sampler: Sampler) -> bool:
    """Say whether a sampler draws from the policy's own parameters, see :attr:`Engine.in_policy`."""
    return bool(getattr(sampler, "in_policy", False))


def draws_whole_rounds(sampler: Sampler) -> bool:
    """Say whether the last bits of a response depend on what is drawn beside it, where a run promises the same bits.

    A round that was cut off is then drawn again as a whole: what is missing alone would come out otherwise.
    """
    return bool(getattr(sampler, "whole_rounds", False))
