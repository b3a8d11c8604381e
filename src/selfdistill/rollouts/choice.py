"""One sampling step as a pure function: logits and uniform numbers in, token ids and their log-probabilities out.

The choice is the inverse of the cumulative distribution in vocabulary order, at a given uniform number. Two models that
see the same uniform number make similar choices, which makes comparisons between them sharper (common random numbers),
and a row's choice cannot depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from selfdistill.rollouts.sampler import Sampling

_BLOCK = 64
"""Uniform numbers that a stream draws at once. Fixed, so that a longer budget continues the same sequence."""
_PREVIEW = 1024
"""Most probable tokens among which top-p looks for its threshold before it sorts the whole vocabulary."""


class UniformStreams:
    """Uniform numbers in [0, 1), one independent stream per seed. Streams may join later, and leave.

    Streams are counter-based generators keyed by the whole seed: different seeds are different streams (torch's own CPU
    generator keeps 32 bits of a seed, so that two of some thousand rollouts would now and then coincide).
    """

    def __init__(self, seeds: list[int]) -> None:
        self._generators = [np.random.Generator(np.random.Philox(key=seed)) for seed in seeds]
        self._drawn = np.zeros(len(seeds), dtype=np.int64)
        self._blocks = np.empty((len(seeds), _BLOCK))

    def next(self, device: torch.device) -> Float64[Tensor, " rows"]:
        """Return the next number of every stream."""
        places = self._drawn % _BLOCK
        for row in np.flatnonzero(places == 0):
            self._blocks[row] = self._generators[row].random(_BLOCK)
        self._drawn += 1
        return torch.from_numpy(self._blocks[np.arange(len(places)), places]).to(device)

    def join(self, others: UniformStreams) -> None:
        """Put other streams behind these, each where it is."""
        self._generators += others._generators
        self._drawn = np.concatenate([self._drawn, others._drawn])
        self._blocks = np.concatenate([self._blocks, others._blocks])

    def keep(self, order: Sequence[int]) -> None:
        """Keep these streams, in this order."""
        self._generators = [self._generators[row] for row in order]
        self._drawn, self._blocks = self._drawn[list(order)], self._blocks[list(order)]


def choose(
    logits: Float[Tensor, "rows vocab"], uniforms: Float64[Tensor, " rows"], sampling: Sampling
) -> tuple[Int64[Tensor, " rows"], Float[Tensor, " rows"]]:
    """Choose one token per row.

    Returns:
        ids: never an id of probability zero, or one outside top-k or top-p.
        logprobs: nats, at the temperature, before top-k and top-p; float32. NaN where a row's logits are not usable.
    """
    if sampling.temperature == 0:
        logprobs = torch.log_softmax(logits.float(), dim=-1)
        ids = logprobs.argmax(-1)
    else:
        logprobs = torch.log_softmax(logits.float() / sampling.temperature, dim=-1)
        ids = _inverse_cdf(_supported(logprobs.exp(), sampling), uniforms)
    return ids, logprobs.gather(-1, ids[:, None]).squeeze(-1)


def _supported(probabilities: Float[Tensor, "rows vocab"], sampling: Sampling) -> Float[Tensor, "rows vocab"]:
    """Set the probability of every token outside top-k or top-p to zero; the rest is not renormalised.

    Tokens that tie with the last one kept are kept too, so that the result does not depend on a sort's order of ties.
    """
    vocabulary = probabilities.shape[-1]
    if 0 < sampling.top_k < vocabulary:
        largest = probabilities.topk(sampling.top_k, dim=-1).values
        needed = sampling.top_p * largest.double().sum(-1, keepdim=True)
    elif sampling.top_p < 1:
        needed = sampling.top_p * probabilities.double().sum(-1, keepdim=True)
        largest = probabilities.topk(min(_PREVIEW, vocabulary), dim=-1).values
        if largest.shape[-1] < vocabulary and bool((largest.double().sum(-1, keepdim=True) < needed).any()):
            largest = probabilities.sort(dim=-1, descending=True).values
    else:
        return probabilities
    if sampling.top_p < 1:
        more_probable = largest.double().cumsum(-1) - largest.double()
        last = (more_probable < needed).sum(-1, keepdim=True) - 1
        threshold = largest.gather(-1, last.clamp_min(0))
    else:
        threshold = largest[:, -1:]
    return torch.where(probabilities >= threshold, probabilities, 0)


def _inverse_cdf(masses: Float[Tensor, "rows vocab"], uniforms: Float64[Tensor, " rows"]) -> Int64[Tensor, " rows"]:
    """Return the first id whose cumulative mass exceeds ``uniforms`` x total: it has positive mass itself."""
    cumulative = masses.cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    # The product may round up to the total, which no id exceeds.
    target = torch.minimum(uniforms[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    ids = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
    return ids.clamp_max(masses.shape[-1] - 1)  # reached only by rows of NaN, which the caller reports
