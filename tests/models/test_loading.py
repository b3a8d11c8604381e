"""Loading, adapting and saving the policy, on a random Qwen3 of a few thousand weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertForMaskedLM, Qwen3Config, Qwen3ForCausalLM

from selfdistill.errors import ModelError
from selfdistill.models.embedded import embedded_path
from selfdistill.models.folders import complete_folder
from selfdistill.models.loading import (
    ATTENTION_AND_MLP,
    LoraConfig,
    ModelConfig,
    Policy,
    load_policy,
    resolve_source,
    save_pretrained,
)
from selfdistill.teachers.weights import trainable

CARD = "# A model\n"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random two-layer Qwen3 and the embedded model's tokenizer."""
    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = AutoTokenizer.from_pretrained(embedded_path())
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=128,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def load(folder: Path, **settings: object) -> Policy:
    return load_policy(ModelConfig.model_validate({"path": str(folder), "device": "cpu", **settings}), seed=1)


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(10).unsqueeze(0)).logits


def clone(folder: Path, target: Path, *, without: str = "") -> Path:
    target.mkdir()
    for file in folder.iterdir():
        if file.name != without:
            (target / file.name).write_bytes(file.read_bytes())
    return target


def test_the_embedded_model_is_the_default_and_trains_all_its_weights() -> None:
    policy = load_policy(ModelConfig(device="cpu"), seed=0)
    assert set(trainable(policy.model)) == dict(policy.model.named_parameters()).keys()
    assert policy.tokenizer.eos_token_id in policy.chat.end_of_turn_ids
    assert policy.device == torch.device("cpu") and not policy.has_adapters and not policy.model.training


def test_bfloat16_is_a_setting_of_the_weights(tiny: Path) -> None:
    policy = load(tiny, dtype="bfloat16")
    assert {weight.dtype for weight in policy.model.parameters()} == {torch.bfloat16}


def test_adapters_are_the_only_trainable_weights_and_float32_beside_a_bf16_base(tiny: Path) -> None:
    policy = load(tiny, dtype="bfloat16", lora={"r": 2, "alpha": 4})
    trained = trainable(policy.model)
    assert all(".lora_A." in name or ".lora_B." in name for name in trained)
    assert {name.split(".lora_")[0].rsplit(".", 1)[1] for name in trained} == set(ATTENTION_AND_MLP)
    assert {weight.dtype for weight in trained.values()} == {torch.float32}
    assert len(trained) == 2 * 7 * 2
    frozen = {weight.dtype for weight in policy.model.parameters() if not weight.requires_grad}
    assert frozen == {torch.bfloat16}


def test_fresh_adapters_leave_the_model_as_it_was(tiny: Path) -> None:
    assert torch.equal(logits(load(tiny, lora={"r": 2}).model), logits(load(tiny).model))


def test_adapters_depend_on_the_seed_alone(tiny: Path) -> None:
    config = ModelConfig(path=str(tiny), device="cpu", lora=LoraConfig(r=2))

    def weights(seed: int) -> torch.Tensor:
        return torch.cat([weight.flatten() for weight in trainable(load_policy(config, seed).model).values()])

    torch.manual_seed(5)
    first = weights(1)
    torch.manual_seed(6)
    state = torch.get_rng_state()
    assert torch.equal(first, weights(1))
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(first, weights(2))


@pytest.mark.parametrize("lora", [None, {"r": 2}])
def test_gradient_checkpointing_changes_no_gradient(tiny: Path, lora: dict[str, int] | None) -> None:
    def gradients(checkpointing: bool) -> dict[str, torch.Tensor]:
        policy = load(tiny, lora=lora, gradient_checkpointing=checkpointing)
        policy.model.train()
        ids = torch.arange(10).unsqueeze(0)
        policy.model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        return {name: weight.grad for name, weight in trainable(policy.model).items() if weight.grad is not None}

    plain, recomputed = gradients(False), gradients(True)
    assert plain and plain.keys() == recomputed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(gradient, recomputed[name])


def test_a_saved_model_loads_with_transformers_alone(tiny: Path, tmp_path: Path) -> None:
    policy = load(tiny)
    with torch.no_grad():
        for weight in policy.model.parameters():
            weight.add_(0.01)
    save_pretrained(policy, tmp_path / "final", CARD)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "final")
    assert torch.equal(logits(again), logits(policy.model))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "final")
    assert tokenizer.chat_template == policy.tokenizer.chat_template
    assert (tmp_path / "final" / "README.md").read_text() == CARD
    assert [entry.name for entry in tmp_path.iterdir()] == ["final"]


def test_saved_adapters_load_with_peft_and_merge_when_loaded_here(tiny: Path, tmp_path: Path) -> None:
    from peft import AutoPeftModelForCausalLM

    policy = load(tiny, lora={"r": 2})
    with torch.no_grad():
        for weight in trainable(policy.model).values():
            weight.add_(0.05)
    save_pretrained(policy, tmp_path / "final", CARD)
    assert not (tmp_path / "final" / "config.json").exists()
    assert (tmp_path / "final" / "README.md").read_text() == CARD
    expected = logits(policy.model)
    torch.testing.assert_close(logits(AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "final"))), expected)
    merged = load(tmp_path / "final")
    torch.testing.assert_close(logits(merged.model), expected, rtol=1e-4, atol=1e-5)
    assert set(trainable(merged.model)) == dict(load(tiny).model.named_parameters()).keys()


def test_kept_adapters_stay_float32_beside_a_bf16_base_and_change_nothing(tiny: Path, tmp_path: Path) -> None:
    policy = load(tiny, dtype="bfloat16", lora={"r": 2, "alpha": 6})
    with torch.no_grad():
        for weight in trainable(policy.model).values():
            weight.add_(0.05)
    save_pretrained(policy, tmp_path / "final", CARD)
    kept = load_policy(ModelConfig(path=str(tmp_path / "final"), dtype="bfloat16", device="cpu"), 0, keep_adapters=True)
    assert kept.has_adapters and not kept.model.training
    assert kept.config.lora is not None and (kept.config.lora.r, kept.config.lora.alpha) == (2, 6)
    assert kept.config.path == str(tiny)
    assert torch.equal(logits(kept.model), logits(policy.model))
    assert not torch.equal(logits(load(tmp_path / "final", dtype="bfloat16").model), logits(policy.model))


def test_a_model_without_adapters_loads_the_same_whether_or_not_they_are_kept(tiny: Path) -> None:
    kept = load_policy(ModelConfig(path=str(tiny), device="cpu"), 0, keep_adapters=True)
    assert not kept.has_adapters
    assert torch.equal(logits(kept.model), logits(load(tiny).model))


def test_saving_again_replaces_the_folder_as_a_whole(tiny: Path, tmp_path: Path) -> None:
    policy = load(tiny)
    save_pretrained(policy, tmp_path / "final", CARD)
    (tmp_path / "final" / "stray.txt").write_text("from the first time")
    save_pretrained(policy, tmp_path / "final", "# Second\n")
    assert not (tmp_path / "final" / "stray.txt").exists()
    assert (tmp_path / "final" / "README.md").read_text() == "# Second\n"


def test_an_interrupted_save_leaves_the_previous_folder(tmp_path: Path) -> None:
    target = tmp_path / "final"
    with complete_folder(target) as partial:
        (partial / "a").write_text("complete")
    with pytest.raises(KeyboardInterrupt), complete_folder(target) as partial:
        (partial / "b").write_text("half")
        raise KeyboardInterrupt
    assert [entry.name for entry in tmp_path.rglob("*")] == ["final", "a"]


def test_saving_into_a_file_says_so(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="could not be saved"):
        save_pretrained(load(tiny), tmp_path / "file" / "final", CARD)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"there is no folder .*nowhere"):
        load(tmp_path / "nowhere")


def test_a_folder_without_a_model_and_a_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_text("")
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        load(tmp_path)
    with pytest.raises(ModelError, match="is a file"):
        load(tmp_path / "weights.bin")


def test_a_misspelt_built_in_model_names_the_nearest() -> None:
    with pytest.raises(ModelError, match="did you mean 'embedded'"):
        resolve_source("embeded")
    assert resolve_source("owner/name") == "owner/name"


def test_a_hub_id_that_cannot_be_reached_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoConfig

    def offline(*_: object, **__: object) -> None:
        raise OSError("We couldn't connect to the hub.\nsecond line")

    monkeypatch.setattr(AutoConfig, "from_pretrained", offline)
    with pytest.raises(ModelError, match=r"'owner/name' is no folder here .*couldn't connect.*give a local folder"):
        load_policy(ModelConfig(path="owner/name", device="cpu"), seed=0)


def test_an_encoder_is_not_a_policy(tmp_path: Path) -> None:
    config = BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    BertForMaskedLM(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="not a causal language model but BertForMaskedLM"):
        load(tmp_path)


def test_a_model_that_brings_code_is_refused_unless_asked_for(tiny: Path, tmp_path: Path) -> None:
    folder = clone(tiny, tmp_path / "custom")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "unheard_of", "auto_map": {"AutoConfig": "code.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text("raise SystemExit('the code was run')")
    with pytest.raises(ModelError, match="brings its own code"):
        load(folder)


def test_a_tokenizer_without_chat_template_is_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no chat template"):
        load(clone(tiny, tmp_path / "bare", without="chat_template.jinja"))


def test_damaged_weights_are_an_error(tiny: Path, tmp_path: Path) -> None:
    folder = clone(tiny, tmp_path / "damaged")
    (folder / "model.safetensors").write_bytes((tiny / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(folder)


def test_missing_weights_are_an_error_rather_than_random(tiny: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = clone(tiny, tmp_path / "incomplete")
    weights = load_file(folder / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"no weights for model\.layers\.1\.mlp\.up_proj\.weight"):
        load(folder)


def test_an_unknown_lora_target_names_the_nearest(tiny: Path) -> None:
    with pytest.raises(ModelError, match=r"model\.lora\.targets.*'query_proj'.*did you mean"):
        load(tiny, lora={"targets": ["q_proj", "query_proj"]})


def test_the_output_embedding_takes_no_adapter(tiny: Path) -> None:
    with pytest.raises(ModelError, match="'lm_head'"):
        load(tiny, lora={"targets": ["lm_head"]})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_asking_for_cuda_without_a_device_is_an_error(tiny: Path) -> None:
    with pytest.raises(ModelError, match=r"model\.device"):
        load(tiny, device="cuda")


@pytest.mark.parametrize("settings", [{"pth": "x"}, {"dtype": "float16"}, {"path": ""}, {"lora": {"rank": 4}}])
def test_unknown_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ModelConfig.model_validate(settings)
