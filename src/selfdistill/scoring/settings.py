"""How rows are put through the model: the settings that the student's and the teacher's pass share."""

from __future__ import annotations

from dataclasses import dataclass

from selfdistill.errors import RecipeError


@dataclass(frozen=True, slots=True)
class Forwarding:
    """How many tokens a forward pass holds, and which work it spares."""

    token_budget: int
    """Positions of one forward pass: rows times the longest row, or the real tokens if ``padding_free``."""
    pad_id: int = 0
    """Any valid id; padded positions are masked."""
    reuse_prefix: bool = True
    """Compute a prompt that several rows share once. With gradient (the student's pass) only if rows are padded, if
    nothing is dropped at random or checkpointed, and if it spares more tokens than the additional passes cost."""
    padding_free: bool = False
    """Concatenate the rows of a micro-batch instead of padding them to the longest."""
    pass_tokens: int = 256
    """What one more forward pass costs whatever its size, in tokens: rows are kept apart if that spares more padding.
    Measured: on a processor any value up to 256 is as good as another."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.token_budget < 1:
            raise RecipeError(f"train.micro_batch_tokens is {self.token_budget}; it must be at least 1.")
        if self.pass_tokens < 0:
            raise RecipeError(f"pass_tokens is {self.pass_tokens}; it must be at least 0.")
        if self.pad_id < 0:
            raise RecipeError(f"pad_id is {self.pad_id}; name an id of the model's vocabulary, such as 0.")
