"""Rows laid end to end in one sequence give what padded rows give, gradients included, or are refused."""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import BloomConfig, BloomForCausalLM, JambaConfig, JambaForCausalLM, PreTrainedModel, Qwen3ForCausalLM

from selfdistill.errors import ModelError
from selfdistill.models.head import projection_of
from selfdistill.scoring import Forwarding, check_packing, response_states, row_batches, score_rows, sequence_length

Pair = tuple[tuple[int, ...], tuple[int, ...]]
EXACT = {"atol": 1e-10, "rtol": 1e-10}
PADDED = Forwarding(10_000, reuse_prefix=False)
PACKED = Forwarding(10_000, reuse_prefix=False, padding_free=True)
ROWS: list[Pair] = [
    ((5, 6, 7), (8, 9, 10, 11, 12)),
    (tuple(range(3, 33)), (40, 41)),
    ((5,), (8,)),  # a sequence of one position
    ((5,), (8,)),
    ((9, 8), tuple(range(10, 34))),
    (tuple(range(20, 28)), (7, 7, 7)),
]


def gradients(model: nn.Module, pairs: list[Pair], forwarding: Forwarding) -> dict[str, torch.Tensor]:
    """Gradients of a sum whose terms all differ, so that no two positions can be exchanged unseen."""
    model.zero_grad()
    logits = projection_of(model).logits(response_states(model, pairs, forwarding))
    weights = torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).reshape(logits.shape)
    (torch.log_softmax(logits, dim=-1) * weights).sum().backward()
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


@torch.no_grad()
def test_packed_rows_have_the_states_of_padded_rows(attention_model: PreTrainedModel) -> None:
    packed, padded = (response_states(attention_model, ROWS, forwarding) for forwarding in (PACKED, PADDED))
    torch.testing.assert_close(packed, padded, **EXACT)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=6))
def test_rows_of_any_lengths_pack(windowed_model: PreTrainedModel, lengths: list[tuple[int, int]]) -> None:
    pairs = [(tuple(range(3, 3 + prompt)), tuple(range(20, 20 + response))) for prompt, response in lengths]
    with torch.no_grad():
        packed, padded = (response_states(windowed_model, pairs, forwarding) for forwarding in (PACKED, PADDED))
    torch.testing.assert_close(packed, padded, **EXACT)


def test_packed_rows_have_the_gradients_of_padded_rows(attention_model: PreTrainedModel) -> None:
    packed, padded = (gradients(attention_model.train(), ROWS, forwarding) for forwarding in (PACKED, PADDED))
    gemma = "Gemma" in type(attention_model).__name__  # whose norms are float32 whatever the model is
    assert packed.keys() == padded.keys() and packed
    for name, gradient in packed.items():
        torch.testing.assert_close(gradient, padded[name], **({"atol": 1e-5, "rtol": 1e-5} if gemma else EXACT))


def test_packing_holds_for_eager_attention(attention_model: PreTrainedModel) -> None:
    attention_model.float().set_attn_implementation("eager")
    with torch.no_grad():
        packed, padded = (response_states(attention_model, ROWS, forwarding) for forwarding in (PACKED, PADDED))
    torch.testing.assert_close(packed, padded, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("forwarding", [PADDED, PACKED], ids=["padded", "padding-free"])
def test_activation_checkpointing_changes_no_gradient(attention_model: PreTrainedModel, forwarding: Forwarding) -> None:
    model = attention_model.train()
    kept = gradients(model, ROWS, forwarding)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    forwards: list[int] = []
    model.base_model.layers[0].mlp.register_forward_pre_hook(lambda *_: forwards.append(1))
    recomputed = gradients(model, ROWS, forwarding)
    assert len(forwards) == 2  # once forwards, once more in the backward pass
    assert recomputed.keys() == kept.keys()
    for name, gradient in recomputed.items():
        torch.testing.assert_close(gradient, kept[name], **EXACT)


@pytest.mark.parametrize("budget", [1, 20, 45, 10_000])
@pytest.mark.parametrize("reuse_prefix", [False, True])
def test_a_padding_free_teacher_scores_alike(windowed_model: PreTrainedModel, budget: int, reuse_prefix: bool) -> None:
    forwarding = Forwarding(budget, reuse_prefix=reuse_prefix, padding_free=True)
    for states, padded in zip(
        score_rows(windowed_model, ROWS, forwarding), score_rows(windowed_model, ROWS, PADDED), strict=True
    ):
        torch.testing.assert_close(states, padded, **EXACT)


def test_no_position_is_spent_on_padding_and_the_budget_counts_real_tokens(windowed_model: PreTrainedModel) -> None:
    check_packing(windowed_model)
    shapes: list[tuple[int, ...]] = []
    windowed_model.base_model.register_forward_pre_hook(
        lambda _, __, named: shapes.append(tuple(named["input_ids"].shape)), with_kwargs=True
    )
    score_rows(windowed_model, ROWS, Forwarding(45, reuse_prefix=False, padding_free=True))
    assert all(rows == 1 and tokens <= 45 for rows, tokens in shapes)
    assert sum(tokens for _, tokens in shapes) == sum(sequence_length(pair) for pair in ROWS)
    assert len(shapes) == 2


def test_micro_batches_follow_the_way_of_forwarding() -> None:
    lengths = [sequence_length(pair) for pair in ROWS]
    assert lengths == [7, 31, 1, 1, 25, 10]
    assert row_batches(ROWS, Forwarding(45)) == [[1], [4], [5, 0, 2, 3]]
    assert row_batches(ROWS, Forwarding(45, padding_free=True)) == [[1], [4, 5, 0, 2, 3]]


def jamba() -> PreTrainedModel:
    """Mamba layers carry their state from one packed row into the next."""
    config = JambaConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_layer_period=2,
        attn_layer_offset=1,
        num_experts=2,
        mamba_d_state=4,
        mamba_dt_rank=4,
        use_mamba_kernels=False,
        pad_token_id=0,
    )
    return JambaForCausalLM(config)


def bloom() -> PreTrainedModel:
    """Distances, not positions: nothing tells where a packed row begins."""
    return BloomForCausalLM(BloomConfig(vocab_size=61, hidden_size=32, n_layer=2, n_head=4))


@pytest.mark.parametrize("build", [jamba, bloom])
def test_a_model_that_would_let_packed_rows_see_each_other_is_refused(build: Any) -> None:
    torch.manual_seed(1)
    model = build()
    with pytest.raises(ModelError, match=r"scoring\.padding_free is on, but (Jamba|Bloom)Model with attention"):
        response_states(model, ROWS, PACKED)
    assert model.training
    assert response_states(model, ROWS[:1], PACKED).isfinite().all()  # a row alone has no neighbour


def test_an_attention_backend_that_ignores_positions_is_refused(tiny_model: Qwen3ForCausalLM) -> None:
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    response_states(tiny_model, ROWS, PACKED)
    AttentionInterface.register("without_a_mask", sdpa_attention_forward)
    tiny_model.set_attn_implementation("without_a_mask")
    with pytest.raises(ModelError, match="attention 'without_a_mask'"):
        response_states(tiny_model, ROWS, PACKED)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_check_passes_in_every_dtype(windowed_model: PreTrainedModel, dtype: torch.dtype) -> None:
    check_packing(windowed_model.to(dtype))


@pytest.mark.parametrize("build", [jamba, bloom])
def test_the_check_fails_in_low_precision_too(build: Any) -> None:
    torch.manual_seed(1)
    with pytest.raises(ModelError, match="see each other"):
        check_packing(build().to(torch.bfloat16))


def test_the_check_is_made_once(windowed_model: PreTrainedModel) -> None:
    calls: list[int] = []
    windowed_model.base_model.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(3):
        response_states(windowed_model, ROWS, PACKED)
    assert len(calls) == 3 + 3


@pytest.mark.parametrize("pair", [((), (5,)), ((5,), ())])
def test_an_empty_prompt_or_response_cannot_be_packed(windowed_model: PreTrainedModel, pair: Pair) -> None:
    with pytest.raises(ValueError, match="empty"):
        response_states(windowed_model, [ROWS[0], pair], PACKED)
