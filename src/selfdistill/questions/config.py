"""The ``data:`` section of a recipe."""

from __future__ import annotations

from pydantic import BaseModel, Field, field_validator, model_validator

from selfdistill.questions.columns import ColumnMapping
from selfdistill.questions.loading import Wording
from selfdistill.validation import SECTION


class DataConfig(BaseModel):
    """Which questions a run trains on and is evaluated on, and who checks the answers."""

    model_config = SECTION

    task: str = "arithmetic"
    """A name of :func:`selfdistill.questions.task_names`: arithmetic and sums (generated), maths, custom."""
    train: str | None = None
    """File, folder or hub id (``owner/name[:configuration]``) of the training questions; null for arithmetic."""
    eval: str | None = None
    """The same for the evaluation questions; null: hold out ``eval_questions`` of the training questions."""
    train_split: str = "train"
    """Split of a hub data set or folder."""
    eval_split: str = "test"
    """Split of a hub data set or folder."""
    train_limit: int | None = Field(None, ge=1)
    """Use the first n training questions (null: all; arithmetic generates 2048)."""
    eval_limit: int | None = Field(None, ge=1)
    """Use the first n evaluation questions (null: all; arithmetic generates 128)."""
    eval_questions: int | None = Field(None, ge=1)
    """Without ``eval``: how many training questions are held out, drawn with ``seed`` after ``train_limit``."""
    columns: ColumnMapping = Field(default_factory=ColumnMapping)
    """Which column holds what, in the training and the evaluation file."""
    eval_columns: ColumnMapping | None = None
    """The same for the evaluation file, if it differs."""
    prompt_template: str = "{prompt}"
    r"""The last user turn, e.g. ``{prompt}\n\nPut your final answer in \boxed{}.``"""
    system: str | None = None
    """A system message for every question."""
    strip_calculator_marks: bool = False
    """Remove GSM8K's ``<<48/2=24>>`` from solutions."""
    reward: str | None = None
    """Task custom: the reward function, ``file.py:function`` or ``package.module:function``."""
    success_threshold: float = Field(0.5, allow_inf_nan=False)
    """Task custom: smallest reward that counts as a success (SDPO, SC-SDPO: 0.5)."""
    seed: int = Field(0, ge=0)
    """Of the generated questions and of the hold-out; independent of the run's seed, so that runs share their data."""

    @field_validator("prompt_template")
    @classmethod
    def _has_placeholder(cls, template: str) -> str:
        if "{prompt}" not in template:
            raise ValueError(f"data.prompt_template={template!r} lacks {{prompt}}; write it where the question belongs")
        return template

    @model_validator(mode="after")
    def _consistent(self) -> DataConfig:
        if self.eval is not None and self.eval_questions is not None:
            raise ValueError(
                f"data.eval={self.eval!r} and data.eval_questions={self.eval_questions} contradict each other: "
                "a hold-out is only drawn without an evaluation file; remove one of them"
            )
        if self.eval is None and self.eval_columns is not None:
            raise ValueError("data.eval_columns is set without data.eval; remove it or name the evaluation file")
        if self.reward is None and self.success_threshold != 0.5:
            raise ValueError(
                f"data.success_threshold={self.success_threshold} has no effect without data.reward; "
                "remove it or name a reward function"
            )
        return self

    @property
    def wording(self) -> Wording:
        """What is put around the text of a row."""
        return Wording(self.prompt_template, self.system, self.strip_calculator_marks)
