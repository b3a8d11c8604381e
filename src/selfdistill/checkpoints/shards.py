"""One process's part of a tensor, whether the tensor is divided over processes (a DTensor) or not."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


class Description(NamedTuple):
    """What is known of a tensor without reading it."""

    size: tuple[int, ...]
    """Of the whole tensor."""
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Shard:
    """One process's part of a tensor."""

    local: Tensor
    """The part; empty where there are more processes than rows."""
    size: tuple[int, ...]
    """Of the whole tensor."""
    offsets: tuple[int, ...]
    """Where in it the part begins."""

    def with_dtype(self, dtype: torch.dtype) -> Shard:
        """Return a part of the same shape of which only the shape means anything."""
        return replace(self, local=torch.empty_like(self.local, dtype=dtype, device="meta"))


def shard_of(tensor: Tensor) -> Shard:
    """Return this process's part of ``tensor``: a view, so that writing into it changes the tensor."""
    detached = tensor.detach()
    if isinstance(detached, DTensor):
        (chunk,) = detached.__create_chunk_list__()
        return Shard(detached.to_local(), tuple(detached.shape), tuple(chunk.offsets))
    return Shard(detached, tuple(detached.shape), (0,) * detached.dim())


def empty_shard(like: Shard) -> Shard:
    """Return the same part of a tensor of the same shape in CPU memory, with nothing in it yet."""
    return replace(like, local=torch.empty(like.local.shape, dtype=like.local.dtype))


class Staging:
    """Copies in CPU memory, so that training goes on while they are written. The memory is kept for the next ones."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def copy(self, shards: Mapping[str, Shard]) -> dict[str, Shard]:
        """Return copies of ``shards``, which are of use until the next call."""
        buffers = {name: self._buffer(name, shard.local) for name, shard in shards.items()}
        self._buffers = buffers
        devices = set()
        for name, shard in shards.items():
            # Page-locked memory lets a GPU copy without waiting for each tensor; one wait at the end is for all.
            buffers[name].copy_(shard.local, non_blocking=shard.local.is_cuda)
            devices.add(shard.local.device)
        for device in devices:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
        return {name: replace(shard, local=buffers[name]) for name, shard in shards.items()}

    def _buffer(self, name: str, tensor: Tensor) -> Tensor:
        old = self._buffers.get(name)
        if old is not None and old.shape == tensor.shape and old.dtype == tensor.dtype:
            return old
        if tensor.is_cuda:
            with suppress(RuntimeError):  # the system allows no more page-locked memory
                return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return torch.empty(tensor.shape, dtype=tensor.dtype)
