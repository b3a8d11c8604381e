"""How two next-token distributions are compared: the choices of METHODS section 2 and the checks that they make sense.

In: names and numbers as a user writes them. Out: a validated :class:`DivergenceSettings` that the dense and the chunked
divergence share.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from selfdistill.errors import RecipeError, nearest

DivergenceName = Literal["forward_kl", "reverse_kl", "jsd"]
SupportName = Literal["full", "student_topk", "teacher_topk"]


class SettingError(RecipeError):
    """A setting of an objective is unknown, out of range or contradictory."""


def check_name(field: str, value: str, valid: tuple[str, ...]) -> None:
    """Raise :class:`SettingError`, with the nearest valid name, unless ``value`` is valid."""
    if value not in valid:
        raise SettingError(f"{field}={value!r} is unknown{nearest(str(value), valid)}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class DivergenceSettings:
    """Settings of one per-token divergence. Raises :class:`SettingError` for values that cannot mean anything."""

    divergence: DivergenceName
    """``forward_kl`` = KL(T||S), ``reverse_kl`` = KL(S||T), ``jsd`` = (1-beta) KL(S||M) + beta KL(T||M)."""
    beta: float = 0.5
    """The teacher's share of the mixture M = (1-beta) p_S + beta p_T; read by ``jsd`` only, 0 < beta < 1."""
    temperature: float = 1.0
    """T_d: both logits are divided by it."""
    support: SupportName = "full"
    """``full``; ``student_topk``: the student's K likeliest ids; ``teacher_topk``: the teacher's K, renormalised."""
    top_k: int | None = None
    """K of the top-k supports; ``full`` does not read it."""
    tail: bool = True
    """``student_topk`` only: one more bucket holds the probability outside the K ids."""
    entry_clip: float | None = None
    """tau, nats: each summand over the vocabulary is min(., tau) before the sum."""
    token_clip: float | None = None
    """tau, nats: each token's divergence is min(., tau) after the sum."""

    def __post_init__(self) -> None:
        """Check every setting that the chosen divergence and support read."""
        check_name("divergence", self.divergence, get_args(DivergenceName))
        check_name("support", self.support, get_args(SupportName))
        if self.divergence == "jsd":
            check_mixture(self.beta)
        check_positive("temperature", self.temperature)
        for field in ("entry_clip", "token_clip"):
            clip = getattr(self, field)
            if clip is not None:
                check_positive(field, clip)
        if self.support != "full":
            self._check_top_k()

    def _check_top_k(self) -> None:
        if self.top_k is None:
            raise SettingError(f"support={self.support!r} needs top_k, the number of ids to compare; set it.")
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, int) or self.top_k < 1:
            raise SettingError(f"top_k={self.top_k!r} must be a whole number of at least 1.")

    def check_vocabulary(self, size: int) -> None:
        """Raise :class:`SettingError` if the top-k support is larger than a vocabulary of ``size`` ids."""
        if self.support != "full" and self.top_k is not None and self.top_k > size:
            remedy = "lower it or use support='full'"
            raise SettingError(f"top_k={self.top_k} is larger than the vocabulary of {size} ids; {remedy}.")


def check_positive(field: str, value: float) -> None:
    """Raise :class:`SettingError` unless ``value`` is finite and above 0."""
    if not (math.isfinite(value) and value > 0):
        raise SettingError(f"{field}={value!r} must be a finite number above 0.")


def check_mixture(beta: float) -> None:
    """Raise :class:`SettingError` unless 0 < beta < 1; both ends of the Jensen-Shannon family tend to 0."""
    if 0 < beta < 1:
        return
    if beta == 0:
        remedy = "divergence='reverse_kl' (or 'forward_kl')"
    elif beta == 1:
        remedy = "divergence='forward_kl' (or 'reverse_kl')"
    else:
        remedy = "0.5, or divergence='forward_kl' or 'reverse_kl'"
    raise SettingError(f"beta={beta!r} must lie strictly between 0 and 1: jsd vanishes at both ends; use {remedy}.")
