from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from selfdistill.rollouts.grouped_attention import grouped_attention_forward

MODULE = SimpleNamespace(num_key_value_groups=3, is_causal=True)


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scaling", [None, 0.7])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("queries", [1, 4])
def test_attention_is_that_of_sdpa(queries, masked, scaling, dtype):
    query, buffer = drawn(5, 6, queries, 8, dtype=dtype), drawn(5, 2, 12, 8, dtype=dtype)
    key, value = buffer[:, :, 1:8], buffer[:, :, 3:10]  # views, as a cache with reserve hands them over
    mask = torch.rand(5, 1, queries, 7, generator=torch.Generator().manual_seed(0)) < 0.5
    mask[..., -1] = True
    mask = mask if masked else None
    expected, _ = sdpa_attention_forward(MODULE, query, key, value, mask, scaling=scaling)
    attended, weights = grouped_attention_forward(MODULE, query, key, value, mask, scaling=scaling)
    assert weights is None
    torch.testing.assert_close(attended, expected)


def test_what_is_additive_or_random_is_left_to_sdpa():
    query, key = drawn(2, 6, 1, 8), drawn(2, 2, 5, 8)
    bias = drawn(2, 1, 1, 5)
    expected, _ = sdpa_attention_forward(MODULE, query, key, key, bias)
    torch.testing.assert_close(grouped_attention_forward(MODULE, query, key, key, bias)[0], expected)
    dropped, _ = grouped_attention_forward(MODULE, query, key, key, None, dropout=1.0)
    assert not dropped.any()


def test_half_precision_keeps_its_dtype_and_softmax_in_float32():
    query, key = drawn(2, 6, 1, 8, dtype=torch.bfloat16), drawn(2, 2, 5, 8, dtype=torch.bfloat16)
    attended, _ = grouped_attention_forward(MODULE, query, key, key, None)
    exact, _ = sdpa_attention_forward(MODULE, query.double(), key.double(), key.double(), None)
    assert attended.dtype == torch.bfloat16
    torch.testing.assert_close(attended.double(), exact, atol=0.02, rtol=0.02)
