"""The floor: the matrix products alone, which any exact loss has to make.

Frozen head: student logits, teacher logits, gradient of the hidden states. A trained head adds the gradient of the
weight; a policy gradient has no teacher. In tiles of rows [N, V] is never held; the products as they are, in one go,
hold it. Both ways are timed, and the faster is the floor.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.head_inputs import HeadInputs

TILE_ELEMENTS = 2**24
"""Elements of a tile of logits: 64 MiB in float32."""


def tiled_products(inputs: HeadInputs, *, teacher: bool, trained: bool) -> tuple[Tensor, ...]:
    """Make the products tile by tile of rows, logits of both sides in one product."""
    rows = max(1, TILE_ELEMENTS // len(inputs.weight))
    return _products(inputs, rows, teacher=teacher, trained=trained)


def whole_products(inputs: HeadInputs, *, teacher: bool, trained: bool) -> tuple[Tensor, ...]:
    """Make each product once, over all rows."""
    return _products(inputs, len(inputs.student), teacher=teacher, trained=trained)


@torch.no_grad()
def _products(inputs: HeadInputs, rows: int, *, teacher: bool, trained: bool) -> tuple[Tensor, ...]:
    student, weight = inputs.student, inputs.weight
    rows = min(rows, len(student))
    sides = 2 if teacher else 1
    logits = torch.empty(sides * rows, len(weight), device=weight.device, dtype=weight.dtype)
    gradient = torch.empty_like(student)
    weight_gradient = torch.zeros_like(weight) if trained else None
    for start in range(0, len(student), rows):
        stop = min(start + rows, len(student))
        own = student[start:stop]
        both = torch.cat([own, inputs.teacher[start:stop]]) if teacher else own
        tile = logits[: len(both)]
        torch.mm(both, weight.T, out=tile)
        tile = tile[: stop - start]
        torch.mm(tile, weight, out=gradient[start:stop])
        if weight_gradient is not None:
            weight_gradient.addmm_(tile.T, own)
    return (gradient,) if weight_gradient is None else (gradient, weight_gradient)
