"""A model's shape is that of the model itself, though no weights are read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers
from transformers import LlamaConfig, Qwen3Config

from selfdistill.errors import ModelError
from selfdistill.models.loading import LoraConfig, ModelConfig, load_policy
from selfdistill.planning.shape import ModelShape, read_shape, shape_of


@pytest.mark.parametrize("lora", [None, LoraConfig(r=4, alpha=8), LoraConfig(r=2, alpha=4, targets=("q_proj",))])
@pytest.mark.parametrize("path", ["embedded", "folder"])
def test_parameters_are_those_of_the_loaded_model(path: str, lora: LoraConfig | None, folder: Path) -> None:
    config = ModelConfig(path=str(folder) if path == "folder" else path, device="cpu", lora=lora)
    loaded = list(load_policy(config, 0).model.parameters())
    shape = read_shape(config)
    assert shape.parameters + shape.adapter_parameters(lora) == sum(one.numel() for one in loaded)
    assert (shape.adapter_parameters(lora) if lora else shape.parameters) == sum(
        one.numel() for one in loaded if one.requires_grad
    )


def test_a_configuration_without_weights_is_enough(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert read_shape(ModelConfig(path=str(folder))).layers == 2


def test_qwen3_8b_has_its_published_size(qwen3_8b: ModelShape) -> None:
    assert qwen3_8b.parameters == 8_190_735_360
    assert not qwen3_8b.tied and qwen3_8b.normed_heads and qwen3_8b.is_plain
    assert (qwen3_8b.query_width, qwen3_8b.kv_width, qwen3_8b.context) == (4096, 1024, 40_960)
    outside = qwen3_8b.parameters - qwen3_8b.layers * qwen3_8b.layer_parameters
    assert outside == 2 * qwen3_8b.head_parameters + qwen3_8b.hidden  # embedding, head, last norm


def test_a_tied_head_is_counted_once() -> None:
    settings = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    tied, untied = (shape_of(LlamaConfig(vocab_size=50, tie_word_embeddings=tie, **settings)) for tie in (True, False))
    assert tied.tied and not untied.tied and not tied.normed_heads
    assert untied.parameters - tied.parameters == tied.head_parameters == 50 * 32


def test_adapters_without_their_own_configuration_have_their_base_s_shape(folder: Path, tmp_path: Path) -> None:
    adapters = tmp_path / "adapters"
    adapters.mkdir()
    (adapters / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(folder)}))
    assert read_shape(ModelConfig(path=str(adapters))) == read_shape(ModelConfig(path=str(folder)))
    (adapters / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="names no base model"):
        read_shape(ModelConfig(path=str(adapters)))


def test_a_model_that_is_nowhere_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*arguments: object, **settings: object) -> None:
        raise OSError("We couldn't connect\nto anything")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", unreachable)
    with pytest.raises(ModelError, match=r"'Qwen/Qwen3-8B' is neither in a folder here nor.*no weights are needed"):
        read_shape(ModelConfig(path="Qwen/Qwen3-8B"))


def test_a_model_that_generates_nothing_is_refused() -> None:
    with pytest.raises(ModelError, match="no causal language model"):
        shape_of(transformers.T5Config())


def test_an_unknown_lora_target_names_the_nearest() -> None:
    shape = shape_of(Qwen3Config(vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=1))
    with pytest.raises(ModelError, match="did you mean 'q_proj'"):
        shape.adapter_parameters(LoraConfig(targets=("q_prog",)))
