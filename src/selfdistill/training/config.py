"""The recipe's sections about optimisation, scoring and output."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from selfdistill.validation import SECTION

Decay = Annotated[float, Field(ge=0, lt=1)]
"""Share of a moving average that is kept."""
TrackerName = Literal["tensorboard", "wandb", "trackio"]


class TrainConfig(BaseModel):
    """Steps, optimiser, schedule, evaluation and checkpoints."""

    model_config = SECTION

    steps: int = Field(default=100, ge=1)
    """Batches of questions; with ``rollout_tokens``, at most."""
    rollout_tokens: int | None = Field(default=None, ge=1)
    """The run ends with the step that brings the tokens sampled for training (PACED's pass before it included,
    evaluations not) to this number: for comparisons at equal rollout tokens; null: ``steps`` alone decides."""
    questions_per_step: int = Field(default=32, ge=1)
    updates_per_batch: int = Field(default=1, ge=1)
    """Optimiser steps per batch of rollouts; the papers take one."""
    learning_rate: float = Field(default=1e-5, gt=0, allow_inf_nan=False)
    schedule: Literal["constant", "cosine"] = "constant"
    """After the warm-up; ``cosine`` falls to zero after the last step."""
    warmup_steps: int = Field(default=0, ge=0)
    """Linear warm-up, in steps."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """AdamW's decay of the gradient's mean and of its square."""
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    grad_clip: float | None = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Largest norm of the gradient; null: no clipping."""
    seed: int = Field(default=0, ge=0)
    """Everything random follows from it."""
    evaluate_every: int | None = Field(default=None, ge=1)
    """Steps between evaluations; null: only after the last step."""
    evaluate_first: bool = True
    """Evaluate before the first step too."""
    save_every: int | None = Field(default=20, ge=1)
    """Steps between checkpoints; null: only after the last step or on interruption."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """The newest so many stay on disk."""
    keep_best: bool = True
    """The checkpoint with the best evaluation (avg@k) stays as well; it is written then, if it was not."""
    save_asynchronously: bool = True
    """Training goes on while a checkpoint is written: it waits for a copy in CPU memory only."""
    max_bad_steps: int = Field(default=5, ge=1)
    """So many steps in a row with a non-finite loss or gradient end the run."""
    micro_batch_tokens: int = Field(default=16_384, ge=1)
    """Positions, padding included, of one forward pass."""
    max_teacher_prompt_tokens: int | None = Field(default=None, ge=1)
    """Longer privileged prompts have their privileged text shortened; null: what the model's context leaves beside a
    full response."""

    @model_validator(mode="after")
    def _rate_is_known(self) -> TrainConfig:
        if self.rollout_tokens is not None and self.schedule == "cosine":
            raise ValueError(
                f"train.rollout_tokens is {self.rollout_tokens}, but with train.schedule=cosine the number of steps "
                "decides the learning rate of each; use schedule=constant, or train.steps alone"
            )
        return self

    def ends_after(self, steps: int, rollout_tokens: int) -> bool:
        """Say whether a run ends once it has done so many steps on so many sampled tokens."""
        return steps >= self.steps or (self.rollout_tokens is not None and rollout_tokens >= self.rollout_tokens)


class ScoringConfig(BaseModel):
    """How hidden states and losses are computed. No setting here changes what is computed beyond float rounding."""

    model_config = SECTION

    head: Literal["fused", "readable"] = "fused"
    """``fused`` makes the gradient while logits exist, once; ``readable`` is the plain reference, by autograd."""
    reuse_prefix: bool = True
    """A prompt that siblings share is read once, and its keys and values serve all of them: the teacher's privileged
    prompt, and the question for the student where it pays (not with ``padding_free``, gradient checkpointing or
    dropout)."""
    padding_free: bool = False
    """Rows of a micro-batch are concatenated instead of padded; meant for attention that knows where rows end
    (``model.attention: flash_attention_2``)."""


class OutputConfig(BaseModel):
    """The run folder."""

    model_config = SECTION

    folder: str | None = Field(default=None, min_length=1)
    """Run folder; null: ``runs/<recipe name>``."""
    save_rollouts: Literal["none", "sampled", "all"] = "sampled"
    """``sampled``: the first two groups of every step."""
    save_model: bool = True
    """Write ``final/`` for transformers (``from_pretrained``) at the end."""
    trackers: tuple[TrackerName, ...] = ()
    """Where metrics are shown besides metrics.jsonl, as a list: ``tensorboard`` (in the run folder), ``wandb``,
    ``trackio``; needs ``pip install selfdistill[trackers]``."""

    @field_validator("trackers", mode="before")
    @classmethod
    def _one_is_a_list_too(cls, trackers: Any) -> Any:
        return (trackers,) if isinstance(trackers, str) else trackers
