"""Attention of single queries on the CPU without copying keys and values.

With fewer key-value heads than query heads, transformers' ``sdpa`` repeats keys and values for every query head as soon
as a mask is given, in every layer and step, and torch's kernel is made for many queries. Two batched products over the
keys and values as they lie cost a fraction, with equal results up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

_NAME = "selfdistill_grouped_sdpa"


@contextmanager
def grouped_attention(model: Any) -> Iterator[None]:
    """Let a transformers model whose attention is ``sdpa`` decode this way inside the block, if it is on the CPU."""
    implementation = model.config._attn_implementation
    if implementation != "sdpa" or model.device.type != "cpu":
        yield
        return
    AttentionInterface.register(_NAME, grouped_attention_forward)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    try:
        model.set_attn_implementation(_NAME)
        yield
    finally:
        model.set_attn_implementation(implementation)


def takes_ready_mask(model: Any) -> bool:
    """Whether the model hands a mask [rows, 1, queries, columns], True where a column is seen, to torch's attention."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return bool(base._supports_attention_backend) and base.config._attn_implementation in ("sdpa", _NAME)


def grouped_attention_forward(
    module: torch.nn.Module,
    query: Float[Tensor, "rows heads queries size"],
    key: Float[Tensor, "rows groups columns size"],
    value: Float[Tensor, "rows groups columns size"],
    attention_mask: Bool[
        Tensor,
        (
            rows  # heads queries columns
        ),
    ]
    | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "rows queries heads size"], None]:
    """Attend as transformers' ``sdpa`` does, to which prompts and anything unusual are left."""
    unusual = kwargs.get("dropout") or kwargs.get("position_bias") is not None
    if query.shape[2] > 1 or unusual or (attention_mask is not None and attention_mask.dtype != torch.bool):
        attended: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return attended
    rows, heads, _, size = query.shape
    folded = query.reshape(rows, key.shape[1], -1, size)  # the queries that share a key, side by side
    exact = torch.promote_types(query.dtype, torch.float32)
    scores = (folded @ key.transpose(2, 3)).to(exact) * (size**-0.5 if scaling is None else scaling)
    if attention_mask is not None:
        scores.masked_fill_(~attention_mask, -torch.inf)
    mixed = scores.softmax(-1).to(value.dtype) @ value
    return mixed.view(rows, 1, heads, -1), None
