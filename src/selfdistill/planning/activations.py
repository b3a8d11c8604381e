"""Activations: what a forward pass with gradient remembers for the backward pass, in bytes.

After Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models" (arXiv 2205.05198, equations 1
and 2 and section 5), whose 34 sbh + 5 as^2b per layer is the sum of what each operation keeps. The same sum for the
models here: no dropout; RMSNorm, computed in float32; rotary positions; grouped queries; a gated SwiGLU MLP of width I;
attention that keeps its inputs, its output and one number per head instead of scores: 5 as^2b is gone, a mask stays.
With d bytes per number, Q and K the widths of all queries and all keys, per position and layer:

    full fine-tuning   norms 2 H (4 + d), what the products read 2 H d, heads' norms (Q + K)(4 + d) (Qwen3),
                       attention 4 Q d (queries; keys and values, once per query head; output), MLP 4 I d
    LoRA, rank r       norms 2 H 4, heads' norms (Q + K) 4, attention 4 Q d, MLP 3 I d; per adapted layer its input in
                       float32 (once for all that read it if d = 4) and r numbers in float32

and with a mask (rows of different lengths) a number per position of the longest row. Under gradient checkpointing a
layer keeps its input, H d, and one layer at a time keeps all of the above.
"""

from __future__ import annotations

from collections.abc import Sequence

from selfdistill.planning.setup import FULL, Setup

_READ_TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Linear layers that read the same input of width H."""


def saved_bytes(setup: Setup, positions: int, row: int) -> int:
    """Return what a forward pass over ``positions`` positions remembers until its backward pass.

    Args:
        setup: model, dtype, adapters, checkpointing, attention.
        positions: of the micro-batch, padding included.
        row: positions of its longest row, which is the width of the mask.
    """
    shape, layer = setup.shape, layer_bytes(setup, row)
    final = shape.hidden * (FULL + (0 if setup.lora else setup.width))
    if setup.gradient_checkpointing:
        return positions * (shape.layers * shape.hidden * setup.width + layer + final)
    return positions * (shape.layers * layer + final)


def layer_bytes(setup: Setup, row: int) -> int:
    """Return what one layer remembers of one position."""
    return _norms(setup) + _attention(setup, row) + _mlp(setup) + _adapters(setup)


def backward_bytes(setup: Setup, positions: int) -> int:
    """Return the gradients that stand beside the activations while one layer is differentiated.

    Those of an MLP's three inner results, and of a hidden state before and after a norm: a bound of the order of what
    autograd holds, not a sum over its operations.
    """
    return positions * (3 * setup.shape.intermediate * setup.width + 2 * setup.shape.hidden * FULL)


def forward_bytes(setup: Setup, positions: int) -> int:
    """Return what a forward pass without gradient holds at a time: one MLP, and the hidden states around it."""
    return positions * (3 * setup.shape.intermediate + 4 * setup.shape.hidden) * setup.width


def _norms(setup: Setup) -> int:
    """RMSNorm keeps its input in float32, and what it scales if the scale is trained."""
    shape = setup.shape
    heads = shape.query_width + shape.kv_width if shape.normed_heads else 0
    return (2 * shape.hidden + heads) * (FULL + (0 if setup.lora else setup.width))


def _attention(setup: Setup, row: int) -> int:
    shape, width = setup.shape, setup.width
    if setup.attention.startswith("flash"):
        return (2 * shape.query_width + 2 * shape.kv_width) * width + shape.heads * FULL
    kept = 4 * shape.query_width * width + shape.heads * FULL
    if setup.attention == "eager":  # scores after the softmax, in float32 and in the model's dtype
        return kept + shape.heads * row * (FULL + width)
    return kept + row * width  # the mask as numbers, made anew in every layer


def _mlp(setup: Setup) -> int:
    """The gate before and after SiLU, and what it is multiplied with; their product where a trained layer reads it."""
    return (3 if setup.lora else 4) * setup.shape.intermediate * setup.width


def _adapters(setup: Setup) -> int:
    """Return what trained linear layers keep of their inputs, apart from what :func:`_mlp` has counted."""
    shape, lora = setup.shape, setup.lora
    if lora is None:
        return 2 * shape.hidden * setup.width
    inputs = sum(_copies(setup, names) * shape.hidden * FULL for names in _READ_TOGETHER)
    if "down_proj" in lora.targets:
        inputs += shape.intermediate * FULL
    if "o_proj" in lora.targets and setup.width < FULL:
        inputs += shape.query_width * FULL
    return inputs + len(set(lora.targets)) * lora.r * FULL


def _copies(setup: Setup, names: Sequence[str]) -> int:
    """Return how many float32 copies of one input the adapters among ``names`` keep: PEFT casts for each of them."""
    assert setup.lora is not None
    adapted = len(set(names) & set(setup.lora.targets))
    return min(adapted, 1) if setup.width == FULL else adapted
