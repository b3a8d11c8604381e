"""A key-value cache whose rows come and go: the memory of a batch in which finished responses make room for new ones.

All rows end at the same column, so that one step writes one column; a shorter row starts further right, and what lies
before its start is zero and masked. Columns are reserved ahead: a step copies what it adds, not the whole cache. In:
keys and values, layer by layer, as a transformers model hands them over. Out: views of what has been stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

States = Float[Tensor, "rows heads columns size"]


def attention_windows(config: PreTrainedConfig) -> list[int | None] | None:
    """Return each layer's sliding window (None: attends to everything); None for a model with any other kind of cache.

    Recurrent states, chunked attention and layers that share a cache are other kinds.
    """
    layers = DynamicCache(config=config).layers
    plain = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
    chunked = getattr(config, "attention_chunk_size", None) is not None
    if not plain or chunked or len(layers) != config.num_hidden_layers:
        return None
    return [getattr(layer, "sliding_window", None) for layer in layers]


class RowLayer(CacheLayerMixin):
    """Keys and values of one layer. The buffers may have more rows and columns than are in use."""

    keys: Any
    values: Any

    def __init__(self, window: int | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.window = window
        self.is_sliding = window is not None
        self.rows = 0
        self.columns = 0

    def update(self, key_states: States, value_states: States, *args: Any, **kwargs: Any) -> tuple[States, States]:
        """Store new columns and return what their queries may see: all columns, or those within the window."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        count = key_states.shape[-2]
        _, first = self.get_mask_sizes(count)
        end = self.columns + count
        self.keys[: self.rows, :, self.columns : end] = key_states
        self.values[: self.rows, :, self.columns : end] = value_states
        self.columns = end
        return self.keys[: self.rows, :, first:end], self.values[: self.rows, :, first:end]

    def lazy_initialization(self, key_states: States, value_states: States) -> None:
        """Make buffers of exactly the size of the first states: prompts are moved to where there is room afterwards."""
        self.rows = len(key_states)
        self.keys, self.values = torch.empty_like(key_states), torch.empty_like(value_states)
        self.is_initialized = True

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many columns the next queries see, and which is the first."""
        first = 0 if self.window is None else max(0, self.columns - self.window + 1)
        return self.columns + query_length - first, first

    def get_seq_length(self) -> int:
        """Return the number of columns that are stored."""
        return self.columns

    def get_max_length(self) -> int:
        """Return -1: there is no limit."""
        return -1

    def move(self, source: Tensor, target: Tensor, rows: int) -> None:
        """Copy rows over others, and keep the first ``rows``."""
        for buffer in (self.keys, self.values):
            buffer[target, :, : self.columns] = buffer[source, :, : self.columns]
        self.rows = rows


class RowCache(Cache):
    """A model's cache of rows that all end at the same column.

    Args:
        windows: of the layers, from :func:`attention_windows`.
    """

    def __init__(self, windows: Sequence[int | None]) -> None:
        self.row_layers = [RowLayer(window) for window in windows]
        super().__init__(layers=list(self.row_layers))

    @classmethod
    def gathered(cls, parts: Sequence[tuple[RowCache, Tensor]], width: int, reserve: int) -> RowCache:
        """Return a cache with the chosen rows of others, cut or filled up on the left to ``width``.

        Args:
            parts: caches with the indices of the rows to take; a row may be taken several times. They are emptied layer
                by layer, so that no more than one layer is there twice.
            width: columns of the longest of these rows.
            reserve: columns that there is to be room for.
        """
        cache = cls([layer.window for layer in parts[0][0].row_layers])
        for number, layer in enumerate(cache.row_layers):
            sources = [(part.row_layers[number], rows) for part, rows in parts]
            layer.keys = _gather([(one.keys, one.columns, rows) for one, rows in sources], width, reserve)
            layer.values = _gather([(one.values, one.columns, rows) for one, rows in sources], width, reserve)
            layer.rows, layer.columns, layer.is_initialized = len(layer.keys), width, True
            for one, _ in sources:
                one.keys = one.values = None
        return cache

    @property
    def width(self) -> int:
        """Columns in use."""
        return int(self.row_layers[0].columns)

    @property
    def room(self) -> int:
        """Columns in reserve."""
        return int(self.row_layers[0].keys.shape[-2]) - self.width

    def keep(self, order: Sequence[int]) -> None:
        """Keep these rows, in this order, in place. Rows that stay where they are cost nothing."""
        moves = [(old, new) for new, old in enumerate(order) if old != new]
        device = self.row_layers[0].keys.device
        source = torch.tensor([old for old, _ in moves], dtype=torch.long, device=device)
        target = torch.tensor([new for _, new in moves], dtype=torch.long, device=device)
        for layer in self.row_layers:
            layer.move(source, target, len(order))


def _gather(sources: Sequence[tuple[States, int, Tensor]], width: int, reserve: int) -> States:
    """Return the chosen rows of buffers (with their columns in use), aligned at column ``width``."""
    like = sources[0][0]
    total = sum(len(rows) for _, _, rows in sources)
    gathered = like.new_empty((total, like.shape[1], width + reserve, like.shape[3]))
    done = 0
    for buffer, columns, rows in sources:
        taken, end = min(columns, width), done + len(rows)
        gathered[done:end, :, : width - taken] = 0  # masked, but 0 x NaN would not be 0
        gathered[done:end, :, width - taken : width] = buffer[:, :, columns - taken : columns][rows]
        done = end
    return gathered
