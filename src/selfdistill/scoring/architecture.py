"""What a model remembers of the tokens before: from its configuration to windows of attention.

Reusing a prompt and packing rows both rest on it: keys and values can be placed before any response and hidden from any
row, while the state of a recurrent layer can be neither.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from transformers.cache_utils import (
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionCacheLayerMixin,
)

from selfdistill.models.head import backbone_of

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


def shares_with_gradient(model: nn.Module) -> bool:
    """Tell whether rows may share a prompt's pass through which gradients flow back.

    Not if the pass draws at random (dropout, layer drop, a router's jitter), as siblings would share what was drawn;
    nor under gradient checkpointing, for which transformers switches the cache off.
    """
    backbone = backbone_of(model)
    if attention_windows(backbone) is None:
        return False
    modules = [module for module in model.modules() if module.training]
    drawn = any(_draws(vars(module)) or (isinstance(module, _DropoutNd) and module.p > 0) for module in modules)
    drawn = drawn or (backbone.training and _draws(vars(_config(backbone))))
    return not drawn and not any(getattr(module, "gradient_checkpointing", False) for module in modules)


def _draws(settings: Mapping[str, Any]) -> bool:
    """Tell whether some setting is a probability of leaving something out, or an amount of noise."""
    random = [value for name, value in settings.items() if "drop" in name or "jitter" in name]
    return any(isinstance(value, float) and value > 0 for value in random)


def _config(backbone: nn.Module) -> Any:
    """Return the configuration of the language model, which may be a part of a larger one."""
    config: Any = backbone.config
    return config.get_text_config(decoder=True)


def _rope_types(config: Any) -> set[str]:
    """Return the kinds of rotary position encoding, of which there may be one per type of layer."""
    settings = getattr(config, "rope_parameters", None) or {}
    per_type = [value for value in settings.values() if isinstance(value, dict)]
    return {str(one.get("rope_type", "default")) for one in (per_type or [settings])}
