"""The recipe's sections about optimisation, scoring and output."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class TrainConfig(BaseModel):
    """Steps, optimiser, schedule, evaluation and checkpoints."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(100, ge=1)
    """Batches of questions."""
    questions_per_step: int = Field(32, ge=1)
    updates_per_batch: int = Field(1, ge=1)
    """Optimiser steps per batch of rollouts; the papers take one."""
    learning_rate: float = Field(1e-5, gt=0)
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = Field(0, ge=0)
    """Linear warm-up, in steps."""
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(0.0, ge=0)
    grad_clip: float | None = Field(1.0, gt=0)
    """Largest norm of the gradient; null: no clipping."""
    seed: int = Field(0, ge=0)
    """Everything random follows from it."""
    evaluate_every: int | None = Field(None, ge=1)
    """Steps between evaluations; null: only after the last step."""
    evaluate_first: bool = True
    """Evaluate before the first step too."""
    save_every: int | None = Field(None, ge=1)
    """Steps between checkpoints; null: only after the last step or on interruption."""
    keep_checkpoints: int = Field(2, ge=1)
    max_bad_steps: int = Field(5, ge=1)
    """So many steps in a row with a non-finite loss or gradient end the run."""
    micro_batch_tokens: int = Field(16_384, ge=1)
    """Positions, padding included, of one forward pass."""
    max_teacher_prompt_tokens: int | None = Field(None, ge=1)
    """Longer privileged prompts have their privileged text shortened; null: what the model's context leaves beside a full response."""


class OutputConfig(BaseModel):
    """The run folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    folder: str | None = None
    """Run folder; null: ``runs/<recipe name>``."""
    save_rollouts: Literal["none", "sampled", "all"] = "sampled"
    """``sampled``: the first two groups of every step."""
    save_model: bool = True
    """Write ``final/`` for transformers (``from_pretrained``) at the end."""
