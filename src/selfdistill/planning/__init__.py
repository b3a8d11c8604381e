"""Will it fit, and how long does a step take: a recipe's memory, tokens and time before anything is trained.

In: a recipe, and the configuration of its model (no weights are needed). Out: parameters, memory by item and by part of
a step, tokens per step, a measurement where the model is at hand, and what to change if it does not fit.
"""

from __future__ import annotations

from selfdistill.planning.advice import Change, advise
from selfdistill.planning.layout import Layout, layout_of
from selfdistill.planning.memory import Item, Memory, memory
from selfdistill.planning.plan import Plan, make_plan
from selfdistill.planning.setup import Setup
from selfdistill.planning.shape import ModelShape, read_shape, shape_of

__all__ = [
    "Change",
    "Item",
    "Layout",
    "Memory",
    "ModelShape",
    "Plan",
    "Setup",
    "advise",
    "layout_of",
    "make_plan",
    "memory",
    "read_shape",
    "shape_of",
]
