"""How many tokens a forward pass may hold: what the recipe says, or less once the device has run out of memory.

Halving it changes micro-batches only, and so nothing but rounding. What was found out is kept in the run folder, for a
run that is resumed.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from selfdistill.errors import TrainingError
from selfdistill.training.run_folder import write_json


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether torch failed for want of memory, on a device or on a CPU."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)
    )


@dataclass(slots=True)
class Budget:
    """Positions of one forward pass.

    Args:
        tokens: what the recipe allows.
        path: a JSON file that remembers less; None: it is forgotten.
        tell: is told when it is halved.
    """

    tokens: int
    path: Path | None = None
    tell: Callable[[str], None] = field(default=lambda text: None)

    def __post_init__(self) -> None:
        """Take over what the file remembers, unless the recipe allows even less."""
        if self.path is not None and self.path.exists():
            try:
                known = json.loads(self.path.read_text(encoding="utf-8"))["micro_batch_tokens"]
            except (ValueError, KeyError, TypeError, OSError):
                return  # worth one more failure, not a run
            if isinstance(known, int) and 0 < known < self.tokens:
                self.tokens = known

    def halve(self, longest: int, while_: str) -> None:
        """Allow half as many tokens from now on, after a failure.

        Args:
            longest: positions of the longest row of what failed: with fewer it would stand alone all the same.
            while_: what was being done.

        Raises:
            TrainingError: a row alone is too much.
        """
        if self.tokens <= longest:
            raise TrainingError(
                f"out of memory {while_}: a row of {longest} tokens alone is too much; set "
                "model.gradient_checkpointing=true, lower rollouts.sampling.max_new_tokens, or divide the model "
                "over more processes"
            )
        self.tokens = max(longest, self.tokens // 2)
        if self.path is not None:
            write_json(self.path, {"micro_batch_tokens": self.tokens})
        self.tell(f"out of memory {while_}: going on with train.micro_batch_tokens={self.tokens}, also when resumed")
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
