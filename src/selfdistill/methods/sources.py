"""Where the tokens come from that a method learns from."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from selfdistill.validation import PART


@dataclass(frozen=True, kw_only=True, config=PART)
class OwnRollouts:
    """The student's own rollouts, a group of G per question."""

    requires: ClassVar[tuple[str, ...]] = ()
    kind: Literal["rollouts"] = "rollouts"
    group_size: int = Field(default=8, ge=1)
    """G, rollouts per question."""


@dataclass(frozen=True, kw_only=True, config=PART)
class ReferenceSolutions:
    """The reference solutions, in the chat format; nothing is sampled (SFT)."""

    requires: ClassVar[tuple[str, ...]] = ("solution",)
    kind: Literal["reference_solutions"] = "reference_solutions"
    group_size: Literal[1] = 1
    """One row per question."""


Source = Annotated[OwnRollouts | ReferenceSolutions, Field(discriminator="kind")]
