"""The objectives as settings: what a recipe may say about the loss, each part validating itself.

In: names and numbers from a method, a recipe or the command line. Out: frozen dataclasses that print, compare and
serialise; the functions that they configure live beside them. Sources: METHODS sections 2 to 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator
from pydantic.dataclasses import dataclass

from selfdistill.objectives.reductions import DenominatorName, ReductionName, token_weights
from selfdistill.objectives.settings import DivergenceName, DivergenceSettings, SupportName, check_mixture, check_name
from selfdistill.validation import PART

EstimatorName = Literal["full", "sampled_token"]


@dataclass(frozen=True, config=PART, kw_only=True)
class Distillation:
    """Pull the student's next-token distributions towards the self-teacher's."""

    kind: Literal["distillation"] = "distillation"
    divergence: DivergenceName = "forward_kl"
    """``forward_kl`` (PAINT, OPSD), ``jsd`` (SDPO, SC-SDPO) or ``reverse_kl`` (SDPO on code)."""
    estimator: EstimatorName = "full"
    """``full``: the divergence itself; ``sampled_token``: its policy gradient on the sampled token alone (OPSD)."""
    beta: float = 0.5
    """jsd only: the teacher's share of the mixture, 0 < beta < 1."""
    support: SupportName = "full"
    """The ids that are compared: all, the student's K likeliest, or the teacher's."""
    top_k: int | None = Field(default=None, ge=1)
    """K of a top-k support (SDPO: 100, with reverse_kl 20; OPSD's variant: 50)."""
    tail: bool = True
    """student_topk only: one more bucket for the probability outside the K ids."""
    entry_clip: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Nats; each vocabulary summand is min(., tau) before the sum (PAINT: 0.06; OPSD: 0.05, 0.06 at 8B)."""
    token_clip: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Nats; each token's divergence is min(., tau) after the sum."""
    temperature: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """T_d; None: the temperature that the rollouts were sampled at."""
    interpolation_fraction: float = Field(default=0.0, ge=0, le=1)
    """PAINT's f_top: share of each rollout's tokens whose target is softened (published: 0.03)."""
    interpolation_strength: float = Field(default=0.0, ge=0, le=1)
    """PAINT's k: the student's share of a softened target's logits (published: 0.03)."""
    ratio_cap: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Token losses are multiplied by min(p_S(y) / p_rollout(y), cap), held constant (SDPO: 2); None: not multiplied."""
    entropy_weight: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """SRPO's b: token losses are weighted exp(-b H_T) over its mean (published: 1); None: not weighted."""

    @field_validator("divergence", "support", "estimator", mode="before")
    @classmethod
    def _name_the_nearest(cls, value: Any, info: Any) -> Any:
        valid = {"divergence": DivergenceName, "support": SupportName, "estimator": EstimatorName}
        check_name(info.field_name, value, get_args(valid[info.field_name]))
        return value

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> Self:
        self._check_divergence()
        self._check_support()
        self._check_interpolation()
        if self.estimator == "sampled_token":
            self._check_sampled_token()
        return self

    def _check_divergence(self) -> None:
        if self.divergence == "jsd":
            check_mixture(self.beta)
        elif self.beta != 0.5:
            raise ValueError(
                f"beta={self.beta} has no meaning with divergence={self.divergence!r}; remove it or use jsd."
            )
        if self.entry_clip is not None and self.token_clip is not None:
            clips = f"entry_clip={self.entry_clip} and token_clip={self.token_clip}"
            raise ValueError(f"{clips} exclude each other; set one of them to null.")

    def _check_support(self) -> None:
        if self.support == "full" and self.top_k is not None:
            remedy = "remove it, or choose student_topk or teacher_topk"
            raise ValueError(f"top_k={self.top_k} has no meaning with support='full'; {remedy}.")
        if self.support != "full" and self.top_k is None:
            raise ValueError(f"support={self.support!r} needs top_k, the number of ids to compare (SDPO: 100).")
        if not self.tail and self.support != "student_topk":
            raise ValueError(f"tail=False has no meaning with support={self.support!r}; remove it or use student_topk.")

    def _check_interpolation(self) -> None:
        fraction, strength = self.interpolation_fraction, self.interpolation_strength
        if (fraction > 0) != (strength > 0):
            given = f"interpolation_fraction={fraction} and interpolation_strength={strength}"
            raise ValueError(f"{given} only work together; set both above 0, or both to 0.")
        if fraction > 0 and self.support != "full":
            remedy = "set it and interpolation_strength to 0"
            raise ValueError(f"interpolation_fraction={fraction} needs support='full', not {self.support!r}; {remedy}.")

    def _check_sampled_token(self) -> None:
        if self.divergence != "reverse_kl":
            remedy = "set divergence='reverse_kl'"
            raise ValueError(f"estimator='sampled_token' estimates the reverse KL, not {self.divergence!r}; {remedy}.")
        unread = {"support": self.support != "full", "entry_clip": self.entry_clip, "token_clip": self.token_clip}
        unread |= {"interpolation_fraction": self.interpolation_fraction, "temperature": self.temperature}
        for field, value in unread.items():
            if value:
                given = f"{field}={getattr(self, field)!r}"
                raise ValueError(
                    f"{given} is not read by estimator='sampled_token'; remove it or use estimator='full'."
                )

    @property
    def interpolates(self) -> bool:
        """Whether some tokens' targets are softened (PAINT)."""
        return self.interpolation_fraction > 0

    def settings(self, sampling_temperature: float) -> DivergenceSettings:
        """Return the settings of the per-token divergence for rollouts sampled at a temperature."""
        return DivergenceSettings(
            divergence=self.divergence,
            beta=self.beta,
            temperature=sampling_temperature if self.temperature is None else self.temperature,
            support=self.support,
            top_k=self.top_k,
            tail=self.tail,
            entry_clip=self.entry_clip,
            token_clip=self.token_clip,
        )


@dataclass(frozen=True, config=PART, kw_only=True)
class PolicyGradient:
    """Clipped policy gradient on verified rewards (GRPO)."""

    kind: Literal["policy_gradient"] = "policy_gradient"
    normalize: bool = True
    """Whether a group's advantages are divided by the standard deviation of its rewards (GRPO) or only centred."""
    clip_low: float = Field(default=0.2, ge=0, lt=1)
    """The token ratio is clipped from below at 1 - clip_low."""
    clip_high: float = Field(default=0.28, ge=0, allow_inf_nan=False)
    """The token ratio is clipped from above at 1 + clip_high."""


@dataclass(frozen=True, config=PART, kw_only=True)
class Imitation:
    """Cross-entropy on the reference solution's tokens (SFT)."""

    kind: Literal["imitation"] = "imitation"


@dataclass(frozen=True, config=PART, kw_only=True)
class Reduction:
    """How token losses become one number over the global batch."""

    kind: ReductionName = "sequence_mean"
    """``sequence_mean`` (PAINT, OPSD, SDPO, SC-SDPO) or ``token_mean`` (GRPO, SRPO)."""
    over: DenominatorName = "all"
    """Whether rows without signal count in the denominator: ``all`` (as published) or only ``informative`` rows."""

    @field_validator("kind", "over", mode="before")
    @classmethod
    def _name_the_nearest(cls, value: Any, info: Any) -> Any:
        check_name(info.field_name, value, get_args(ReductionName if info.field_name == "kind" else DenominatorName))
        return value

    def token_weights(
        self, lengths: Sequence[int], row_weights: Sequence[float], informative: Sequence[bool]
    ) -> list[float]:
        """Return each row's weight per token; see :func:`selfdistill.objectives.reductions.token_weights`."""
        return token_weights(lengths, row_weights, informative, reduction=self.kind, over=self.over)
