from __future__ import annotations

import dataclasses
import errno
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from selfdistill.errors import RolloutError
from selfdistill.models.loading import LoraConfig, ModelConfig, load_policy, save_pretrained
from selfdistill.rollouts.sync import export
from selfdistill.rollouts.sync.export import base_folder, export_adapter, export_weights


def test_an_adapter_that_peft_loads_gives_the_trainers_log_probabilities(
    lora_policy, model_folder, change, logits, tmp_path
):
    change(lora_policy, 1)

    size = export_adapter(lora_policy, tmp_path / "adapter")

    base = AutoModelForCausalLM.from_pretrained(str(model_folder))
    loaded = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    expected = logits(lora_policy.model).log_softmax(-1)
    torch.testing.assert_close(logits(loaded).log_softmax(-1), expected, atol=1e-5, rtol=0)
    assert size == sum(path.stat().st_size for path in (tmp_path / "adapter").iterdir())


def test_an_adapter_folder_holds_two_files_float32_and_the_name_of_no_base(lora_policy, tmp_path):
    export_adapter(lora_policy, tmp_path / "adapter")

    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] is None
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (4, 8, "LORA")
    weights = safetensors.torch.load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert all(".lora_A.weight" in name or ".lora_B.weight" in name for name in weights)


def test_an_adapter_is_exported_without_looking_anything_up(lora_policy, tmp_path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("looked up on the hub")

    monkeypatch.setattr("peft.utils.save_and_load.check_file_exists_on_hf_hub", refuse)
    lora_policy.model.peft_config["default"].base_model_name_or_path = "someone/elsewhere"

    export_adapter(lora_policy, tmp_path / "adapter")


def test_all_weights_have_no_adapters_to_export(full_policy, tmp_path):
    with pytest.raises(RolloutError, match="has no adapters"):
        export_adapter(full_policy, tmp_path / "adapter")


def test_a_tied_model_is_exported_untied_with_the_same_logits(full_policy, change, logits, tmp_path):
    change(full_policy, 1)

    export_weights(full_policy, tmp_path / "full")

    loaded = AutoModelForCausalLM.from_pretrained(str(tmp_path / "full")).eval()
    torch.testing.assert_close(logits(loaded), logits(full_policy.model), atol=0, rtol=0)
    assert loaded.lm_head.weight is not loaded.model.embed_tokens.weight
    assert json.loads((tmp_path / "full" / "config.json").read_text())["tie_word_embeddings"] is False
    assert (tmp_path / "full" / "generation_config.json").is_file()
    tokenizer = AutoTokenizer.from_pretrained(str(tmp_path / "full"))
    assert tokenizer.chat_template == full_policy.tokenizer.chat_template


def test_exporting_leaves_the_policy_tied(full_policy, tmp_path):
    export_weights(full_policy, tmp_path / "full")

    model = full_policy.model
    assert model.config.tie_word_embeddings is True
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_large_weights_are_split_into_files_that_load_as_one(full_policy, logits, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "SHARD", "20KB")

    export_weights(full_policy, tmp_path / "full")

    assert len(list((tmp_path / "full").glob("*.safetensors"))) > 2
    index = json.loads((tmp_path / "full" / "model.safetensors.index.json").read_text())
    assert "lm_head.weight" in index["weight_map"]
    loaded = AutoModelForCausalLM.from_pretrained(str(tmp_path / "full")).eval()
    torch.testing.assert_close(logits(loaded), logits(full_policy.model), atol=0, rtol=0)


def test_bfloat16_weights_are_exported_as_they_are(model_folder, tmp_path):
    policy = load_policy(ModelConfig(path=str(model_folder), device="cpu", dtype="bfloat16"), seed=0)

    export_weights(policy, tmp_path / "full")

    weights = safetensors.torch.load_file(tmp_path / "full" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    assert torch.equal(weights["lm_head.weight"], policy.model.lm_head.weight)


def test_of_a_policy_with_adapters_the_base_is_exported_without_them(
    lora_policy, model_folder, change, logits, tmp_path
):
    change(lora_policy, 1)
    before = logits(lora_policy.model)

    export_weights(lora_policy, tmp_path / "full")

    base = AutoModelForCausalLM.from_pretrained(str(model_folder)).eval()
    loaded = AutoModelForCausalLM.from_pretrained(str(tmp_path / "full")).eval()
    torch.testing.assert_close(logits(loaded), logits(base), atol=0, rtol=0)
    assert torch.equal(logits(lora_policy.model), before)


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error")])
def test_a_full_disk_leaves_no_folder_and_says_where_and_what_to_do(lora_policy, tmp_path, monkeypatch, failure):
    def full(_weights, path, **_options):
        Path(path).write_bytes(b"half")
        raise failure

    monkeypatch.setattr("safetensors.torch.save_file", full)

    with pytest.raises(RolloutError, match=r"cannot be written to '.*adapter' .*rollouts\.server\.folder") as caught:
        export_adapter(lora_policy, tmp_path / "sync" / "adapter")

    assert list((tmp_path / "sync").iterdir()) == []
    assert "\n" not in str(caught.value)


def test_a_full_disk_leaves_no_folder_of_all_weights(full_policy, tmp_path, monkeypatch):
    def full(*_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(type(full_policy.tokenizer), "save_pretrained", full)

    with pytest.raises(RolloutError, match="No space left on device"):
        export_weights(full_policy, tmp_path / "sync" / "full")

    assert list((tmp_path / "sync").iterdir()) == []


def test_a_folder_that_cannot_be_made_is_one_sentence(lora_policy, tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(RolloutError, match="cannot be written"):
        export_adapter(lora_policy, tmp_path / "file" / "adapter")


def test_an_engine_for_adapters_starts_from_the_models_own_folder(lora_policy, model_folder, tmp_path):
    assert base_folder(lora_policy, tmp_path / "base") == model_folder
    assert not (tmp_path / "base").exists()


def test_an_engine_for_a_model_of_the_hub_starts_from_its_cached_files(lora_policy, tmp_path, monkeypatch):
    named = lora_policy.config.model_copy(update={"path": "someone/model"})
    policy = dataclasses.replace(lora_policy, config=named)
    cached = {("someone/model", "main"): str(tmp_path / "cache" / "config.json")}
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache", lambda name, _file, *, revision: cached.get((name, revision))
    )

    assert base_folder(policy, tmp_path / "base") == tmp_path / "cache"
    cached.clear()
    assert base_folder(policy, tmp_path / "base") == tmp_path / "base"


def test_an_engine_for_a_tied_model_starts_from_an_untied_copy(full_policy, logits, tmp_path):
    folder = base_folder(full_policy, tmp_path / "base")

    assert folder == tmp_path / "base"
    loaded = AutoModelForCausalLM.from_pretrained(str(folder)).eval()
    torch.testing.assert_close(logits(loaded), logits(full_policy.model), atol=0, rtol=0)


def test_an_engine_for_an_untied_model_starts_from_the_models_own_folder(full_policy, tmp_path):
    untied = base_folder(full_policy, tmp_path / "untied")
    policy = load_policy(ModelConfig(path=str(untied), device="cpu"), seed=0)

    assert base_folder(policy, tmp_path / "base") == untied


def test_the_embedded_model_has_a_folder_for_engines(tmp_path):
    policy = load_policy(ModelConfig(path="embedded", device="cpu", lora=LoraConfig(r=2)), seed=0)

    assert (base_folder(policy, tmp_path / "base") / "model.safetensors").is_file()


@pytest.mark.parametrize("lora", [None, LoraConfig(r=2)])
def test_an_engine_for_a_merged_model_starts_from_a_copy_of_the_merged_weights(
    lora_policy, change, logits, tmp_path, lora
):
    change(lora_policy, 1)
    save_pretrained(lora_policy, tmp_path / "earlier", "card")
    policy = load_policy(ModelConfig(path=str(tmp_path / "earlier"), device="cpu", lora=lora), seed=0)

    folder = base_folder(policy, tmp_path / "base")

    assert folder == tmp_path / "base"
    loaded = AutoModelForCausalLM.from_pretrained(str(folder)).eval()
    # Fresh adapters change nothing.
    torch.testing.assert_close(logits(loaded), logits(policy.model), atol=1e-5, rtol=0)
    torch.testing.assert_close(logits(loaded), logits(lora_policy.model), atol=1e-3, rtol=0)
