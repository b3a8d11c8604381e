"""What memory and tokens depend on: a recipe, the shape of its model, the lengths of its texts, and the device.

In: a recipe. Out: a :class:`Setup`, numbers alone, so that a change of setting is one :func:`dataclasses.replace`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from selfdistill.methods.sources import OwnRollouts
from selfdistill.models.loading import LoraConfig
from selfdistill.planning.layout import Layout
from selfdistill.planning.lengths import Lengths
from selfdistill.planning.shape import ModelShape
from selfdistill.training.recipe import Recipe

BYTES = {"float32": 4, "bfloat16": 2}
FULL = 4
"""Bytes of a float32."""

DeviceType = Literal["cpu", "cuda"]


@dataclass(frozen=True, slots=True)
class Setup:
    """A run, as far as its memory and its tokens per step are concerned."""

    shape: ModelShape
    lengths: Lengths
    layout: Layout
    device: DeviceType
    dtype: str
    """Of the weights."""
    lora: LoraConfig | None
    gradient_checkpointing: bool
    attention: str
    teacher: str
    """The kind of the method's teacher; ``none`` without one."""
    head: str
    reuse_prefix: bool
    micro_batch_tokens: int
    questions: int
    """Per step, of all processes."""
    group_size: int
    updates_per_batch: int
    samples: bool
    """Whether responses are drawn at all (not for SFT)."""
    engine: str
    engine_share: float
    """Of the device's memory, for an engine in this process."""
    batch_tokens: int
    max_rows: int
    evaluation_tokens: int | None
    """Longest response of an evaluation; None: nothing is evaluated."""
    evaluation_samples: int

    @property
    def width(self) -> int:
        """Bytes of a weight."""
        return BYTES[self.dtype]

    @property
    def adapters(self) -> int:
        """Parameters of LoRA adapters."""
        return self.shape.adapter_parameters(self.lora)

    @property
    def parameters(self) -> int:
        """All parameters, adapters included."""
        return self.shape.parameters + self.adapters

    @property
    def trained(self) -> int:
        """Parameters that training changes."""
        return self.adapters if self.lora else self.shape.parameters

    @property
    def rows(self) -> int:
        """Responses of a step, of all processes."""
        return self.questions * self.group_size

    @property
    def own_questions(self) -> int:
        """Questions of one process, rounded up."""
        return math.ceil(self.questions / self.layout.processes)

    @property
    def update_rows(self) -> int:
        """Responses of one process in one optimiser step."""
        return math.ceil(self.own_questions / self.updates_per_batch) * self.group_size

    @property
    def student_row(self) -> int:
        """Positions of the longest row that the student is scored on: the last token is predicted, never read."""
        return self.lengths.prompt + self.lengths.response - 1

    @property
    def teacher_row(self) -> int:
        """Positions of the longest row that the teacher is scored on."""
        return self.lengths.teacher_prompt + self.lengths.response - 1

    @property
    def teacher_passes(self) -> int:
        """Times that the teacher reads a row: twice under a trust region, whose logits mix two models'."""
        return {"none": 0, "trust_region": 2}.get(self.teacher, 1)

    @property
    def micro_batch(self) -> int:
        """Positions of the largest micro-batch with gradient. A row longer than the budget has one of its own."""
        return min(max(self.micro_batch_tokens, self.student_row), self.update_rows * self.student_row)

    @property
    def micro_batch_responses(self) -> int:
        """Response tokens of the largest micro-batch."""
        return min(self.micro_batch, self.update_rows * self.lengths.response)


def setup_of(recipe: Recipe, shape: ModelShape, lengths: Lengths, layout: Layout, device: DeviceType) -> Setup:
    """Return what a recipe's memory and tokens depend on."""
    model, rollouts, train, method = recipe.model, recipe.rollouts, recipe.train, recipe.method
    return Setup(
        shape=shape,
        lengths=lengths,
        layout=layout,
        device=device,
        dtype=model.dtype,
        lora=model.lora,
        gradient_checkpointing=model.gradient_checkpointing,
        attention=model.attention,
        teacher=method.teacher.kind,
        head=recipe.scoring.head,
        reuse_prefix=recipe.scoring.reuse_prefix,
        micro_batch_tokens=train.micro_batch_tokens,
        questions=train.questions_per_step,
        group_size=method.source.group_size,
        updates_per_batch=train.updates_per_batch,
        samples=isinstance(method.source, OwnRollouts),
        engine=rollouts.engine,
        engine_share=rollouts.vllm.memory,
        batch_tokens=rollouts.batch_tokens,
        max_rows=rollouts.max_rows,
        evaluation_tokens=recipe.evaluation.sampling.max_new_tokens if lengths.evaluates else None,
        evaluation_samples=recipe.evaluation.samples,
    )
