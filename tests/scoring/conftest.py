"""Small random models in float64 whose layers differ in what they remember of a prompt."""

from collections.abc import Callable

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Olmo3Config,
    Olmo3ForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

SMALL = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 2,
}
ALTERNATING = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
ATTENTION_ONLY: dict[str, Callable[[], PreTrainedModel]] = {
    "qwen 3": lambda: Qwen3ForCausalLM(Qwen3Config(**SMALL)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
    "mistral, window 4": lambda: MistralForCausalLM(MistralConfig(**SMALL, sliding_window=4)),
    "gemma 2, window 4": lambda: Gemma2ForCausalLM(Gemma2Config(**SMALL, **ALTERNATING, query_pre_attn_scalar=8)),
    "gemma 3, window 4": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SMALL, **ALTERNATING, query_pre_attn_scalar=8)),
    "olmo 3, window 4": lambda: Olmo3ForCausalLM(Olmo3Config(**SMALL, **ALTERNATING)),
    "olmo 3, window 1": lambda: Olmo3ForCausalLM(Olmo3Config(**SMALL, **{**ALTERNATING, "sliding_window": 1})),
}


@pytest.fixture(params=ATTENTION_ONLY)
def attention_model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """Every layer is plain attention; float64, evaluation mode."""
    torch.manual_seed(1)
    model = ATTENTION_ONLY[request.param]()
    model.set_attn_implementation("sdpa")  # eager attention rounds to float32
    return model.double().eval()


@pytest.fixture
def windowed_model() -> PreTrainedModel:
    """OLMo-3 with a sliding window of 4; float64, training mode."""
    torch.manual_seed(1)
    return ATTENTION_ONLY["olmo 3, window 4"]().double().train()
