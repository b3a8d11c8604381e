"""Per-token divergence between student and self-teacher: the readable reference.

In: logits [..., V] of both. Out: nats per token [...], differentiable in the student's logits; the teacher is constant.
Source: METHODS section 2; the entry clip is that of OPSD (arXiv 2601.18734) and PAINT (arXiv 2604.26573), the student's
top-k support with a tail bucket that of SDPO (arXiv 2601.20802).

A logit of -inf is a forbidden id: it adds nothing where both sides forbid it. A log-probability below ``LOG_FLOOR``
counts as ``LOG_FLOOR``, so that a divergence which is infinite in theory (only one side forbids an id) comes out huge
but finite, with a finite gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from selfdistill.objectives.settings import DivergenceName, DivergenceSettings, SettingError, SupportName

LOG_FLOOR = -1e4
"""exp(LOG_FLOOR) is exactly 0 in float32 and float64, and differences of two such numbers stay finite."""


@dataclass(frozen=True, slots=True)
class Compared:
    """What comparing two distributions yields, one value per token; only ``divergence`` carries a gradient."""

    divergence: Float[Tensor, ...]
    clip_fraction: Float[Tensor, ...]
    """Share of the support's summands (entry clip) or 0/1 per token (token clip, alone) that a clip cut."""
    captured_mass: Float[Tensor, ...]
    """Probability that the owner of a top-k support has on its K ids; 1 for the full support."""


def token_divergence(
    student_logits: Float[Tensor, "... V"],
    teacher_logits: Float[Tensor, "... V"],
    *,
    divergence: DivergenceName,
    beta: float = 0.5,
    temperature: float = 1.0,
    support: SupportName = "full",
    top_k: int | None = None,
    tail: bool = True,
    entry_clip: float | None = None,
    token_clip: float | None = None,
) -> Float[Tensor, ...]:
    """Return the divergence of each token in nats, [..., V] -> [...], in float32 (float64 for float64 logits).

    It is a loss: differentiate it. As an action-independent advantage its expected gradient would be 0. With an entry
    clip a token's value can be negative, as published; a clipped summand or token has no gradient. The settings are
    those of :class:`DivergenceSettings`; ``beta``, ``top_k`` and ``tail`` are read only by the divergence or support
    that has them.

    Raises:
        SettingError: an unknown name, a value out of range, a missing or too large ``top_k``, or logits of two shapes.
    """
    settings = DivergenceSettings(
        divergence=divergence,
        beta=beta,
        temperature=temperature,
        support=support,
        top_k=top_k,
        tail=tail,
        entry_clip=entry_clip,
        token_clip=token_clip,
    )
    if student_logits.shape != teacher_logits.shape:
        shapes = f"{tuple(student_logits.shape)} and {tuple(teacher_logits.shape)}"
        raise SettingError(f"student and teacher logits have shapes {shapes}; both must be [..., V], token by token.")
    dtype = working_dtype(student_logits, teacher_logits)
    student = log_probabilities(student_logits.to(dtype), temperature)
    teacher = log_probabilities(teacher_logits.detach().to(dtype), temperature)
    return compare_log_probabilities(student, teacher, settings).divergence


def working_dtype(*tensors: Tensor) -> torch.dtype:
    """Return float64 if any tensor is float64, else float32: the least precision in which divergences are computed."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def log_probabilities(logits: Float[Tensor, "... V"], temperature: float) -> Float[Tensor, "... V"]:
    """Return log softmax(logits / temperature), no smaller than ``LOG_FLOOR``."""
    return torch.log_softmax(logits / temperature, dim=-1).clamp(min=LOG_FLOOR)


def entropy(log_probs: Float[Tensor, "... V"]) -> Float[Tensor, ...]:
    """Return the entropy in nats of distributions given by their log-probabilities."""
    return -(log_probs.exp() * log_probs).sum(-1)


def compare_log_probabilities(
    student: Float[Tensor, "... V"], teacher: Float[Tensor, "... V"], settings: DivergenceSettings
) -> Compared:
    """Compare floored log-probabilities over the full vocabulary; the caller has detached the teacher's."""
    settings.check_vocabulary(student.shape[-1])
    captured, student, teacher = _restrict(student, teacher, settings)
    divergence, clipped = clipped_divergence(student, teacher, settings)
    return Compared(divergence, clipped, captured)


def clipped_divergence(
    student: Float[Tensor, "... K"], teacher: Float[Tensor, "... K"], settings: DivergenceSettings
) -> tuple[Float[Tensor, ...], Float[Tensor, ...]]:
    """Return divergence and clip fraction of log-probabilities that have been restricted to the support."""
    summands = _summands(student, teacher, settings)
    clipped = torch.zeros_like(summands.detach()[..., 0])
    if settings.entry_clip is not None:
        clipped = (summands.detach() > settings.entry_clip).to(summands.dtype).mean(-1)
        summands = summands.clamp(max=settings.entry_clip)
    divergence = summands.sum(-1)
    if settings.token_clip is not None:
        if settings.entry_clip is None:
            clipped = (divergence.detach() > settings.token_clip).to(divergence.dtype)
        divergence = divergence.clamp(max=settings.token_clip)
    return divergence, clipped


def _restrict(
    student: Float[Tensor, "... V"], teacher: Float[Tensor, "... V"], settings: DivergenceSettings
) -> tuple[Float[Tensor, ...], Float[Tensor, "... K"], Float[Tensor, "... K"]]:
    """Return the captured mass and both log-probabilities on the support."""
    if settings.support == "full" or settings.top_k is None:
        return torch.ones_like(teacher[..., 0]), student, teacher
    owner = student if settings.support == "student_topk" else teacher
    ids = largest_ids(owner.detach(), settings.top_k)
    captured = owner.detach().gather(-1, ids).exp().sum(-1)
    if settings.support == "teacher_topk":
        return captured, student.gather(-1, ids).log_softmax(-1), teacher.gather(-1, ids).log_softmax(-1)
    if not settings.tail:
        return captured, student.gather(-1, ids), teacher.gather(-1, ids)
    return captured, _with_tail(student, ids), _with_tail(teacher, ids)


def largest_ids(log_probs: Float[Tensor, "... V"], count: int) -> Int[Tensor, "... K"]:
    """Return the ids of the ``count`` largest entries; ties go to the lower id, which plain top-k does not promise."""
    values, ids = log_probs.topk(min(count + 1, log_probs.shape[-1]), dim=-1)
    tied = values[..., count - 1] == values[..., -1]
    ids = ids[..., :count].contiguous()
    if values.shape[-1] > count and tied.any():
        ids[tied] = log_probs[tied].sort(dim=-1, descending=True, stable=True).indices[..., :count]
    return ids


def _with_tail(log_probs: Float[Tensor, "... V"], ids: Int[Tensor, "... K"]) -> Float[Tensor, "... K+1"]:
    """Return the log-probabilities of ``ids`` and, last, of everything else together.

    The tail is the log-sum-exp of the other ids: equal to log(1 - sum), but precise, and with a bounded gradient, where
    the sum rounds to 1.
    """
    others = log_probs.scatter(-1, ids, LOG_FLOOR)
    return torch.cat([log_probs.gather(-1, ids), others.logsumexp(-1, keepdim=True)], dim=-1)


def _summands(
    student: Float[Tensor, "... K"], teacher: Float[Tensor, "... K"], settings: DivergenceSettings
) -> Float[Tensor, "... K"]:
    """Return each entry's contribution; jsd adds both halves of an entry, so that the entry clip cuts their sum."""
    if settings.divergence == "forward_kl":
        return teacher.exp() * (teacher - student)
    if settings.divergence == "reverse_kl":
        return student.exp() * (student - teacher)
    log_beta, log_rest = student.new_tensor(math.log(settings.beta)), student.new_tensor(math.log1p(-settings.beta))
    # log(M / p_S) and log(M / p_T) from the log-ratio: near equality this keeps digits that log M would round away.
    log_ratio = teacher - student
    mixture_to_student = torch.logaddexp(log_rest, log_beta + log_ratio)
    mixture_to_teacher = torch.logaddexp(log_beta, log_rest - log_ratio)
    return (
        -(1 - settings.beta) * student.exp() * mixture_to_student - settings.beta * teacher.exp() * mixture_to_teacher
    )
