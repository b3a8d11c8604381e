"""The recipe's ``rollouts`` section: how the student answers during training."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field, field_validator

from selfdistill.rollouts.sampler import Sampling
from selfdistill.validation import SECTION


class RolloutsConfig(BaseModel):
    """How rollouts are sampled."""

    model_config = SECTION

    engine: Literal["transformers"] = "transformers"
    """Which sampler."""
    sampling: Sampling = Sampling(temperature=1.0, max_new_tokens=1024)
    """Temperature, top-p, top-k and the budget of a response."""
    max_prompt_tokens: int | None = Field(None, ge=1)
    """A longer prompt is an error that names the question; null: whatever the model's context leaves."""
    thinking: bool | None = None
    """Passed to the chat template as ``enable_thinking``; null: the template's own default."""
    batch_tokens: int = Field(65_536, ge=1)
    """Bounds the cache: responses generated side by side x (prompt + new tokens)."""
    max_rows: int = Field(256, ge=1)
    """Most responses generated side by side."""

    @field_validator("sampling")
    @classmethod
    def _random(cls, sampling: Sampling) -> Sampling:
        if sampling.temperature == 0:
            raise ValueError("temperature 0 draws the same response every time; training needs a temperature above 0")
        return sampling
