from __future__ import annotations

import pytest
import torch
from transformers import GenerationConfig

from selfdistill.errors import DataError, ModelError, RecipeError
from selfdistill.rollouts import ChatFormat, Sampling, TransformersSampler

PROMPTS = ["1+1", "what is 17+25+38?", "7", "12*3=?"]
SAMPLING = Sampling(temperature=0.9, top_p=0.95, max_new_tokens=20)


@pytest.fixture
def prompts(tiny_chat):
    return [tiny_chat.render(({"role": "user", "content": text},)) for text in PROMPTS]


@pytest.fixture
def seeds():
    return [[1000 * prompt + sibling for sibling in range(4)] for prompt in range(len(PROMPTS))]


@pytest.fixture
def sampler(tiny_model, tiny_chat):
    return TransformersSampler(tiny_model, tiny_chat)


def same(one, other):
    assert [c.ids for own in one for c in own] == [c.ids for own in other for c in own]
    for a, b in zip((c for own in one for c in own), (c for own in other for c in own), strict=True):
        assert a.finish_reason == b.finish_reason
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)


def test_a_padded_batch_answers_as_each_row_alone(sampler, prompts, seeds):
    together = sampler.sample(prompts, seeds, SAMPLING)
    alone = [
        [sampler.sample([prompt], [[seed]], SAMPLING)[0][0] for seed in own]
        for prompt, own in zip(prompts, seeds, strict=True)
    ]
    same(together, alone)
    assert {completion.finish_reason for own in together for completion in own} == {"stop", "length"}


@pytest.mark.parametrize("limits", [{"max_rows": 3}, {"batch_tokens": 130}, {"batch_tokens": 1}])
def test_completions_do_not_depend_on_how_requests_are_cut_into_batches(tiny_model, tiny_chat, prompts, seeds, limits):
    reference = TransformersSampler(tiny_model, tiny_chat).sample(prompts, seeds, SAMPLING)
    same(TransformersSampler(tiny_model, tiny_chat, **limits).sample(prompts, seeds, SAMPLING), reference)


def test_completions_come_back_in_the_order_of_the_requests(sampler, prompts, seeds):
    reference = sampler.sample(prompts, seeds, SAMPLING)
    backwards = sampler.sample(prompts[::-1], [own[::-1] for own in seeds[::-1]], SAMPLING)
    same([own[::-1] for own in backwards[::-1]], reference)
    uneven = sampler.sample(prompts, [[], seeds[1][:1], seeds[2], []], SAMPLING)
    same(uneven, [[], reference[1][:1], reference[2], []])
    assert sampler.sample([], [], SAMPLING) == []


def test_log_probabilities_are_those_of_a_teacher_forced_forward_pass(sampler, tiny_model, prompts, seeds):
    tiny_model.eval()
    for prompt, own in zip(prompts, sampler.sample(prompts, seeds, SAMPLING), strict=True):
        for completion in own:
            ids = torch.tensor([[*prompt, *completion.ids]])
            with torch.no_grad():
                logits = tiny_model(ids).logits[0, len(prompt) - 1 : -1].float()
            logprobs = torch.log_softmax(logits / SAMPLING.temperature, -1)
            recomputed = logprobs.gather(-1, torch.tensor(completion.ids)[:, None]).squeeze(-1)
            assert len(completion.logprobs) == len(completion.ids)
            assert completion.logprobs == pytest.approx(recomputed.tolist(), abs=1e-4)


def test_temperature_zero_equals_the_library_s_own_greedy_decoding(sampler, tiny_model, tiny_chat, prompts):
    [[completion]] = sampler.sample(prompts[:1], [[0]], Sampling(temperature=0, max_new_tokens=12))
    tiny_model.eval()
    own = tiny_model.generate(
        torch.tensor([prompts[0]]), do_sample=False, max_new_tokens=12, eos_token_id=list(tiny_chat.end_of_turn_ids)
    )
    assert list(completion.ids) == own[0, len(prompts[0]) :].tolist()


def test_first_tokens_follow_the_model_s_distribution(sampler, tiny_model, prompts):
    draws = 3000
    [completions] = sampler.sample(prompts[:1], [list(range(draws))], Sampling(temperature=1.5, max_new_tokens=1))
    with torch.no_grad():
        p = torch.softmax(tiny_model.eval()(torch.tensor([prompts[0]])).logits[0, -1].double() / 1.5, -1)
    observed = torch.bincount(torch.tensor([c.ids[0] for c in completions]), minlength=len(p))
    often = p > 5 / draws
    chi_square = ((observed - draws * p) ** 2 / (draws * p))[often].sum()
    assert chi_square < 2.2 * int(often.sum())


def test_a_longer_budget_continues_the_same_responses(sampler, prompts, seeds):
    short = sampler.sample(prompts, seeds, Sampling(max_new_tokens=5))
    long = sampler.sample(prompts, seeds, Sampling(max_new_tokens=80))
    for one, other in zip((c for own in short for c in own), (c for own in long for c in own), strict=True):
        assert other.ids[: len(one.ids)] == one.ids


def test_equal_seeds_give_equal_responses_and_other_seeds_others(sampler, prompts):
    [[first, again, other]] = sampler.sample(prompts[:1], [[7, 7, 8]], SAMPLING)
    assert first.ids == again.ids != other.ids


def test_every_end_of_turn_id_stops_a_response_and_is_kept(tiny_model, tiny_tokenizer, prompts):
    digits = tiny_tokenizer.convert_tokens_to_ids(list("0123456789"))
    chat = ChatFormat(tiny_tokenizer, digits)
    sampling = Sampling(temperature=3.0, max_new_tokens=60)
    [completions] = TransformersSampler(tiny_model, chat).sample(prompts[:1], [list(range(60))], sampling)
    stopped = [completion for completion in completions if completion.finish_reason == "stop"]
    assert len({completion.ids[-1] for completion in stopped}) > 3
    for completion in completions:
        assert not set(completion.ids[:-1]) & set(chat.end_of_turn_ids)
        assert (completion.ids[-1] in chat.end_of_turn_ids) == (completion.finish_reason == "stop")


def test_a_response_cut_by_the_budget_has_all_its_tokens(sampler, prompts, seeds):
    for completion in (c for own in sampler.sample(prompts, seeds, SAMPLING) for c in own):
        if completion.finish_reason == "length":
            assert len(completion.ids) == SAMPLING.max_new_tokens


def test_the_model_s_own_generation_config_does_not_interfere_and_is_given_back(tiny_model, tiny_chat, prompts, seeds):
    sampler = TransformersSampler(tiny_model, tiny_chat)
    reference = sampler.sample(prompts, seeds, SAMPLING)
    own = GenerationConfig(
        do_sample=True, temperature=0.1, top_k=1, top_p=0.1, repetition_penalty=9.0, suppress_tokens=[5, 6, 7],
        num_return_sequences=1, min_new_tokens=15, max_length=17, eos_token_id=9, no_repeat_ngram_size=1,
    )  # fmt: skip
    tiny_model.generation_config = own
    same(sampler.sample(prompts, seeds, SAMPLING), reference)
    assert tiny_model.generation_config is own


def test_modes_are_given_back_module_by_module_even_after_an_error(tiny_model, tiny_chat, prompts, monkeypatch):
    tiny_model.model.layers[0].eval()
    modes = [module.training for module in tiny_model.modules()]
    seen = []
    monkeypatch.setattr(tiny_model, "forward", lambda **_: (seen.append(tiny_model.training), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        TransformersSampler(tiny_model, tiny_chat).sample(prompts, [[1]] * len(prompts), SAMPLING)
    assert seen == [False]
    assert [module.training for module in tiny_model.modules()] == modes


def test_gradient_checkpointing_keeps_the_cache_and_sampling_leaves_training_intact(tiny_model, tiny_chat, prompts):
    sampler = TransformersSampler(tiny_model, tiny_chat)
    reference = sampler.sample(prompts, [[1]] * len(prompts), SAMPLING)
    tiny_model.gradient_checkpointing_enable()
    tiny_model.config.use_cache = False
    widths = []
    tiny_model.model.register_forward_pre_hook(
        lambda _, __, inputs: widths.append(inputs["input_ids"].shape[1]), with_kwargs=True
    )
    same(sampler.sample(prompts, [[1]] * len(prompts), SAMPLING), reference)
    assert set(widths[1:]) == {1}
    tiny_model(torch.tensor([prompts[0]])).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in tiny_model.parameters())


def test_a_lora_model_samples_as_its_base_while_the_adapter_is_new(tiny_model, tiny_chat, prompts, seeds):
    from peft import LoraConfig, get_peft_model

    reference = TransformersSampler(tiny_model, tiny_chat).sample(prompts, seeds, SAMPLING)
    config = tiny_model.generation_config
    adapted = get_peft_model(tiny_model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"], lora_dropout=0.5))
    same(TransformersSampler(adapted, tiny_chat).sample(prompts, seeds, SAMPLING), reference)
    assert adapted.get_base_model().generation_config is config
    assert adapted.training


def test_progress_counts_every_sampled_token_once(sampler, prompts, seeds):
    counts = []
    completions = sampler.sample(prompts, seeds, SAMPLING, on_tokens=counts.append)
    assert sum(counts) == sum(len(completion.ids) for own in completions for completion in own)


def test_a_request_beyond_the_context_is_refused_with_the_numbers(sampler, prompts):
    expected = r"prompt of 30 tokens and max_new_tokens 227 exceed the model's context of 256 tokens; lower"
    with pytest.raises(RecipeError, match=expected):
        sampler.sample([prompts[1][:30]], [[1]], Sampling(max_new_tokens=227))


def test_an_empty_prompt_is_refused(sampler):
    with pytest.raises(DataError, match="no tokens"):
        sampler.sample([[]], [[1]], SAMPLING)


def test_weights_that_are_not_finite_are_reported(sampler, tiny_model, prompts):
    with torch.no_grad():
        tiny_model.model.norm.weight.fill_(torch.nan)
    with pytest.raises(ModelError, match="not finite"):
        sampler.sample(prompts[:1], [[1]], SAMPLING)


def test_limits_below_one_are_refused(tiny_model, tiny_chat):
    with pytest.raises(RecipeError, match="batch_tokens 0"):
        TransformersSampler(tiny_model, tiny_chat, batch_tokens=0)
