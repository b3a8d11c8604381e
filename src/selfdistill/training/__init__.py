"""Training: recipe, loop, optimiser, checkpoints, run folder, comparison of runs, progress display."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfdistill.training.recipe import Recipe, load_recipe, parse_recipe
    from selfdistill.training.run import RunResult, train

_HOMES = {"Recipe": "recipe", "RunResult": "run", "load_recipe": "recipe", "parse_recipe": "recipe", "train": "run"}

__all__ = ["Recipe", "RunResult", "load_recipe", "parse_recipe", "train"]


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is asked for (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
