from __future__ import annotations

import dataclasses

import pytest
import torch

from selfdistill.errors import RolloutError
from selfdistill.models.loading import ModelConfig, load_policy
from selfdistill.rollouts.config import RolloutsConfig
from selfdistill.rollouts.control import Served
from selfdistill.rollouts.sync.handshake import Stale, fixed_text, shake_hands, tolerance_of

SERVED = Served("v1", None)


@pytest.fixture
def engine(fake_control, model_folder):
    control = fake_control(model_folder)
    control.set_version("v1")
    return control


def test_the_same_weights_pass_with_a_difference_of_rounding(engine, full_policy):
    difference = shake_hands(engine, SERVED, fixed_text(full_policy), 1e-3)

    assert 0 <= difference.mean <= difference.max < 1e-5


def test_the_prefixes_are_nested_and_one_is_longer_than_a_block_of_a_prefix_cache(full_policy):
    text = fixed_text(full_policy)

    longest = text.prefixes[-1]
    assert len(text.prefixes) == 16 and len(longest) == 144
    assert all(prefix == longest[: len(prefix)] for prefix in text.prefixes)
    assert len(set(map(len, text.prefixes))) == 16
    assert text.logprobs.shape == (16, len(full_policy.tokenizer)) and text.logprobs.dtype == torch.float32


@pytest.mark.parametrize("context", [2, 10, 64])
def test_the_prefixes_leave_room_for_a_token_in_a_short_context(full_policy, context):
    full_policy.model.config.max_position_embeddings = context

    text = fixed_text(full_policy)

    assert max(map(len, text.prefixes)) == context - 1
    assert len(text.logprobs) == len(text.prefixes)


def test_the_embedded_models_tokenizer_can_read_the_text():
    policy = load_policy(ModelConfig(path="embedded", device="cpu"), seed=0)

    assert len(fixed_text(policy).prefixes) == 16


def test_scoring_the_text_changes_no_mode_no_gradient_and_no_random_generator(lora_policy):
    model = lora_policy.model
    model.train()
    frozen = next(module for name, module in model.named_modules() if name.endswith("q_proj"))
    frozen.eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()

    text = fixed_text(lora_policy)

    assert [module.training for module in model.modules()] == modes
    assert all(weight.grad is None for weight in model.parameters())
    assert not text.logprobs.requires_grad and torch.equal(torch.get_rng_state(), state)


def test_the_text_is_scored_with_the_adapters_on(lora_policy, change):
    before = fixed_text(lora_policy).logprobs
    change(lora_policy, 1)

    assert (fixed_text(lora_policy).logprobs - before).abs().mean() > 1e-2


def test_changed_weights_under_the_right_version_are_stale(engine, full_policy, change):
    change(full_policy, 1)

    with pytest.raises(Stale, match=r"http://engine:8000 calls its weights 'v1'.* nats on average \(0\.001 is allowed"):
        shake_hands(engine, SERVED, fixed_text(full_policy), 1e-3)


def test_the_right_weights_under_another_version_are_stale(engine, full_policy):
    engine.set_version("default")

    with pytest.raises(Stale, match="'default' and not 'v1'"):
        shake_hands(engine, SERVED, fixed_text(full_policy), 1e-3)

    assert "draw" not in engine.calls


def test_another_models_token_is_stale(engine, full_policy):
    engine.tampered = lambda drawn: [(99_999, -1.0), *drawn[1:]]

    with pytest.raises(Stale, match="drew the token 99999, and the trainer's vocabulary has"):
        shake_hands(engine, SERVED, fixed_text(full_policy), 1e-3)


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), float("inf")])
def test_a_log_probability_that_is_none_is_stale(engine, full_policy, value):
    engine.tampered = lambda drawn: [*drawn[:-1], (drawn[-1][0], value)]

    with pytest.raises(Stale, match="weights are damaged"):
        shake_hands(engine, SERVED, fixed_text(full_policy), 1e-3)


def test_too_few_answers_are_an_error(engine, full_policy):
    engine.tampered = lambda drawn: drawn[:3]

    with pytest.raises(RolloutError, match="drew 3 tokens behind 16 prompts"):
        shake_hands(engine, SERVED, fixed_text(full_policy), 1e-3)


def test_a_trainer_whose_own_weights_are_damaged_does_not_pass(engine, full_policy):
    text = fixed_text(full_policy)
    damaged = dataclasses.replace(text, logprobs=torch.full_like(text.logprobs, float("nan")))

    with pytest.raises(Stale):
        shake_hands(engine, SERVED, damaged, 1e-3)


@pytest.mark.parametrize(
    ("dtype", "asked", "expected"), [("float32", None, 1e-3), ("bfloat16", None, 0.2), ("float32", 0.2, 0.2)]
)
def test_the_tolerance_is_the_recipes_or_the_dtypes(model_folder, dtype, asked, expected):
    policy = load_policy(ModelConfig(path=str(model_folder), device="cpu", dtype=dtype), seed=0)

    assert tolerance_of(policy, RolloutsConfig(handshake_tolerance=asked)) == expected
