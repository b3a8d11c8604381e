"""What a model remembers of the tokens before: from its configuration to windows of attention.

Reusing a prompt and packing rows both rest on it: keys and values can be placed before any response and hidden from any
row, while the state of a recurrent layer can be neither.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn
from transformers.cache_utils import (
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionCacheLayerMixin,
)

Window = int | None
"""How many positions an attention layer looks back, itself included; None: all."""


def has_recurrent_layers(backbone: nn.Module) -> bool:
    """Tell whether some layer carries a state from position to position, as Mamba and linear attention do."""
    layers = DynamicCache(config=_config(backbone)).layers
    stateful = bool(getattr(backbone, "_is_stateful", False))
    return stateful or any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers)


def attention_windows(backbone: nn.Module) -> list[Window] | None:
    """Return each layer's window, or None if keys and values are not all that the model remembers of a prompt.

    None for recurrent and hybrid layers, chunked attention, layers that read another layer's cache, and positions whose
    encoding depends on the length of the whole sequence: a prompt alone would be encoded differently.
    """
    parameters = inspect.signature(backbone.forward).parameters
    if not {"past_key_values", "position_ids"} <= parameters.keys() or has_recurrent_layers(backbone):
        return None
    config = _config(backbone)
    unusual = ("is_encoder_decoder", "num_kv_shared_layers", "attention_chunk_size", "use_bidirectional_attention")
    if any(getattr(config, name, None) for name in unusual) or _rope_types(config) & {"dynamic", "longrope"}:
        return None
    layers = DynamicCache(config=config).layers
    if len(layers) != config.num_hidden_layers:
        return None
    if any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers):
        return None
    return [layer.sliding_window if isinstance(layer, DynamicSlidingWindowLayer) else None for layer in layers]


def _config(backbone: nn.Module) -> Any:
    """Return the configuration of the language model, which may be a part of a larger one."""
    config: Any = backbone.config
    return config.get_text_config(decoder=True)


def _rope_types(config: Any) -> set[str]:
    """Return the kinds of rotary position encoding, of which there may be one per type of layer."""
    settings = getattr(config, "rope_parameters", None) or {}
    per_type = [value for value in settings.values() if isinstance(value, dict)]
    return {str(one.get("rope_type", "default")) for one in (per_type or [settings])}
