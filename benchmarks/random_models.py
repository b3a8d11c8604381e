"""Seeded random Qwen3 models of a given size with the embedded model's tokenizer, so that the arithmetic task runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Size:
    """Widths of a model."""

    layers: int
    width: int
    inner: int
    heads: int
    vocabulary: int | None = None
    """Rows of the embedding; None: those of the embedded model's tokenizer."""


SIZES = {
    "tiny": Size(layers=2, width=64, inner=128, heads=2),
    "5M": Size(layers=6, width=256, inner=768, heads=4),
    "20M": Size(layers=7, width=512, inner=1408, heads=8),
    "100M": Size(layers=8, width=1024, inner=2816, heads=16, vocabulary=8192),
}
"""By their number of parameters, roughly."""


def write_model(name: str, folder: Path, seed: int = 0) -> str:
    """Write the model into ``folder/name`` unless it is there, and return that path; ``embedded`` is left as it is."""
    if name == "embedded":
        return name
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    from selfdistill.models.embedded import embedded_path

    target = folder / name
    if (target / "config.json").exists():
        return str(target)
    size, tokenizer = SIZES[name], AutoTokenizer.from_pretrained(embedded_path())
    config = Qwen3Config(
        vocab_size=size.vocabulary or len(tokenizer),
        hidden_size=size.width,
        intermediate_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=max(1, size.heads // 2),
        head_dim=size.width // size.heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=0.02,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    model: Any = Qwen3ForCausalLM(config)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return str(target)


def open_recipe(method: str, model: str, folder: Path, overrides: list[str]) -> Any:
    """Return the embedded recipe of a method on the model at a path, which evaluates and saves nothing."""
    from importlib.resources import files

    from selfdistill.training.recipe import load_recipe

    path = Path(str(files("selfdistill"))) / "recipes" / "embedded" / f"{method}.yaml"
    settled = [
        f"output.folder={folder}",
        f"model.path={model}",
        "train.steps=100000",
        "train.evaluate_first=false",
        "train.save_every=null",
        "output.save_model=false",
        "data.eval_limit=1",
    ]
    return load_recipe(path, [*settled, *overrides])
