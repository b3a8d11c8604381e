"""Compare: from the hidden states of both passes to the per-token record that a :class:`Distillation` asks for.

In: hidden states of concatenated responses. Out: a :class:`Comparison`. Source: METHODS sections 2, 3.4 and 3.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from selfdistill.models.head import Head
from selfdistill.objectives.interpolation import select_per_sequence
from selfdistill.objectives.linear_reference import linear_token_divergence
from selfdistill.objectives.parts import Distillation
from selfdistill.objectives.record import TokenRecord


@dataclass(frozen=True, slots=True)
class Comparison:
    """The record of N tokens, and which of them had their target interpolated."""

    record: TokenRecord
    selected: Bool[Tensor, " N"]
    """All False when the objective does not interpolate."""


def compare(
    distillation: Distillation,
    student_hidden: Float[Tensor, "N H"],
    teacher_hidden: Float[Tensor, "N H2"],
    student_projection: Head,
    teacher_projection: Head,
    response_ids: Int[Tensor, " N"],
    lengths: Sequence[int],
    temperature: float,
    *,
    rows_per_chunk: int | None = None,
) -> Comparison:
    """Compare N = sum(lengths) tokens of concatenated responses that were sampled at ``temperature``.

    Log-probabilities are taken at the sampling temperature, so that their ratio to the sampler's is 1 before any
    update, up to rounding (a bf16 model samples from bf16 logits; ``sampler_mismatch`` is logged). Divergence and
    entropies are at T_d. PAINT's first look at all tokens, with the plain target, says which of them to soften; only
    those are then compared again.

    Raises:
        SettingError: tensors or lengths that do not fit together.
    """
    look = partial(
        linear_token_divergence,
        weight=student_projection,
        settings=distillation.settings(temperature),
        teacher_weight=teacher_projection,
        logprob_temperature=temperature,
        rows_per_chunk=rows_per_chunk,
    )
    record = look(student_hidden, teacher_hidden, response_ids=response_ids)
    if not distillation.interpolates or record.teacher_entropy is None:
        return Comparison(record, torch.zeros_like(record.student_entropy, dtype=torch.bool))
    budget = distillation.interpolation_fraction
    selected = select_per_sequence(record.student_entropy, record.teacher_entropy, lengths, budget)
    rows = selected.nonzero().squeeze(-1)
    strength = distillation.interpolation_strength
    softened = look(student_hidden[rows], teacher_hidden[rows], selected=selected[rows], strength=strength)
    return Comparison(_replaced(record, softened, rows), selected)


def _replaced(record: TokenRecord, softened: TokenRecord, rows: Int[Tensor, " n"]) -> TokenRecord:
    """Return the record with the softened divergence, and what its clip cut, at ``rows``."""

    def put(before: Tensor | None, after: Tensor | None) -> Tensor | None:
        return before if before is None or after is None else before.index_copy(0, rows, after)

    return replace(
        record,
        divergence=put(record.divergence, softened.divergence),
        clip_fraction=put(record.clip_fraction, softened.clip_fraction),
    )
