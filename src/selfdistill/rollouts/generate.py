"""Decoding with transformers' own ``generate``: for every architecture, batch by batch, each until its last row ends.

``generate`` does the decoding (cache, positions under left padding, stopping); one logits processor makes the choice of
each row from that row's own random stream, keeps its log-probability, and hands ``generate`` scores whose arg-max is
the choice. In: requests. Out: completions by place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from selfdistill.rollouts.choice import UniformStreams, choose
from selfdistill.rollouts.requests import Limits, Request, Terms, completion, left_padded
from selfdistill.rollouts.sampler import Completion, Sampling


@torch.no_grad()
def generate(
    model: Any, requests: Sequence[Request], terms: Terms, limits: Limits
) -> Iterator[tuple[tuple[int, int], Completion]]:
    """Yield the completion of every request, which are sorted by the length of their prompts."""
    waiting = list(requests)
    with _empty_generation_config(model):
        while waiting:
            count = limits.admit(0, waiting, terms.sampling.max_new_tokens)
            batch, waiting = waiting[:count], waiting[count:]
            yield from _batch(model, batch, terms)


def _batch(model: Any, batch: Sequence[Request], terms: Terms) -> Iterator[tuple[tuple[int, int], Completion]]:
    device = model.get_input_embeddings().weight.device
    ids, mask = left_padded([request.prompt for request in batch], terms.pad)
    choice = SeededChoice([request.seed for request in batch], terms.sampling, terms.ends, terms.on_tokens)
    config = GenerationConfig(
        max_new_tokens=terms.sampling.max_new_tokens,
        do_sample=False,  # the choice is the processor's
        use_cache=True,
        eos_token_id=list(terms.ends),
        pad_token_id=terms.pad,
    )
    sequences = model.generate(
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        generation_config=config,
        logits_processor=LogitsProcessorList([choice]),
    )
    responses, logprobs = sequences[:, ids.shape[1] :].tolist(), choice.logprobs().tolist()
    for request, drawn, own in zip(batch, responses, logprobs, strict=True):
        yield request.place, completion(drawn, own, terms.ends)


class SeededChoice(LogitsProcessor):
    """Chooses every row's next token from that row's random stream, and remembers the log-probabilities."""

    def __init__(
        self,
        seeds: list[int],
        sampling: Sampling,
        ends: Sequence[int],
        on_tokens: Callable[[int], None] | None = None,
    ) -> None:
        self._streams = UniformStreams(seeds)
        self._sampling = sampling
        self._ends = torch.tensor(ends)
        self._on_tokens = on_tokens
        self._unfinished = torch.ones(len(seeds), dtype=torch.bool)
        self._logprobs: list[Float[Tensor, " rows"]] = []

    def __call__(
        self, input_ids: Int64[Tensor, "rows tokens"], scores: Float[Tensor, "rows vocab"]
    ) -> Float[Tensor, "rows vocab"]:
        """Return scores that are 0 at the chosen id and minus infinity elsewhere."""
        ids, logprobs = choose(scores, self._streams.next(scores.device), self._sampling)
        self._logprobs.append(logprobs)
        if self._on_tokens is not None:  # reading the count waits for the device, so only on request
            self._unfinished = self._unfinished.to(scores.device)
            self._on_tokens(int(self._unfinished.sum()))
            self._unfinished &= ~torch.isin(ids, self._ends.to(scores.device))
        return torch.full_like(scores, -torch.inf).scatter_(-1, ids[:, None], 0)

    def logprobs(self) -> Float[Tensor, "rows steps"]:
        """Return the log-probabilities of all choices so far; those after a row's end mean nothing."""
        return torch.stack(self._logprobs, dim=1)


@contextmanager
def _empty_generation_config(model: Any) -> Iterator[None]:
    """Put the model under an empty generation config, and give its own back.

    ``generate`` fills everything that a call leaves open from the model's own config: a published temperature or a
    repetition penalty would silently change the distribution. A peft model writes its config into the model that it
    wraps, so both are put back.
    """
    owners = [model, model.get_base_model()] if hasattr(model, "get_base_model") else [model]
    configs = [owner.generation_config for owner in owners]
    try:
        for owner in owners:
            owner.generation_config = GenerationConfig()
        yield
    finally:
        for owner, config in zip(owners, configs, strict=True):
            owner.generation_config = config
