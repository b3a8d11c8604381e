"""Response token n is predicted from the position before it, whatever stands before the response or pads it."""

from collections.abc import Sequence

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Olmo3Config,
    Olmo3ForCausalLM,
    PreTrainedModel,
    Qwen3ForCausalLM,
)

from selfdistill.models.head import projection_of
from selfdistill.scoring import Forwarding, response_states, score_rows, sequence_length

SMALL = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 2,
}
ARCHITECTURES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
    "mistral, window 4": lambda: MistralForCausalLM(MistralConfig(**SMALL, sliding_window=4)),
    "gemma 2, window 4, soft cap": lambda: Gemma2ForCausalLM(
        Gemma2Config(**SMALL, sliding_window=4, query_pre_attn_scalar=8, final_logit_softcapping=5.0)
    ),
    "olmo 3, window 4": lambda: Olmo3ForCausalLM(
        Olmo3Config(**SMALL, sliding_window=4, layer_types=["sliding_attention", "full_attention"])
    ),
}
ROWS = [
    ((5, 6, 7), (8, 9, 10, 11, 12)),
    (tuple(range(3, 33)), (40, 41)),  # a long prompt before a short response
    ((5,), (8,)),
    ((9, 8), tuple(range(10, 34))),
    (tuple(range(20, 28)), (7, 7, 7)),
]


def logits(model: nn.Module, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Tensor]:
    """Score through the package under test: hidden states of one padded batch, projected, row by row."""
    states = response_states(model, pairs)
    return list(projection_of(model).logits(states).split([len(response) for _, response in pairs]))


def own_logits(model: nn.Module, pair: tuple[Sequence[int], Sequence[int]]) -> Tensor:
    """The model's own logits of one unpadded sequence, at the positions before each response token."""
    prompt, response = pair
    everything = model(input_ids=torch.tensor([[*prompt, *response]]), use_cache=False).logits[0]
    return everything[len(prompt) - 1 : len(prompt) + len(response) - 1]


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.manual_seed(1)
    return ARCHITECTURES[request.param]().eval()


@torch.no_grad()
def test_padded_rows_have_the_models_own_logits_shifted_by_one(tiny_model: Qwen3ForCausalLM) -> None:
    for scored, pair in zip(logits(tiny_model, ROWS), ROWS, strict=True):
        torch.testing.assert_close(scored, own_logits(tiny_model, pair), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_alignment_holds_for_other_architectures_and_sliding_windows(architecture: PreTrainedModel) -> None:
    for scored, pair in zip(logits(architecture, ROWS), ROWS, strict=True):
        torch.testing.assert_close(scored, own_logits(architecture, pair), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_padded_batch_gives_each_row_what_it_gets_alone(architecture: PreTrainedModel) -> None:
    together = response_states(architecture, ROWS).split([len(response) for _, response in ROWS])
    for states, pair in zip(together, ROWS, strict=True):
        torch.testing.assert_close(states, response_states(architecture, [pair]), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_equal_contexts_and_equal_weights_give_equal_logits_whatever_they_are_batched_with(
    tiny_model: Qwen3ForCausalLM,
) -> None:
    model = tiny_model.double()
    student = [ROWS[0], ROWS[3]]
    teacher = [ROWS[1], ROWS[3], ROWS[4], ROWS[0]]
    as_student, as_teacher = logits(model, student), logits(model, teacher)
    torch.testing.assert_close(as_student[0], as_teacher[3], atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(as_student[1], as_teacher[1], atol=1e-10, rtol=1e-10)


@torch.no_grad()
def test_the_first_response_token_is_scored_and_nothing_follows_the_last(tiny_model: Qwen3ForCausalLM) -> None:
    prompt, response = (5, 6, 7), (8, 9, 10)
    scored = logits(tiny_model, [(prompt, response)])[0]
    first = tiny_model(input_ids=torch.tensor([prompt])).logits[0, -1]
    assert len(scored) == len(response)
    torch.testing.assert_close(scored[0], first, atol=1e-5, rtol=1e-5)
    assert sequence_length((prompt, response)) == 5  # the last token is predicted, never read


@torch.no_grad()
def test_the_last_response_token_is_never_read(tiny_model: Qwen3ForCausalLM) -> None:
    one, other = logits(tiny_model, [((5, 6), (7, 8, 9)), ((5, 6), (7, 8, 30))])
    torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_padding_is_never_seen_whichever_id_it_has(tiny_model: Qwen3ForCausalLM) -> None:
    zeros, twos = (response_states(tiny_model, ROWS, Forwarding(1000, pad_id=pad_id)) for pad_id in (0, 2))
    assert torch.equal(zeros, twos)


@torch.no_grad()
def test_positions_are_not_shifted_by_longer_rows_in_the_batch(tiny_model: Qwen3ForCausalLM) -> None:
    short = ((5, 6, 7), (8, 9))
    alone = response_states(tiny_model, [short])
    for length in (10, 50, 200):
        beside = response_states(tiny_model, [(tuple([4] * length), (9, 9)), short])[2:]
        torch.testing.assert_close(beside, alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_adapters_take_part_in_scoring(tiny_model: Qwen3ForCausalLM) -> None:
    plain = logits(tiny_model, ROWS)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False
    )
    adapted = peft.get_peft_model(tiny_model, config)
    scored = logits(adapted, ROWS)
    for with_adapter, without, pair in zip(scored, plain, ROWS, strict=True):
        torch.testing.assert_close(with_adapter, own_logits(adapted, pair), atol=1e-5, rtol=1e-5)
        assert not torch.allclose(with_adapter, without, atol=1e-3)


@pytest.mark.parametrize("budget", [1, 20, 60, 10_000])
def test_scores_come_in_the_order_of_the_rows_whatever_the_budget(tiny_model: Qwen3ForCausalLM, budget: int) -> None:
    scored = score_rows(tiny_model.eval(), ROWS, Forwarding(budget))
    assert [len(states) for states in scored] == [len(response) for _, response in ROWS]
    for states, pair in zip(scored, ROWS, strict=True):
        torch.testing.assert_close(states, response_states(tiny_model, [pair]), atol=1e-5, rtol=1e-5)
        assert not states.requires_grad


def test_each_forward_pass_stays_within_the_budget(tiny_model: Qwen3ForCausalLM) -> None:
    shapes: list[tuple[int, ...]] = []
    tiny_model.model.register_forward_pre_hook(
        lambda _, arguments, named: shapes.append(tuple(named["input_ids"].shape)), with_kwargs=True
    )
    score_rows(tiny_model, ROWS, Forwarding(31))
    assert sum(rows for rows, _ in shapes) == len(ROWS)
    assert all(rows == 1 or rows * columns <= 31 for rows, columns in shapes)


def test_scoring_switches_dropout_off_and_gives_every_module_its_own_mode_back(tiny_model: Qwen3ForCausalLM) -> None:
    tiny_model.train()
    tiny_model.model.layers[0].eval()
    before = {name: module.training for name, module in tiny_model.named_modules()}
    seen: list[bool] = []
    tiny_model.model.layers[1].register_forward_hook(lambda module, *_: seen.append(module.training))
    score_rows(tiny_model, ROWS, Forwarding(100))
    assert seen and not any(seen)
    assert {name: module.training for name, module in tiny_model.named_modules()} == before


def test_states_carry_gradients_to_the_student(tiny_model: Qwen3ForCausalLM) -> None:
    response_states(tiny_model, ROWS).sum().backward()
    assert tiny_model.model.layers[0].mlp.up_proj.weight.grad is not None


@pytest.mark.parametrize("pair", [((), (5,)), ((5,), ())])
def test_an_empty_prompt_or_response_is_refused(
    tiny_model: Qwen3ForCausalLM, pair: tuple[tuple[int, ...], tuple[int, ...]]
) -> None:
    with pytest.raises(ValueError, match="empty"):
        response_states(tiny_model, [ROWS[0], pair])
