"""From a micro-batch of hidden states to its share of the step's loss, on either path through the head.

``fused_loss`` makes the gradient in the forward pass (:mod:`selfdistill.objectives.head_pass`); ``readable_loss`` is
the same mathematics by autograd over chunks (``linear_reference.py``). For every objective they agree up to float
rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from selfdistill.models.head import Head, Projection
from selfdistill.objectives.compare import compare
from selfdistill.objectives.head_pass import HeadGradients, HeadInputs, HeadPass, Rows, head_pass, interpolated_pass
from selfdistill.objectives.interpolation import select_per_sequence
from selfdistill.objectives.linear_reference import linear_token_logprobs
from selfdistill.objectives.losses import Objective, Signals, TokenLosses, token_losses
from selfdistill.objectives.parts import Distillation, PolicyGradient
from selfdistill.objectives.record import TokenRecord

HeadName = Literal["fused", "readable"]


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Rows of one objective, tokens one after the other."""

    student_hidden: Float[Tensor, "N H"]
    student: Projection
    response_ids: Int[Tensor, " N"]
    lengths: list[int]
    """Response tokens per row; they sum to N."""
    temperature: float
    """Sampling temperature of the rollouts."""
    token_weights: Float[Tensor, " N"]
    """What each token's loss is multiplied with."""
    teacher_hidden: Float[Tensor, "N HT"] | None = None
    teacher: Head | None = None
    rollout_logprobs: Float[Tensor, " N"] | None = None
    """None: on-policy; see :class:`Signals`."""
    advantages: Float[Tensor, " N"] | None = None

    def signals(self, rows: Rows) -> Signals:
        """Return what the losses of some tokens depend on."""

        def take(column: Tensor | None) -> Tensor | None:
            return None if column is None else column[rows]

        return Signals(take(self.rollout_logprobs), take(self.advantages))


@dataclass(frozen=True, slots=True)
class Scored:
    """A micro-batch's share of the loss."""

    loss: Float[Tensor, ""]
    """Differentiable, once, in the student's hidden states and in a head that is trained."""
    tokens: TokenLosses
    """What it is the weighted sum of, for the metrics."""


def fused_loss(part: Objective, batch: MicroBatch) -> Scored:
    """Return the loss with its gradient made in one pass over the head, plus PAINT's second look at few tokens."""
    inputs = _inputs(part, batch)
    gradients = HeadGradients.wanted_by(inputs)

    def loss(record: TokenRecord, rows: Rows) -> Tensor:
        return token_losses(part, record, batch.signals(rows)).losses * batch.token_weights[rows]

    looked = head_pass(inputs, loss, gradients)
    selected = _selected(part, looked.record, batch.lengths)
    if isinstance(part, Distillation) and part.interpolates:
        rows = selected.nonzero().squeeze(-1)
        looked = interpolated_pass(inputs, looked, rows, part.interpolation_strength, loss, gradients)
    tokens = replace(token_losses(part, looked.record, batch.signals(slice(None))), selected=selected)
    total = (tokens.losses * batch.token_weights).sum()
    head = batch.student
    loss_made: Tensor = _Made.apply(  # type: ignore[no-untyped-call]
        batch.student_hidden, head.weight, head.bias, total, looked, gradients
    )
    return Scored(loss_made, tokens)


def readable_loss(part: Objective, batch: MicroBatch) -> Scored:
    """Return the loss with autograd's gradient, which makes all logits a second time."""
    if isinstance(part, Distillation):
        assert batch.teacher_hidden is not None and batch.teacher is not None
        comparison = compare(
            part,
            batch.student_hidden,
            batch.teacher_hidden,
            batch.student,
            batch.teacher,
            batch.response_ids,
            batch.lengths,
            batch.temperature,
        )
        record, selected = comparison.record, comparison.selected
    else:
        temperature = _temperature(part, batch)
        record = linear_token_logprobs(batch.student_hidden, batch.student, batch.response_ids, temperature)
        selected = _selected(part, record, batch.lengths)
    tokens = replace(token_losses(part, record, batch.signals(slice(None))), selected=selected)
    return Scored((tokens.losses * batch.token_weights).sum(), tokens)


HEADS: dict[HeadName, Callable[[Objective, MicroBatch], Scored]] = {"fused": fused_loss, "readable": readable_loss}


def _temperature(part: Objective, batch: MicroBatch) -> float:
    """Return the temperature of an objective without teacher: the sampling's, or 1 for reference solutions."""
    return batch.temperature if isinstance(part, PolicyGradient) else 1.0


def _inputs(part: Objective, batch: MicroBatch) -> HeadInputs:
    hidden = batch.student_hidden.detach()
    if not isinstance(part, Distillation):
        temperature = _temperature(part, batch)
        return HeadInputs(hidden, batch.student, ids=batch.response_ids, temperature=temperature)
    settings = part.settings(batch.temperature)
    return HeadInputs(
        hidden,
        batch.student,
        ids=batch.response_ids,
        temperature=settings.temperature,
        logprob_temperature=batch.temperature,
        teacher_hidden=batch.teacher_hidden,
        teacher=batch.teacher,
        settings=settings,
    )


def _selected(part: Objective, record: TokenRecord, lengths: list[int]) -> Bool[Tensor, " N"]:
    """Return the tokens whose targets are interpolated (PAINT, METHODS 3.4)."""
    if not isinstance(part, Distillation) or not part.interpolates or record.teacher_entropy is None:
        return torch.zeros_like(record.student_entropy, dtype=torch.bool)
    return select_per_sequence(record.student_entropy, record.teacher_entropy, lengths, part.interpolation_fraction)


class _Made(torch.autograd.Function):
    """Hands a gradient that has been made already to autograd."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        total: Tensor,
        looked: HeadPass,
        gradients: HeadGradients,
    ) -> Tensor:
        """Return the loss."""
        ctx.made = (looked.hidden_gradient, gradients.weight, gradients.bias)
        ctx.dtypes = [None if one is None else one.dtype for one in (hidden, weight, bias)]
        return total.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Any:
        """Return what was made, times the upstream gradient where that is not 1, as it is for a loss."""
        made = ctx.made if float(upstream) == 1 else [None if one is None else one * upstream for one in ctx.made]
        return *(None if one is None else one.to(dtype) for one, dtype in zip(made, ctx.dtypes, strict=True)), *[
            None
        ] * 3
