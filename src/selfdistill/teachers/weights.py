"""A teacher is a set of weights, not a second model: inside a block, they stand in place of the student's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

Weights = dict[str, Tensor]


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that training changes, by name; everything else is shared with the teacher."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@contextmanager
def swapped(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Give ``model`` the named ``weights`` (cast to its dtype) inside the block, and its own back, whatever happens.

    Storages are exchanged, nothing is copied when dtypes agree. Gradients must not be taken inside the block.
    """
    parameters = dict(model.named_parameters())
    if any(isinstance(value, DTensor) for value in weights.values()):
        with _exchanged([(parameters[name], value) for name, value in weights.items()]):
            yield
        return
    own = {name: parameters[name].data for name in weights}
    try:
        for name, value in weights.items():
            parameters[name].data = value.to(own[name].dtype)
        yield
    finally:
        for name, value in own.items():
            parameters[name].data = value


@contextmanager
def _exchanged(pairs: Sequence[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Exchange values that are divided over processes, in place: FSDP remembers where its own lie."""

    @torch.no_grad()
    def exchange() -> None:
        for parameter, value in pairs:
            mine, theirs = local(parameter), local(value)
            copy = mine.clone()
            mine.copy_(theirs)
            theirs.copy_(copy)

    exchange()
    try:
        yield
    finally:
        exchange()


def local(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor that is divided over processes, or the tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def adapters_off(model: nn.Module) -> AbstractContextManager[None]:
    """Switch LoRA adapters off inside the block, leaving the initial weights."""
    context: AbstractContextManager[None] = model.disable_adapter()  # type: ignore[operator]
    return context


@torch.no_grad()
def snapshot(model: nn.Module, at_least: torch.dtype | None = None) -> Weights:
    """Return copies of the trainable parameters, none in less precision than ``at_least`` if given."""

    def copy(parameter: Tensor) -> Tensor:
        dtype = parameter.dtype if at_least is None else torch.promote_types(parameter.dtype, at_least)
        return parameter.detach().to(dtype, copy=True)

    return {name: copy(parameter) for name, parameter in trainable(model).items()}
