"""Padding-free passes: the rows of a micro-batch end to end in ONE sequence, whose positions start anew in each row.

transformers derives from such positions which tokens may see each other: a block-diagonal mask for sdpa, eager and flex
attention, sequence boundaries for flash attention. An architecture or an attention backend that ignores them would mix
rows without a word; :func:`check_packing` finds that out before it happens.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from selfdistill.errors import ModelError
from selfdistill.models.head import backbone_of, run_backbone
from selfdistill.scoring.mode import evaluation_mode
from selfdistill.scoring.rows import TokenPair, model_device, read_ids

_CHECKED: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
"""Models that keep packed rows apart, and the attention backend for which that was seen."""


def packed_states(model: nn.Module, pairs: Sequence[TokenPair]) -> Float[Tensor, "N H"]:
    """Return the final hidden states from which each response token is predicted, without padding.

    Args:
        model: a causal language model.
        pairs: the rows of one micro-batch.

    Returns:
        Hidden states ``[N, H]`` in the model's dtype; rows one after the other in the given order, N = sum of response
        lengths.

    Raises:
        ModelError: the model would let rows see each other.
    """
    backbone = backbone_of(model)
    if len(pairs) > 1 and _CHECKED.get(backbone) != _attention(backbone):
        check_packing(model)
    hidden = _end_to_end(model, [read_ids(pair) for pair in pairs])
    predicts_response = torch.tensor(
        [inside for prompt, response in pairs for inside in [False] * (len(prompt) - 1) + [True] * len(response)]
    )
    return hidden[predicts_response.to(hidden.device)]


def check_packing(model: nn.Module) -> None:
    """Compare a packed row with the same row alone, on a few ids.

    The difference is measured by that of a row which does follow another in one sequence, so the check means the same
    in every dtype. Recurrent layers are known to carry their state over and need no trial: what they leak may be small.

    Raises:
        ModelError: the packed row sees the other one.
    """
    from selfdistill.scoring.architecture import has_recurrent_layers  # loads transformers

    backbone = backbone_of(model)
    if has_recurrent_layers(backbone) or _rows_mix(model, backbone):
        raise ModelError(
            f"scoring.padding_free is on, but {type(backbone).__name__} with attention {_attention(backbone)!r} lets "
            "rows that share a sequence see each other; set it to false, or load the model with 'sdpa' or "
            "'flash_attention_2' if its architecture has them."
        )
    _CHECKED[backbone] = _attention(backbone)


def _rows_mix(model: nn.Module, backbone: nn.Module) -> bool:
    config: Any = backbone.config
    vocabulary = int(config.get_text_config(decoder=True).vocab_size)
    other, row = [[id_ % vocabulary for id_ in ids] for ids in (range(1, 8), range(8, 13))]
    with evaluation_mode(model), torch.no_grad():
        alone = _end_to_end(model, [row])
        packed = _end_to_end(model, [other, row])[len(other) :]
        following = _end_to_end(model, [other + row])[len(other) :]
    leaked, visible = ((states - alone).abs().max().item() for states in (packed, following))
    return not leaked <= visible * torch.finfo(alone.dtype).eps ** 0.5


def _attention(backbone: nn.Module) -> str:
    return str(getattr(backbone.config, "_attn_implementation", None))


def _end_to_end(model: nn.Module, rows: Sequence[Sequence[int]]) -> Float[Tensor, "T H"]:
    device = model_device(model)
    ids = torch.tensor([list(chain.from_iterable(rows))])
    positions = torch.cat([torch.arange(len(row)) for row in rows])[None]
    output: Any = run_backbone(
        model, input_ids=ids.to(device), position_ids=positions.to(device), use_cache=False, return_dict=True
    )
    hidden: Tensor = output.last_hidden_state[0]
    return hidden
