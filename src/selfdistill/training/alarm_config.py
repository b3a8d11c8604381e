"""The recipe's section about warnings: what counts as one, how often it is said, and which of them end the run."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, Field, field_validator

from selfdistill.validation import SECTION

RuleName = Literal[
    "collapse", "truncation", "leak_rate", "teacher", "informative_share", "captured_mass", "mismatch"
]  # fmt: skip
RULES: tuple[RuleName, ...] = get_args(RuleName)
"""Names of all warnings."""
Share = Annotated[float, Field(ge=0, le=1)]


class WarningsConfig(BaseModel):
    """Signs that training goes wrong: from when each is worth a warning. No setting here changes what is computed."""

    model_config = SECTION

    window: int = Field(default=10, ge=1)
    """Steps whose mean is looked at; the first so many are what later ones are compared with."""
    repeat_after: int = Field(default=10, ge=1)
    """A warning is not repeated for so many steps, and then only if it has become worse, or had gone."""
    stop_on: tuple[RuleName, ...] = ()
    """Warnings that end the run, as a list: ``collapse``, ``truncation``, ``leak_rate``, ``teacher``,
    ``informative_share``, ``captured_mass``, ``mismatch``. The best checkpoint is kept (``train.keep_best``)."""
    patience: int = Field(default=3, ge=1)
    """``stop_on`` ends the run once the same has been found so many times in a row: at steps, or at evaluations."""
    pass_rate_share: Share = 0.5
    """``collapse``: the pass rate is below this share of that of the best window."""
    pass_rate_drop: Share = 0.1
    """``collapse``: a fall of the pass rate counts only from this on, and from five standard errors."""
    accuracy_drop: Share = 0.05
    """``collapse``: avg@k is below the best evaluation's by more than this, and than half its interval."""
    length_share: Share = 0.3
    """``collapse``: responses are shorter than this share of the first window's."""
    entropy_share: Share = 0.1
    """``collapse``: the student's entropy is below this share of the first window's."""
    entropy_floor: float = Field(default=0.02, ge=0)
    """``collapse``: a low entropy counts only below so many nats per token."""
    truncated_share: Share = 0.5
    """``truncation``: more than this share of the responses is cut off."""
    truncated_rise: Share = 0.1
    """``truncation``: it counts only if it is so much more than in the first window."""
    leak_rise: Share = 0.05
    """``leak_rate``: it is above the first window's by more than this, and above twice the first window's."""
    informative_share: Share = 0.05
    """``informative_share``: fewer than this share of the questions are neither always right nor always wrong."""
    captured_mass: Share = 0.9
    """``captured_mass``: less than this share of the student's probability lies on the ids that are compared."""
    captured_mass_drop: Share = 0.05
    """``captured_mass``: or it is less than in the first window by more than this."""

    @field_validator("stop_on", mode="before")
    @classmethod
    def _one_is_a_list_too(cls, names: Any) -> Any:
        return (names,) if isinstance(names, str) else names
