"""The recipe's section about several processes: how weights, gradients, optimizer and teacher are divided over them.

How many processes there are is no setting: whoever starts them (``--nproc``, torchrun, Ray) decides, and a run may be
resumed on another number. Nothing here changes what is computed beyond float rounding.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from selfdistill.validation import SECTION


class ParallelConfig(BaseModel):
    """Read only when there are several processes."""

    model_config = SECTION

    shard: int | None = Field(default=None, ge=1)
    """Processes that one replica of the trained state is divided over; null: those of a node. The others hold replicas
    (1: every process holds all of it, which is plain data parallelism)."""
    reshard: Literal["step", "layer"] = "step"
    """``step``: while a step is computed, all weights (in the model's dtype) and gradients stand whole on every
    process, and nothing is sent in between; masters, optimizer and teacher are divided. ``layer``: only one layer's
    weights stand whole at a time, for models that do not fit otherwise."""
    cpu_offload: bool = False
    """What is divided (masters, gradients, optimizer) lives in CPU memory, and is brought to the device when used."""
    groups: Literal["whole", "split"] = "whole"
    """Whether the rollouts of one question stay on one process, or are divided too (for few questions per step)."""
    timeout_seconds: float = Field(default=1800.0, gt=0)
    """Longest that a process waits for the others. After it, each writes where it is, and the run ends."""
