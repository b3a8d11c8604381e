"""A prompt that several rows share is computed once, and nothing but the time tells."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import peft
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import (
    JambaConfig,
    JambaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

from selfdistill.scoring import Forwarding, score_rows
from selfdistill.scoring.prefix import shared_prompts, shared_row_states
from selfdistill.scoring.prefix_cache import LayerPrefix, shared_cache
from selfdistill.teachers import Initial, MovingAverage, start_teacher
from selfdistill.teachers.weights import trainable

Pair = tuple[tuple[int, ...], tuple[int, ...]]
EXACT = {"atol": 1e-10, "rtol": 1e-10}
SMALL = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 2,
}


def ids(count: int, seed: int) -> tuple[int, ...]:
    generator = random.Random(seed)
    return tuple(generator.randrange(3, 61) for _ in range(count))


def siblings(prompt: tuple[int, ...], *lengths: int) -> list[Pair]:
    return [(prompt, ids(length, 100 * len(prompt) + place)) for place, length in enumerate(lengths)]


LONG, SHORT, ONE = ids(19, 1), ids(7, 2), ids(1, 3)
ROWS: list[Pair] = [
    *siblings(LONG, 9, 1, 3, 14),
    (ids(11, 4), ids(6, 5)),  # a prompt of its own
    *siblings(SHORT, 2, 12),
    *siblings(ONE, 5, 1),
    *siblings(LONG, 7),  # the first prompt again, apart from its siblings
]


def plain(model: nn.Module, pairs: Sequence[Pair]) -> list[Tensor]:
    return score_rows(model, pairs, Forwarding(10_000, reuse_prefix=False))


def assert_same(scored: Sequence[Tensor], expected: Sequence[Tensor], **tolerance: float) -> None:
    for states, other in zip(scored, expected, strict=True):
        torch.testing.assert_close(states, other, **(tolerance or EXACT))


def passes(model: PreTrainedModel, score: Callable[[], Any]) -> list[list[list[int]]]:
    """The real ids (those not masked) of every row of every forward pass."""
    seen: list[list[list[int]]] = []

    def note(_: nn.Module, __: Any, named: dict[str, Any]) -> None:
        read = named["input_ids"]
        real = named["attention_mask"][:, -read.shape[1] :].bool()
        seen.append([row[mask].tolist() for row, mask in zip(read, real, strict=True)])

    handle = model.base_model.register_forward_pre_hook(note, with_kwargs=True)
    score()
    handle.remove()
    return seen


@pytest.mark.parametrize("budget", [1, 25, 60, 10_000])
def test_a_reused_prompt_gives_the_states_of_the_plain_pass(attention_model: PreTrainedModel, budget: int) -> None:
    assert_same(score_rows(attention_model, ROWS, Forwarding(budget)), plain(attention_model, ROWS))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_reuse_holds_for_every_attention_backend(attention_model: PreTrainedModel, attention: str) -> None:
    attention_model.set_attn_implementation(attention)
    model = attention_model.float()
    assert_same(score_rows(model, ROWS, Forwarding(60)), plain(model, ROWS), atol=1e-4, rtol=1e-4)


LENGTHS = st.integers(1, 12)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    groups=st.lists(st.tuples(LENGTHS, st.lists(LENGTHS, min_size=1, max_size=4)), min_size=1, max_size=4),
    budget=st.integers(1, 150),
    order=st.randoms(use_true_random=False),
)
def test_any_mixture_of_prompts_and_responses_is_scored_alike(
    windowed_model: PreTrainedModel,
    groups: list[tuple[int, list[int]]],
    budget: int,
    order: random.Random,
) -> None:
    pairs = [pair for seed, (prompt, lengths) in enumerate(groups) for pair in siblings(ids(prompt, seed), *lengths)]
    order.shuffle(pairs)
    assert_same(score_rows(windowed_model, pairs, Forwarding(budget)), plain(windowed_model, pairs))


def test_every_shared_prompt_is_computed_once_and_every_lone_row_once(attention_model: PreTrainedModel) -> None:
    seen = passes(attention_model, lambda: score_rows(attention_model, ROWS, Forwarding(10_000)))
    computed = sum(len(row) for rows in seen for row in rows)
    responses = sum(len(response) - 1 for _, response in ROWS)
    assert computed == responses + len(LONG) + len(SHORT) + len(ONE) + 11
    prompts = [tuple(row) for rows in seen for row in rows if tuple(row) in (LONG, SHORT, ONE)]
    assert sorted(prompts) == sorted((LONG, SHORT, ONE))


def test_a_small_budget_splits_the_siblings_but_does_not_compute_their_prompt_again(
    windowed_model: PreTrainedModel,
) -> None:
    pairs = siblings(LONG, 8, 8, 8, 8, 8)
    seen = passes(windowed_model, lambda: score_rows(windowed_model, pairs, Forwarding(60)))
    assert [len(rows) for rows in seen] == [1, 2, 2, 1]  # 2 * (19 + 7) <= 60
    assert sum(len(row) for rows in seen for row in rows) == len(LONG) + 5 * 7


@pytest.mark.parametrize("budget", [25, 60, 100, 1000])
def test_keys_and_values_of_a_pass_stay_within_the_budget(windowed_model: PreTrainedModel, budget: int) -> None:
    masks: list[tuple[int, ...]] = []
    windowed_model.base_model.register_forward_pre_hook(
        lambda _, __, named: masks.append(tuple(named["attention_mask"].shape)), with_kwargs=True
    )
    score_rows(windowed_model, ROWS, Forwarding(budget))
    assert all(rows == 1 or rows * columns <= budget for rows, columns in masks)


def test_no_layer_holds_a_copy_of_the_prompt_for_every_row_longer_than_it_runs() -> None:
    keys, values = torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 4)
    (layer,) = shared_cache([LayerPrefix(keys, values, 5, is_sliding=False)], torch.tensor([0, 0, 1])).layers
    new_keys, new_values = torch.randn(3, 2, 7, 8), torch.randn(3, 2, 7, 4)
    for _ in range(2):  # nothing grows
        joined_keys, joined_values = layer.update(new_keys, new_values)
        assert torch.equal(joined_keys, torch.cat((keys[[0, 0, 1]], new_keys), dim=2))
        assert torch.equal(joined_values, torch.cat((values[[0, 0, 1]], new_values), dim=2))
        assert layer.keys is None and layer.values is None
        assert layer.get_seq_length() == 5 and layer.get_mask_sizes(7) == (12, 0)


def test_little_is_padded_although_the_siblings_differ_in_length(windowed_model: PreTrainedModel) -> None:
    pairs = [pair for seed in range(6) for pair in siblings(ids(10, seed), 2, 40)]
    shapes: list[tuple[int, ...]] = []
    windowed_model.base_model.register_forward_pre_hook(
        lambda _, __, named: shapes.append(tuple(named["input_ids"].shape)), with_kwargs=True
    )
    score_rows(windowed_model, pairs, Forwarding(300))
    real = 6 * 10 + 6 * 1 + 6 * 39
    assert sum(rows * columns for rows, columns in shapes) == real


def test_a_response_of_one_token_is_predicted_by_the_prompt_alone(windowed_model: PreTrainedModel) -> None:
    pairs = siblings(LONG, 1, 1, 1)
    seen = passes(windowed_model, lambda: score_rows(windowed_model, pairs, Forwarding(1000)))
    assert seen == [[list(LONG)]]
    assert_same(score_rows(windowed_model, pairs, Forwarding(1000)), plain(windowed_model, pairs))


def test_rows_without_siblings_take_the_plain_path(windowed_model: PreTrainedModel) -> None:
    pairs = [(ids(5, seed), ids(4, seed)) for seed in range(3)]
    assert shared_prompts(pairs, 100) == []
    assert shared_row_states(windowed_model, pairs, Forwarding(100)) == {}
    assert_same(score_rows(windowed_model, pairs, Forwarding(100)), plain(windowed_model, pairs))


def test_grouping_is_by_length_and_does_not_depend_on_chance() -> None:
    groups = shared_prompts(ROWS, token_budget=26)
    assert [group.prompts for group in groups] == [(LONG,), (SHORT, ONE)]  # 2 * 19 > 26, 2 * 7 <= 26
    assert [group.rows for group in groups] == [(0, 1, 2, 3, 9), (5, 6, 7, 8)]
    assert groups[1].owners == (0, 0, 1, 1)
    as_lists = [(list(prompt), list(response)) for prompt, response in ROWS]
    assert shared_prompts(as_lists, 26) == groups == shared_prompts(ROWS, 26)


def test_reuse_can_be_switched_off(windowed_model: PreTrainedModel) -> None:
    forwarding = Forwarding(10_000, reuse_prefix=False, pass_tokens=1000)
    seen = passes(windowed_model, lambda: score_rows(windowed_model, ROWS, forwarding))
    assert [len(rows) for rows in seen] == [len(ROWS)]


def test_which_id_pads_makes_no_difference(windowed_model: PreTrainedModel) -> None:
    zeros, nines = (score_rows(windowed_model, ROWS, Forwarding(100, pad_id=pad_id)) for pad_id in (0, 9))
    assert all(torch.equal(states, other) for states, other in zip(zeros, nines, strict=True))


def test_no_state_carries_a_gradient_and_modes_come_back(windowed_model: PreTrainedModel) -> None:
    windowed_model.model.layers[0].eval()
    modes = {name: module.training for name, module in windowed_model.named_modules()}
    assert not any(states.requires_grad for states in score_rows(windowed_model, ROWS, Forwarding(100)))
    assert {name: module.training for name, module in windowed_model.named_modules()} == modes


def test_gradient_checkpointing_does_not_switch_the_cache_off(attention_model: PreTrainedModel) -> None:
    expected = plain(attention_model, ROWS)
    attention_model.gradient_checkpointing_enable({"use_reentrant": False})
    attention_model.train()
    assert_same(score_rows(attention_model, ROWS, Forwarding(60)), expected)


def test_dropout_is_off_while_a_prompt_is_reused(windowed_model: PreTrainedModel) -> None:
    expected = plain(windowed_model, ROWS)
    for layer in windowed_model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    assert_same(score_rows(windowed_model, ROWS, Forwarding(60)), expected)


@pytest.mark.parametrize("adapters", ["on", "off"])
def test_adapters_take_part_or_do_not(windowed_model: PreTrainedModel, adapters: str) -> None:
    without = plain(windowed_model, ROWS)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=4, target_modules=["k_proj", "v_proj", "down_proj"], init_lora_weights=False
    )
    torch.manual_seed(2)
    adapted = peft.get_peft_model(windowed_model, config).double()
    if adapters == "on":
        scored = score_rows(adapted, ROWS, Forwarding(60))
        assert_same(scored, plain(adapted, ROWS))
        assert not torch.allclose(scored[0], without[0], atol=1e-3)
    else:
        with adapted.disable_adapter():
            assert_same(score_rows(adapted, ROWS, Forwarding(60)), without)


@pytest.mark.parametrize("part", [Initial(), MovingAverage(rate=0.3)], ids=lambda part: part.kind)
def test_the_teachers_weights_are_used_for_prompts_and_for_responses(
    windowed_model: PreTrainedModel, part: Initial | MovingAverage
) -> None:
    expected = plain(windowed_model, ROWS)
    teacher = start_teacher(part, windowed_model)
    assert teacher is not None
    with torch.no_grad():
        for parameter in trainable(windowed_model).values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    assert_same(teacher.score(ROWS, Forwarding(60)).states, expected, atol=1e-6, rtol=1e-6)
    assert not torch.allclose(plain(windowed_model, ROWS)[0], expected[0], atol=1e-2)


def jamba() -> PreTrainedModel:
    config = JambaConfig(
        **SMALL,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        num_experts=2,
        mamba_d_state=4,
        mamba_dt_rank=4,
        use_mamba_kernels=False,
    )
    return JambaForCausalLM(config)


def qwen3_next() -> PreTrainedModel:
    config = Qwen3NextConfig(
        **SMALL,
        head_dim=8,
        layer_types=["linear_attention", "full_attention"],
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        num_experts=2,
        num_experts_per_tok=1,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    )
    return Qwen3NextForCausalLM(config)


def mamba() -> PreTrainedModel:
    return MambaForCausalLM(MambaConfig(vocab_size=61, hidden_size=32, num_hidden_layers=2, state_size=4))


def dynamic_rope() -> PreTrainedModel:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    return LlamaForCausalLM(LlamaConfig(**{**SMALL, "max_position_embeddings": 16}, rope_parameters=rope))


@pytest.mark.parametrize("build", [jamba, qwen3_next, mamba, dynamic_rope])
def test_a_model_that_remembers_more_than_keys_and_values_is_scored_without_reuse(
    build: Callable[[], PreTrainedModel],
) -> None:
    torch.manual_seed(1)
    model = build().eval()
    with torch.no_grad():
        assert shared_row_states(model, ROWS, Forwarding(10_000)) == {}
    scored = score_rows(model, ROWS, Forwarding(10_000))
    assert all(torch.equal(states, other) for states, other in zip(scored, plain(model, ROWS), strict=True))


def test_a_model_that_leaves_the_cache_unused_is_scored_without_reuse(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    model = Qwen3ForCausalLM(Qwen3Config(**SMALL, head_dim=8)).double().eval()
    forward = model.model.layers[1].forward

    def uncached(*arguments: Any, **named: Any) -> Tensor:
        return forward(*arguments, **{**named, "past_key_values": None})

    monkeypatch.setattr(model.model.layers[1], "forward", uncached)
    assert_same(score_rows(model, ROWS, Forwarding(10_000)), plain(model, ROWS))


@pytest.mark.parametrize("pair", [((), (5,)), ((5,), ())])
def test_an_empty_prompt_or_response_among_siblings_is_refused(windowed_model: PreTrainedModel, pair: Pair) -> None:
    with pytest.raises(ValueError, match="empty"):
        score_rows(windowed_model, [*ROWS, pair, pair], Forwarding(100))
