"""Whose weights the self-teacher has: the settings, as parts of a method."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from selfdistill.validation import PART


@dataclass(frozen=True, kw_only=True, config=PART)
class Initial:
    """The student's weights before training: adapters off under LoRA, else a frozen copy (PAINT, OPSD)."""

    kind: Literal["initial"] = "initial"


@dataclass(frozen=True, kw_only=True, config=PART)
class MovingAverage:
    """Moving average of the student: teacher <- (1 - rate) teacher + rate student, kept in float32 (SDPO)."""

    kind: Literal["moving_average"] = "moving_average"
    rate: float = Field(default=0.05, gt=0, le=1)
    """Update rate u; the decay is 1 - u."""
    every: Literal["batch", "step"] = "batch"
    """Update once per rollout batch (SDPO) or after every optimiser step."""


@dataclass(frozen=True, kw_only=True, config=PART)
class Live:
    """The student's current weights, as a constant. Known to diverge when unregularised (METHODS section 10)."""

    kind: Literal["live"] = "live"


@dataclass(frozen=True, kw_only=True, config=PART)
class TrustRegion:
    """Logits (1 - rate) z_initial + rate z_student, both on the privileged prompt (SDPO)."""

    kind: Literal["trust_region"] = "trust_region"
    rate: float = Field(default=0.05, ge=0, le=1)
    """Share u of the current student."""


@dataclass(frozen=True, kw_only=True, config=PART)
class NoTeacher:
    """No teacher: policy-gradient and supervised baselines."""

    kind: Literal["none"] = "none"


Teacher = Annotated[Initial | MovingAverage | Live | TrustRegion | NoTeacher, Field(discriminator="kind")]
