"""Keys and values of shared prompts: recorded in one pass, placed before the responses of many rows in another.

Two layers for the cache of transformers. :class:`Recorder` keeps what the prompts' pass computes. :class:`Shared` hands
every attention layer prompt and response joined, and forgets them as soon as the layer has run: without gradient, no
more than one layer ever holds a copy per row. Neither detaches anything, so gradients find their way to the prompts.

Prompts of different lengths are aligned on the right, next to the responses. A distance in the cache is then a distance
in the row, which is what a sliding window is measured by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from selfdistill.scoring.architecture import Window


@dataclass(frozen=True, slots=True, eq=False)
class LayerPrefix:
    """What one attention layer needs of D prompts, aligned on the right."""

    keys: Float[Tensor, "D heads kept K"]
    values: Float[Tensor, "D heads kept V"]
    length: int
    """Length of the longest prompt; a sliding window keeps only its end."""
    is_sliding: bool


class _Layer(CacheLayerMixin):
    """What both layers have in common: they never grow."""

    def __init__(self, is_sliding: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.is_sliding = is_sliding

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing has to be prepared."""

    def get_max_length(self) -> int:
        """Return transformers' word for no limit."""
        return -1


class Recorder(_Layer):
    """Keep the keys and values of the one pass that it sees."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Remember them and hand them on."""
        self.keys, self.values = key_states, value_states
        return key_states, value_states

    def get_seq_length(self) -> int:
        """Return 0: nothing came before this pass."""
        return 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number of keys and the position of the first."""
        return query_length, 0


class Shared(_Layer):
    """Place a prompt before each row's response, and store nothing."""

    def __init__(self, prefix: LayerPrefix, owners: Sequence[int]) -> None:
        super().__init__(prefix.is_sliding)
        self.prefix, self.owners = prefix, owners

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Return [B, heads, kept + T, width]: each row's prompt, then its response."""
        return self._behind(self.prefix.keys, key_states), self._behind(self.prefix.values, value_states)

    def _behind(self, prefix: Tensor, states: Tensor) -> Tensor:
        if len(prefix) == 1:
            rows = prefix.expand(len(states), -1, -1, -1)
        else:
            prompts = prefix.unbind(0)  # unlike an index's, their gradients are added in a fixed order on every device
            rows = torch.stack([prompts[owner] for owner in self.owners])
        return torch.cat((rows, states), dim=2)

    def get_seq_length(self) -> int:
        """Return the position of a response's first token in the cache."""
        return self.prefix.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number of keys and the position of the first."""
        kept = self.prefix.keys.shape[2]
        return kept + query_length, self.prefix.length - kept


def recording_cache(windows: Sequence[Window]) -> Cache:
    """Return the cache for a pass over the prompts."""
    return Cache(layers=[Recorder(window is not None) for window in windows])


def shared_cache(prefixes: Sequence[LayerPrefix], owner: Int[Tensor, " B"]) -> Cache:
    """Return the cache for a pass over responses; ``owner`` names each row's prompt."""
    owners = owner.tolist()
    return Cache(layers=[Shared(prefix, owners) for prefix in prefixes])


def recorded(cache: Cache, windows: Sequence[Window], lengths: Int[Tensor, " D"]) -> list[LayerPrefix] | None:
    """Return every layer's prefix, or None if some layer did not hand its keys and values to the cache.

    Args:
        cache: from :func:`recording_cache`, after a pass over prompts that were padded on the right.
        windows: per layer.
        lengths: of the prompts.
    """
    longest = int(lengths.max())
    prefixes = []
    for layer, window in zip(cache.layers, windows, strict=True):
        assert isinstance(layer, Recorder)
        if layer.keys is None or layer.values is None or layer.keys.shape[2] != longest:
            return None
        kept = longest if window is None else min(longest, window - 1)
        keys, values = (_aligned_right(states, lengths, kept) for states in (layer.keys, layer.values))
        prefixes.append(LayerPrefix(keys, values, longest, window is not None))
    return prefixes


def _aligned_right(
    states: Float[Tensor, "D heads L width"], lengths: Int[Tensor, " D"], kept: int
) -> Float[Tensor, "D heads kept width"]:
    """Move each prompt to the end and keep the last positions; what stands before a prompt is masked later."""
    longest = states.shape[2]
    if bool((lengths == longest).all()):
        return states[:, :, longest - kept :]
    columns = torch.arange(longest - kept, longest) - (longest - lengths[:, None])
    index = columns.clamp(min=0).to(states.device)
    return states.gather(2, index[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3]))
