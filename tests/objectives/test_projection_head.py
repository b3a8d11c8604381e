"""The projection head that a loss applies is the model's own head."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from selfdistill.errors import ModelError
from selfdistill.models.head import MixedProjection, Projection, backbone_of, check_projection, projection_of

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def qwen(**settings):
    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(**SIZES, **settings))


FAMILIES = {
    "qwen3": lambda: qwen(),
    "qwen3 tied": lambda: qwen(tie_word_embeddings=True),
    "cohere (scale)": lambda: CohereForCausalLM(CohereConfig(**SIZES, logit_scale=0.25)),
    "granite (inverse scale)": lambda: GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=4.0)),
    "gemma 2 (soft cap)": lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, final_logit_softcapping=0.5)),
    "phi (bias)": lambda: PhiForCausalLM(PhiConfig(**SIZES)),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_projection_of_a_model_yields_its_own_logits(family):
    model = FAMILIES[family]()
    head = model.get_output_embeddings()
    with torch.no_grad():
        head.weight.mul_(20)  # logits large enough for a cap and a scale to matter
        if head.bias is not None:
            head.bias.normal_()
    projection = projection_of(model)
    assert projection.weight is head.weight and (projection.width, projection.vocabulary) == (16, 40)
    check_projection(model, projection)


@pytest.mark.parametrize("family", ["cohere (scale)", "granite (inverse scale)", "gemma 2 (soft cap)"])
def test_a_forgotten_step_of_the_head_is_noticed(family):
    model = FAMILIES[family]()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)
    with pytest.raises(ModelError, match="differ from the model's own"):
        check_projection(model, Projection(model.get_output_embeddings().weight))


def test_a_sixteen_bit_model_passes_within_its_own_rounding():
    model = qwen().bfloat16()
    check_projection(model, projection_of(model))
    assert projection_of(model).logits(torch.zeros(1, 16, dtype=torch.bfloat16)).dtype == torch.float32


def lora(**settings):
    model = get_peft_model(qwen(), LoraConfig(r=2, target_modules=["q_proj"], **settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    return model


def test_an_adapted_model_is_seen_through_its_wrapper():
    model = lora()
    check_projection(model, projection_of(model))
    ids = torch.tensor([[3, 4, 5]])
    hidden = backbone_of(model)(input_ids=ids).last_hidden_state[0]
    torch.testing.assert_close(projection_of(model).logits(hidden), model(input_ids=ids).logits[0])
    with model.disable_adapter():
        assert not torch.allclose(backbone_of(model)(input_ids=ids).last_hidden_state[0], hidden)


def test_a_trained_copy_of_the_head_is_used_while_the_adapter_is_on():
    model = lora(modules_to_save=["lm_head"])
    wrapper = model.get_base_model().lm_head
    with torch.no_grad():
        wrapper.modules_to_save["default"].weight.add_(1)
    check_projection(model, projection_of(model))
    assert projection_of(model).weight is wrapper.modules_to_save["default"].weight
    with model.disable_adapter():
        assert projection_of(model).weight is wrapper.original_module.weight
        check_projection(model, projection_of(model))


def test_an_adapter_on_the_head_is_refused():
    model = get_peft_model(qwen(), LoraConfig(r=2, target_modules=["q_proj", "lm_head"]))
    with pytest.raises(ModelError, match="leave lm_head out"):
        projection_of(model)


def test_a_model_without_a_language_modelling_head_is_refused():
    with pytest.raises(ModelError, match="use a transformers causal LM"):
        projection_of(torch.nn.Linear(2, 2))
    with pytest.raises(ModelError, match="use a transformers causal LM"):
        backbone_of(torch.nn.Linear(2, 2))


def test_checking_leaves_the_training_mode_as_it_was():
    model = qwen().train()
    check_projection(model, projection_of(model))
    assert model.training
    check_projection(model.eval(), projection_of(model))
    assert not model.training


def test_a_mixed_projection_mixes_logits_of_two_hidden_states():
    generator = torch.Generator().manual_seed(0)
    first, live = torch.randn(2, 7, 3, generator=generator)
    hidden = torch.randn(4, 6, generator=generator)
    head = MixedProjection(Projection(first, scale=2.0), Projection(live), mix=0.1)
    expected = 0.9 * 2.0 * hidden[:, :3] @ first.T + 0.1 * hidden[:, 3:] @ live.T
    torch.testing.assert_close(head.logits(hidden), expected)
    torch.testing.assert_close(head.to(torch.float64).logits(hidden), expected.double(), atol=1e-6, rtol=1e-5)
    assert (head.width, head.vocabulary) == (6, 7)


@pytest.mark.parametrize("mix", [-0.1, 1.1])
def test_a_mix_outside_0_to_1_is_refused(mix):
    with pytest.raises(ModelError, match="mix="):
        MixedProjection(Projection(torch.eye(2)), Projection(torch.eye(2)), mix)


def test_two_vocabularies_cannot_be_mixed():
    with pytest.raises(ModelError, match="one vocabulary"):
        MixedProjection(Projection(torch.zeros(3, 2)), Projection(torch.zeros(4, 2)), 0.5)


def test_casting_once_keeps_the_gradient_to_the_original_weights():
    weight = torch.randn(3, 2, dtype=torch.bfloat16, requires_grad=True)
    Projection(weight).to(torch.float32).logits(torch.ones(1, 2)).sum().backward()
    assert weight.grad.dtype == torch.bfloat16 and weight.grad.tolist() == [[1, 1]] * 3
