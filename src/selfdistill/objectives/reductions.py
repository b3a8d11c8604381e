"""From token losses to one number: the weight of each token in a plain sum over the global batch.

In: each row's (rollout's) length, weight and whether it has a signal, for the WHOLE batch that one optimiser step sees.
Out: one number per row, by which each of its token losses is multiplied; the loss is then the plain sum, in whatever
micro-batches, packings and processes the tokens are scored. Source: METHODS section 8; the entropy weights are those of
SRPO (arXiv 2604.02288), METHODS section 7.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from selfdistill.objectives.settings import SettingError, check_name

ReductionName = Literal["sequence_mean", "token_mean"]
DenominatorName = Literal["all", "informative"]


def token_weights(
    lengths: Sequence[int],
    row_weights: Sequence[float],
    informative: Sequence[bool],
    *,
    reduction: ReductionName,
    over: DenominatorName,
) -> list[float]:
    """Return, for each row of the global batch, the weight of each of its tokens in the summed loss.

    ``sequence_mean``: row weight / (row length x rows counted); ``token_mean``: row weight / tokens counted. What
    counts is ``all`` rows or the ``informative`` ones. A row without signal, or without tokens, weighs 0, but counts
    in ``all``.

    Raises:
        SettingError: an unknown name, or sequences of different lengths.
    """
    check_name("reduction", reduction, get_args(ReductionName))
    check_name("over", over, get_args(DenominatorName))
    if not len(lengths) == len(row_weights) == len(informative):
        sizes = f"{len(lengths)} lengths, {len(row_weights)} row_weights and {len(informative)} informative flags"
        raise SettingError(f"{sizes} do not describe the same rows; pass one of each per row of the global batch.")
    counted = [over == "all" or signal for signal in informative]
    rows = sum(counted)
    tokens = sum(length for length, counts in zip(lengths, counted, strict=True) if counts)

    def weight(length: int, row_weight: float, signal: bool) -> float:
        if not signal or length == 0:
            return 0.0
        return row_weight / (length * rows if reduction == "sequence_mean" else tokens)

    return [weight(*row) for row in zip(lengths, row_weights, informative, strict=True)]


def unnormalised_entropy_weights(teacher_entropy: Float[Tensor, " N"], strength: float) -> Float[Tensor, " N"]:
    """Return exp(-b H_T) per token, without gradient; ``strength`` is b, the entropy is in nats."""
    return torch.exp(-strength * teacher_entropy.detach())


def entropy_weights(
    teacher_entropy: Float[Tensor, " N"], strength: float, mean: float | Tensor | None = None
) -> Float[Tensor, " N"]:
    """Return exp(-b H_T) divided by its mean over the distilled tokens of the global batch (SRPO).

    ``teacher_entropy`` holds all of those tokens; when it is only a micro-batch or one process's share, pass the global
    ``mean`` of :func:`unnormalised_entropy_weights`.
    """
    weights = unnormalised_entropy_weights(teacher_entropy, strength)
    if len(weights) == 0:
        return weights
    return weights / (weights.mean() if mean is None else mean)
