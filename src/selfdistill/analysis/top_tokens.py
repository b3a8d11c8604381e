"""The likeliest next tokens of a model at some positions, in chunks, so that never all logits exist at once."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from selfdistill.analysis.xray import TopTokens
from selfdistill.models.head import Head
from selfdistill.objectives.divergence import log_probabilities, working_dtype
from selfdistill.objectives.linear_reference import CHUNK_ELEMENTS

Mixed = tuple[Tensor, Head, float]
"""Hidden states [n, H] of the student, its head, and its share of the logits."""


@torch.no_grad()
def top_tokens(
    hidden: Float[Tensor, "n H"], head: Head, temperature: float, k: int, mixed: Mixed | None = None
) -> TopTokens:
    """Return the ``k`` likeliest tokens of each position, at a temperature, on the CPU.

    Args:
        hidden: states that predict the positions' tokens.
        head: turns them into logits.
        temperature: logits are divided by it.
        k: how many; all, if the vocabulary is smaller.
        mixed: the student's side of an interpolated target (PAINT, METHODS 3.5).
    """
    k = min(k, head.vocabulary)
    ids, probabilities = [torch.zeros(0, k, dtype=torch.long)], [torch.zeros(0, k)]
    rows = max(1, CHUNK_ELEMENTS // head.vocabulary)
    for start in range(0, len(hidden), rows):
        chunk = slice(start, start + rows)
        logits = head.logits(hidden[chunk])
        if mixed is not None:
            student, student_head, strength = mixed
            logits = (1 - strength) * logits + strength * student_head.logits(student[chunk])
        top = log_probabilities(logits.to(working_dtype(logits)), temperature).topk(k, dim=-1)
        ids.append(top.indices.cpu())
        probabilities.append(top.values.exp().float().cpu())
    return TopTokens(torch.cat(ids), torch.cat(probabilities))
