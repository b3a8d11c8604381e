"""Where our loss heads are called. :mod:`benchmarks.ours_training` has the rest of the code under test.

In: the head benchmark's inputs. Out: loss and gradients. Nothing else in ``benchmarks/`` calls what is measured.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.head_inputs import HeadInputs, HeadOutcome, outcome
from benchmarks.head_reference import PAINT_CLIP, PAINT_SHARE, PAINT_STRENGTH
from selfdistill.models.head import Projection
from selfdistill.objectives import linear_reference, linear_token_divergence, linear_token_logprobs
from selfdistill.objectives.heads import MicroBatch, fused_loss
from selfdistill.objectives.parts import Distillation
from selfdistill.objectives.policy_gradient import policy_gradient_loss
from selfdistill.objectives.settings import DivergenceSettings


def divergence(inputs: HeadInputs, *, trained: bool = False, readable: bool = False, **settings: Any) -> HeadOutcome:
    """Return the mean divergence of N tokens and its gradients, by the public function; it makes the whole record."""
    hidden, weight = _leaves(inputs, trained)
    if readable:
        chosen = DivergenceSettings(**settings)
        record = linear_reference.linear_token_divergence(
            hidden, inputs.teacher, weight, chosen, response_ids=inputs.ids
        )
    else:
        record = linear_token_divergence(hidden, inputs.teacher, weight, response_ids=inputs.ids, **settings)
    assert record.divergence is not None
    return outcome(record.divergence.mean(), hidden, weight if trained else None)


def paint(inputs: HeadInputs) -> HeadOutcome:
    """Return PAINT's objective of one rollout of N tokens, by the function that training uses."""
    part = Distillation(
        divergence="forward_kl",
        entry_clip=PAINT_CLIP,
        interpolation_fraction=PAINT_SHARE,
        interpolation_strength=PAINT_STRENGTH,
    )
    hidden, weight = _leaves(inputs, False)
    tokens = len(inputs.ids)
    batch = MicroBatch(
        student_hidden=hidden,
        student=Projection(weight),
        response_ids=inputs.ids,
        lengths=[tokens],
        temperature=1.0,
        token_weights=torch.full((tokens,), 1 / tokens, device=hidden.device),
        teacher_hidden=inputs.teacher,
        teacher=Projection(weight),
    )
    return outcome(fused_loss(part, batch).loss, hidden)


def policy_gradient(inputs: HeadInputs) -> HeadOutcome:
    """Return the on-policy clipped policy gradient (GRPO) of N tokens, by the public function."""
    hidden, weight = _leaves(inputs, False)
    record = linear_token_logprobs(hidden, weight, inputs.ids)
    assert record.student_logprob is not None
    logprob = record.student_logprob.detach()
    surrogate = policy_gradient_loss(record.student_logprob, logprob, inputs.advantages)
    found = outcome(surrogate.loss.mean(), hidden)
    # With a ratio of 1 the value is -A whatever p is; what is compared with the truth is -A log p.
    return HeadOutcome(-(inputs.advantages * logprob).mean(), found.hidden_gradient)


def _leaves(inputs: HeadInputs, trained: bool) -> tuple[Tensor, Tensor]:
    """Return hidden states that want a gradient, and a head that does if it is trained."""
    weight = inputs.weight.detach()
    return inputs.student.detach().requires_grad_(), weight.requires_grad_() if trained else weight
