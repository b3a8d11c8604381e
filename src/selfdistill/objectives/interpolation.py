"""Sparse energy interpolation: which tokens get a softened target, and the target itself.

In: entropies [n] of one sample's tokens, or logits. Out: a selection [n], or the interpolated logits.
Source: PAINT, arXiv 2604.26573; METHODS 3.4 and 3.5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from selfdistill.objectives.divergence import working_dtype
from selfdistill.objectives.settings import SettingError


def select_by_entropy_ratio(
    student_entropy: Float[Tensor, " n"], teacher_entropy: Float[Tensor, " n"], budget: float, *, eps: float = 1e-6
) -> Bool[Tensor, " n"]:
    """Return True at the ceil(budget * n) tokens of one sample with the largest H_T / max(H_S, eps).

    ``budget`` is f_top, a share in [0, 1]; entropies are in nats; ties go to the earlier token. The ratio only ranks.

    Raises:
        SettingError: ``budget`` out of range, or entropies of two lengths.
    """
    check_share("budget", budget)
    if student_entropy.shape != teacher_entropy.shape or student_entropy.dim() != 1:
        shapes = f"{tuple(student_entropy.shape)} and {tuple(teacher_entropy.shape)}"
        raise SettingError(f"student_entropy and teacher_entropy have shapes {shapes}; both must be [n].")
    ratio = teacher_entropy.detach() / student_entropy.detach().clamp(min=eps)
    order = ratio.sort(descending=True, stable=True).indices
    selected = torch.zeros_like(ratio, dtype=torch.bool)
    selected[order[: selection_size(budget, len(ratio))]] = True
    return selected


def selection_size(budget: float, tokens: int) -> int:
    """Return ceil(budget * tokens) of the decimal that was meant: 0.07 of 100 is 7, though 0.07 * 100 > 7 in binary."""
    return min(tokens, math.ceil(budget * tokens * (1 - 1e-12)))


def select_per_sequence(
    student_entropy: Float[Tensor, " N"],
    teacher_entropy: Float[Tensor, " N"],
    lengths: Sequence[int],
    budget: float,
    eps: float = 1e-6,
) -> Bool[Tensor, " N"]:
    """Apply :func:`select_by_entropy_ratio` to each of the concatenated sequences of ``lengths`` tokens.

    Raises:
        SettingError: the lengths do not add up to N, or as :func:`select_by_entropy_ratio`.
    """
    if sum(lengths) != len(student_entropy):
        given = f"lengths add up to {sum(lengths)} tokens but student_entropy has {len(student_entropy)}"
        raise SettingError(f"{given}; pass one length per sequence.")
    check_share("budget", budget)
    students, teachers = torch.split(student_entropy, list(lengths)), torch.split(teacher_entropy, list(lengths))
    chosen = [
        select_by_entropy_ratio(student, teacher, budget, eps=eps)
        for student, teacher in zip(students, teachers, strict=True)
    ]
    return torch.cat(chosen) if chosen else torch.zeros_like(student_entropy, dtype=torch.bool)


def interpolate_targets(
    teacher_logits: Float[Tensor, "... V"],
    student_logits: Float[Tensor, "... V"],
    selected: Bool[Tensor, ...],
    strength: float,
) -> Float[Tensor, "... V"]:
    """Return (1-k) z_T + k z_S on the selected tokens and z_T elsewhere, without gradient, in float32 or float64.

    ``strength`` is k in [0, 1]. The softmax of the result is proportional to p_T^(1-k) p_S^k.

    Raises:
        SettingError: ``strength`` out of range.
    """
    check_share("strength", strength)
    dtype = working_dtype(teacher_logits, student_logits)
    teacher, student = teacher_logits.detach().to(dtype), student_logits.detach().to(dtype)
    if strength == 0:  # 0 * -inf would be nan
        return teacher
    mixed = student if strength == 1 else (1 - strength) * teacher + strength * student
    return torch.where(selected.unsqueeze(-1), mixed, teacher)


def check_share(field: str, value: float) -> None:
    """Raise :class:`SettingError` unless 0 <= value <= 1."""
    if not 0 <= value <= 1:
        raise SettingError(f"{field}={value!r} must lie in [0, 1].")
