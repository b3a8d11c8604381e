"""The truth for a few rows: each objective on dense float64 logits, in its textbook form.

Independent of everything that is timed: nothing is imported from the package but the choice of PAINT's positions.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.head_inputs import HeadInputs, HeadOutcome
from selfdistill.objectives.interpolation import select_by_entropy_ratio

PAINT_CLIP, PAINT_SHARE, PAINT_STRENGTH = 0.06, 0.03, 0.03
"""Entry clip in nats, share of the tokens, and the student's share of their target, as published (METHODS 3)."""

Logs = Float[Tensor, "N V"]


def truth(objective: str, inputs: HeadInputs) -> HeadOutcome:
    """Return loss and gradients of ``objective`` in float64; gradients with respect to hidden states and head."""
    hidden, weight = inputs.student.double(), inputs.weight.double()
    student_logits = (hidden @ weight.T).requires_grad_()
    teacher_logits = inputs.teacher.double() @ weight.T
    student, teacher = student_logits.log_softmax(-1), teacher_logits.log_softmax(-1)
    losses = {
        "forward_kl": lambda: forward_kl(student, teacher),
        "jsd": lambda: jensen_shannon(student, teacher),
        "jsd_topk": lambda: jensen_shannon(*top_k_and_tail(student, teacher, inputs.top_k)),
        "paint": lambda: paint(student, teacher),
        "policy": lambda: -inputs.advantages.double() * student.gather(-1, inputs.ids[:, None]).squeeze(-1),
    }
    loss = losses[objective]().mean()
    (gradient,) = torch.autograd.grad(loss, student_logits)
    return HeadOutcome(loss.detach(), gradient @ weight, gradient.T @ hidden)


def forward_kl(student: Logs, teacher: Logs, clip: float = math.inf) -> Float[Tensor, " N"]:
    """Return sum_v min(p_T (log p_T - log p_S), clip)."""
    return (teacher.exp() * (teacher - student)).clamp(max=clip).sum(-1)


def jensen_shannon(student: Logs, teacher: Logs) -> Float[Tensor, " N"]:
    """Return the mean of KL(S||M) and KL(T||M), M the mean of both."""
    mixture = torch.logaddexp(student, teacher) - math.log(2)
    return 0.5 * (student.exp() * (student - mixture) + teacher.exp() * (teacher - mixture)).sum(-1)


def top_k_and_tail(student: Logs, teacher: Logs, count: int) -> tuple[Logs, Logs]:
    """Return both distributions on the student's ``count`` likeliest ids and one bucket for all others."""
    chosen = student.topk(count, -1).indices

    def bucketed(logs: Logs) -> Logs:
        kept = logs.gather(-1, chosen)
        return torch.cat([kept, torch.log1p(-kept.exp().sum(-1, keepdim=True))], -1)

    return bucketed(student), bucketed(teacher)


def paint(student: Logs, teacher: Logs) -> Float[Tensor, " N"]:
    """Return the clipped divergence to the teacher, softened at the tokens of largest entropy ratio (one sequence)."""
    student_entropy, teacher_entropy = (-(logs.exp() * logs).sum(-1).detach() for logs in (student, teacher))
    selected = select_by_entropy_ratio(student_entropy, teacher_entropy, PAINT_SHARE)[:, None]
    mixed = (1 - PAINT_STRENGTH) * teacher + PAINT_STRENGTH * student.detach()
    return forward_kl(student, torch.where(selected, mixed.log_softmax(-1), teacher), PAINT_CLIP)


def cosine(first: Tensor, second: Tensor) -> float:
    """Return the cosine between two tensors as vectors, in float64."""
    one, other = first.double().flatten(), second.double().flatten()
    return float(one @ other / (one.norm() * other.norm()).clamp_min(1e-300))
