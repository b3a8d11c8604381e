"""A recipe on a random two-layer model in a folder, and what a plan says of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from selfdistill.models.loading import ModelConfig
from selfdistill.planning.layout import Layout
from selfdistill.planning.lengths import Lengths
from selfdistill.planning.setup import Setup, setup_of
from selfdistill.planning.shape import ModelShape, read_shape, shape_of
from selfdistill.training.recipe import Recipe, parse_recipe

QWEN3_8B: dict[str, Any] = {
    "vocab_size": 151_936,
    "hidden_size": 4096,
    "intermediate_size": 12_288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40_960,
    "tie_word_embeddings": False,
}
"""Qwen3-8B as its authors publish it (arXiv 2505.09388)."""
LENGTHS = Lengths(prompt=40, teacher_prompt=90, response=24, mean_prompt=30.0, mean_teacher_prompt=80.0)

MakeSetup = Callable[..., Setup]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def folder(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    """A random Qwen3 whose embedding is not its head."""
    config = Qwen3Config(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        eos_token_id=tiny_tokenizer.eos_token_id,
        pad_token_id=tiny_tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    path = tmp_path / "model"
    Qwen3ForCausalLM(config).save_pretrained(path)
    tiny_tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def qwen3_8b() -> ModelShape:
    return shape_of(Qwen3Config(**QWEN3_8B))


@pytest.fixture
def recipe(folder: Path) -> Callable[..., Recipe]:
    def make(method: str = "paint", **sections: dict[str, Any]) -> Recipe:
        model = {"path": str(folder), "device": "cpu"} | sections.pop("model", {})
        return parse_recipe({"method": method, "model": model, **sections})

    return make


@pytest.fixture
def setup(recipe: Callable[..., Recipe]) -> MakeSetup:
    """Make the setup of the random model's recipe, or of another shape."""

    def make(
        method: str = "paint",
        *,
        shape: ModelShape | None = None,
        lengths: Lengths = LENGTHS,
        layout: Layout | None = None,
        device: str = "cpu",
        **sections: dict[str, Any],
    ) -> Setup:
        made = recipe(method, **sections)
        own = read_shape(ModelConfig(path=made.model.path)) if shape is None else shape
        return setup_of(made, own, lengths, layout or Layout(), device)  # type: ignore[arg-type]

    return make
