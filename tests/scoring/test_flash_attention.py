"""What flash attention is handed: its two functions are replaced by readable ones with the same contract.

Flash attention knows no mask, only sequence boundaries, and aligns queries with the END of their keys. So this shows,
without a GPU, that the masks and positions of the package become the right boundaries.
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import MistralConfig, MistralForCausalLM, Olmo3Config, Olmo3ForCausalLM, PreTrainedModel
from transformers import modeling_flash_attention_utils as flash

from selfdistill.scoring import Forwarding, score_rows

SMALL = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 2,
    "sliding_window": 4,
}
LONG, SHORT = tuple(range(3, 22)), tuple(range(30, 37))
ROWS = [
    (LONG, (5, 6, 7, 8, 9, 10, 11)),
    (LONG, (5,)),
    (LONG, (9, 8)),
    (SHORT, tuple(range(40, 55))),
    (SHORT, (4, 4, 4)),
    ((7,), (8, 9, 10)),
]


def attend(query: Tensor, key: Tensor, value: Tensor, window: tuple[int, int], scale: float) -> Tensor:
    """One sequence [length, heads, width]; the last query sees the last key."""
    queries, keys = len(query), len(key)
    distance = torch.arange(queries)[:, None] + keys - queries - torch.arange(keys)
    seen = (distance >= 0) & (distance <= (window[0] if window[0] >= 0 else keys))
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = torch.einsum("qhd,khd->hqk", query, key) * scale
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -torch.inf).softmax(dim=-1), value)


def varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    softmax_scale: float,
    causal: bool,
    window_size: tuple[int, int] = (-1, -1),
) -> Tensor:
    assert causal
    of_query, of_key = (bounds.diff().tolist() for bounds in (cu_seqlens_q, cu_seqlens_k))
    assert max(of_query) == max_seqlen_q and max(of_key) == max_seqlen_k
    sequences = zip(q.split(of_query), k.split(of_key), v.split(of_key), strict=True)
    return torch.cat([attend(*sequence, window_size, softmax_scale) for sequence in sequences])


def fixed(q: Tensor, k: Tensor, v: Tensor, softmax_scale: float, causal: bool, **named: Any) -> Tensor:
    assert causal
    window = named.get("window_size", (-1, -1))
    return torch.stack([attend(*row, window, softmax_scale) for row in zip(q, k, v, strict=True)])


@pytest.fixture(params=["mistral", "olmo 3"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.manual_seed(1)
    if request.param == "mistral":
        return MistralForCausalLM(MistralConfig(**SMALL)).double().eval()
    layers = ["sliding_attention", "full_attention"]
    return Olmo3ForCausalLM(Olmo3Config(**SMALL, layer_types=layers)).double().eval()


@pytest.mark.parametrize("padding_free", [False, True])
@pytest.mark.parametrize("reuse_prefix", [False, True])
@pytest.mark.parametrize("budget", [1, 60, 10_000])
def test_flash_attention_is_told_the_boundaries_of_every_row(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, budget: int, reuse_prefix: bool, padding_free: bool
) -> None:
    expected = score_rows(model, ROWS, Forwarding(10_000, reuse_prefix=False))
    process = flash._lazy_define_process_function(varlen)
    functions = ((fixed, varlen, None, flash._pad_input, flash._unpad_input), (process, None))
    monkeypatch.setattr(flash, "lazy_import_flash_attention", lambda *_, **__: functions)
    model.config._attn_implementation = "flash_attention_2"
    scored = score_rows(model, ROWS, Forwarding(budget, reuse_prefix=reuse_prefix, padding_free=padding_free))
    for states, other in zip(scored, expected, strict=True):
        torch.testing.assert_close(states, other, atol=1e-10, rtol=1e-10)
