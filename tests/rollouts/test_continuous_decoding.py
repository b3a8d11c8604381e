from __future__ import annotations

import pytest
import torch
import transformers

from selfdistill.errors import ModelError
from selfdistill.rollouts import Sampling, TransformersSampler, decoding, transformers_sampler
from selfdistill.rollouts.row_cache import attention_windows

SHAPE = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256, "initializer_range": 0.2,
    "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 2, "tie_word_embeddings": True,
}  # fmt: skip
SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]
CONFIGS = {
    "qwen3": transformers.Qwen3Config(**SHAPE),
    "qwen3 with a sliding window": transformers.Qwen3Config(
        **SHAPE, use_sliding_window=True, sliding_window=9, layer_types=SLIDING
    ),
    "olmo3": transformers.Olmo3Config(**SHAPE, sliding_window=7, layer_types=SLIDING),
    "mistral": transformers.MistralConfig(**SHAPE, sliding_window=11),
    "gemma3": transformers.Gemma3TextConfig(**SHAPE, sliding_window=8, layer_types=SLIDING),
    "llama": transformers.LlamaConfig(**SHAPE),
    "gpt2": transformers.GPT2Config(
        vocab_size=60, n_embd=32, n_layer=2, n_head=4, n_positions=256, initializer_range=0.2, eos_token_id=2
    ),
}
TEXTS = ["1+1", "what is 17+25+38?", "7", "12*3=?"]
SEEDS = [[100 * prompt + sibling for sibling in range(4)] for prompt in range(len(TEXTS))]
SAMPLING = Sampling(temperature=1.2, max_new_tokens=24)


def model_of(name: str, **changes: object) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(CONFIGS[name], **changes)


@pytest.fixture
def prompts(tiny_chat):
    return [tiny_chat.render(({"role": "user", "content": text},)) for text in TEXTS]


def flat(groups):
    return [completion for group in groups for completion in group]


def same(one, other):
    assert [c.ids for c in flat(one)] == [c.ids for c in flat(other)]
    for a, b in zip(flat(one), flat(other), strict=True):
        assert a.finish_reason == b.finish_reason
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)


def with_generate(model, chat, prompts, sampling, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(transformers_sampler, "attention_windows", lambda config: None)
        return TransformersSampler(model, chat).sample(prompts, SEEDS, sampling)


@pytest.mark.parametrize("name", CONFIGS)
def test_seeded_choices_are_those_under_the_library_s_generate(name, tiny_chat, prompts, monkeypatch):
    model = model_of(name)
    reference = with_generate(model, tiny_chat, prompts, SAMPLING, monkeypatch)
    monkeypatch.setattr(model, "generate", None)  # not called any more
    same(TransformersSampler(model, tiny_chat).sample(prompts, SEEDS, SAMPLING), reference)
    same(TransformersSampler(model, tiny_chat, max_rows=3).sample(prompts, SEEDS, SAMPLING), reference)


@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_choices_are_the_library_s_own(name, tiny_chat, prompts):
    model = model_of(name).eval()
    sampler = TransformersSampler(model, tiny_chat)
    responses = sampler.sample(prompts, [[0]] * len(prompts), Sampling(temperature=0, max_new_tokens=16))
    for prompt, [response] in zip(prompts, responses, strict=True):
        own = model.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=16, eos_token_id=list(tiny_chat.end_of_turn_ids)
        )
        assert list(response.ids) == own[0, len(prompt) :].tolist()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_every_attention_implementation_is_given_back(attention, tiny_chat, prompts, monkeypatch):
    model = model_of("qwen3 with a sliding window", attn_implementation=attention)
    reference = with_generate(model, tiny_chat, prompts, SAMPLING, monkeypatch)
    same(TransformersSampler(model, tiny_chat).sample(prompts, SEEDS, SAMPLING), reference)
    assert model.config._attn_implementation == attention


def test_attention_and_modes_are_given_back_after_an_error(tiny_model, tiny_chat, prompts):
    with torch.no_grad():
        tiny_model.model.norm.weight.fill_(torch.nan)
    with pytest.raises(ModelError):
        TransformersSampler(tiny_model, tiny_chat).sample(prompts, SEEDS, SAMPLING)
    assert tiny_model.config._attn_implementation == "sdpa"
    assert tiny_model.training


def test_a_model_with_recurrent_states_is_left_to_generate(tiny_chat, prompts):
    config = transformers.Lfm2Config(
        **{**SHAPE, "num_hidden_layers": 2}, layer_types=["conv", "full_attention"], block_ff_dim=64
    )
    assert attention_windows(config) is None
    torch.manual_seed(0)
    sampler = TransformersSampler(transformers.AutoModelForCausalLM.from_config(config), tiny_chat)
    sampled = sampler.sample(prompts[:2], SEEDS[:2], Sampling(max_new_tokens=4))
    assert [len(group) for group in sampled] == [4, 4]


def shapes_of(model, sample):
    """Rows and columns of the ids of each pass through the model."""
    shapes = []
    hook = model.model.register_forward_pre_hook(
        lambda _, __, inputs: shapes.append(tuple(inputs["input_ids"].shape)), with_kwargs=True
    )
    completions = sample()
    hook.remove()
    return shapes, flat(completions)


def test_siblings_share_one_pass_over_their_prompt(tiny_model, tiny_chat, prompts):
    sampler = TransformersSampler(tiny_model, tiny_chat)
    shapes, _ = shapes_of(tiny_model, lambda: sampler.sample(prompts, SEEDS, SAMPLING))
    assert [shape for shape in shapes if shape[1] > 1] == [(len(prompts), max(map(len, prompts)))]


def test_finished_rows_leave_the_batch(tiny_model, tiny_chat, prompts):
    sampler = TransformersSampler(tiny_model, tiny_chat)
    shapes, completions = shapes_of(tiny_model, lambda: sampler.sample(prompts, SEEDS, SAMPLING))
    steps = [rows for rows, columns in shapes if columns == 1]
    lengths = [len(completion.ids) for completion in completions]
    assert steps == [sum(length > step for length in lengths) for step in range(1, max(lengths))]


def test_waiting_requests_enter_while_others_are_under_way(tiny_model, tiny_chat, prompts, monkeypatch):
    reference = TransformersSampler(tiny_model, tiny_chat).sample(prompts, SEEDS, SAMPLING)
    monkeypatch.setattr(decoding, "_pace", lambda device: decoding._Pace(steps=1, free=0.25))
    sampler = TransformersSampler(tiny_model, tiny_chat, max_rows=4)
    sampled = []
    shapes, _ = shapes_of(tiny_model, lambda: sampled.extend(sampler.sample(prompts, SEEDS, SAMPLING)) or sampled)
    same(sampled, reference)
    entries = [number for number, (_, columns) in enumerate(shapes) if columns > 1]
    assert len(entries) > 4
    assert all(rows <= 4 for rows, _ in shapes)
    assert sum(rows == 4 for rows, columns in shapes if columns == 1) > len(shapes) / 3


@pytest.mark.parametrize("name", ["qwen3", "olmo3"])
@pytest.mark.parametrize("limits", [{}, {"max_rows": 3}, {"batch_tokens": 150}])
def test_looking_at_the_draws_every_few_steps_changes_nothing(name, limits, tiny_chat, prompts, monkeypatch):
    model, long = model_of(name), Sampling(temperature=1.2, max_new_tokens=90)
    reference = TransformersSampler(model, tiny_chat).sample(prompts, SEEDS, long)
    monkeypatch.setattr(decoding, "_pace", lambda device: decoding._Pace(steps=8, free=0.25))
    counts = []
    sampled = TransformersSampler(model, tiny_chat, **limits).sample(prompts, SEEDS, long, on_tokens=counts.append)
    same(sampled, reference)
    assert sum(counts) == sum(len(completion.ids) for completion in flat(sampled))


def test_no_position_beyond_prompt_and_budget_is_read(tiny_model, tiny_chat, prompts, monkeypatch):
    monkeypatch.setattr(decoding, "_pace", lambda device: decoding._Pace(steps=8, free=0.25))
    positions = []
    tiny_model.model.register_forward_pre_hook(
        lambda _, __, inputs: positions.append(int(inputs["position_ids"].max())), with_kwargs=True
    )
    TransformersSampler(tiny_model, tiny_chat).sample(prompts, SEEDS, Sampling(max_new_tokens=11))
    assert max(positions) < max(map(len, prompts)) + 11
