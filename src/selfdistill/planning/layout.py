"""How the state of a run is divided over processes, as far as memory depends on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from selfdistill.training.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Layout:
    """Processes (one per GPU), and over how many of them one replica of the trained state is divided."""

    processes: int = 1
    shard: int = 1
    """1: every process holds all of it."""
    reshard: Literal["step", "layer"] = "step"
    """``step``: whole weights and gradients stand on every process during a step; ``layer``: one layer's at a time."""
    cpu_offload: bool = False
    """What is divided lives in CPU memory."""

    @property
    def is_parallel(self) -> bool:
        """Whether there are several processes: then the masters are float32, and are divided."""
        return self.processes > 1


def layout_of(recipe: Recipe, processes: int) -> Layout:
    """Return the layout of ``processes`` on one node under the recipe's ``parallel`` section.

    The section is read only when there are several processes.
    """
    section = getattr(recipe, "parallel", None)
    if processes == 1:
        return Layout()
    shard = getattr(section, "shard", None) or processes
    return Layout(
        processes=processes,
        shard=min(shard, processes),
        reshard=getattr(section, "reshard", "step"),
        cpu_offload=getattr(section, "cpu_offload", False),
    )
