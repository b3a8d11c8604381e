"""The shape of a model, from its configuration alone: no weights are read, none are allocated.

In: a recipe's ``model`` section, or a configuration of transformers. Out: a :class:`ModelShape`. The model is built on
torch's meta device, where parameters have sizes and no memory, so the counts are the model's own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from selfdistill.errors import ModelError, nearest
from selfdistill.models.loading import LoraConfig, ModelConfig, resolve_source

PLAIN = ("llama", "mistral", "qwen2", "qwen3", "olmo2", "olmo3", "smollm3", "granite")
"""Model types whose blocks are what :mod:`selfdistill.planning.activations` counts: attention and one gated MLP."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Numbers of parameters and widths; apart from counts, everything is per position."""

    model_type: str
    parameters: int
    """All of them, tied ones once, without adapters."""
    layers: int
    hidden: int
    """H."""
    intermediate: int
    """Width inside an MLP."""
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    """V, rows of the projection head."""
    layer_parameters: int
    """Of the largest block."""
    head_parameters: int
    """Of the projection head, whether it is tied or not."""
    tied: bool
    """Whether the head is the embedding."""
    normed_heads: bool
    """Whether queries and keys are normalised (Qwen3)."""
    linears: Mapping[str, int]
    """By the last part of its name: in + out features, summed over all linear layers of that name but the head."""
    context: int
    """Positions that prompt and response may have together."""

    @property
    def query_width(self) -> int:
        """Width of all queries."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Width of all keys (or values)."""
        return self.kv_heads * self.head_dim

    @property
    def is_plain(self) -> bool:
        """Whether the formula for activations was made for blocks like these."""
        return self.model_type in PLAIN

    def adapter_parameters(self, lora: LoraConfig | None) -> int:
        """Return the parameters of LoRA adapters: r (in + out) per adapted layer (arXiv 2106.09685, section 4.1).

        Raises:
            ModelError: a target that the model does not have.
        """
        if lora is None:
            return 0
        for target in lora.targets:
            if target not in self.linears:
                hint = nearest(target, self.linears)
                raise ModelError(f"model.lora.targets: the model has no linear layer {target!r} to adapt{hint}")
        return lora.r * sum(self.linears[target] for target in dict.fromkeys(lora.targets))


def read_shape(config: ModelConfig) -> ModelShape:
    """Return the shape of a recipe's model from its ``config.json``: in a folder, in the hub's cache, or on the hub.

    Raises:
        ModelError: there is no configuration to be had, or it is no causal language model's.
    """
    source = resolve_source(config.path)
    adapters = Path(source) / "adapter_config.json"
    if adapters.is_file() and not (Path(source) / "config.json").is_file():
        base = json.loads(adapters.read_text(encoding="utf-8")).get("base_model_name_or_path")
        if not base:
            raise ModelError(f"model.path: {adapters} names no base model; add base_model_name_or_path")
        source = resolve_source(base)
    return shape_of(_configuration(source, config), trust_remote_code=config.trust_remote_code)


def shape_of(configuration: Any, *, trust_remote_code: bool = False) -> ModelShape:
    """Return the shape of the model that a configuration of transformers describes.

    Raises:
        ModelError: transformers cannot make a causal language model of it.
    """
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(configuration, trust_remote_code=trust_remote_code)
    except (ValueError, KeyError, ImportError, RuntimeError) as error:
        raise ModelError(
            f"model.path: no causal language model can be made of this configuration ({_line(error)}); choose a model "
            "that generates text"
        ) from error
    return _measured(model)


def _measured(model: Any) -> ModelShape:
    text = model.config.get_text_config()
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    linears: dict[str, int] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module is not head:
            last = name.rpartition(".")[2]
            linears[last] = linears.get(last, 0) + module.in_features + module.out_features
    heads = int(text.num_attention_heads)
    return ModelShape(
        model_type=str(text.model_type),
        parameters=sum(one.numel() for one in model.parameters()),
        layers=int(text.num_hidden_layers),
        hidden=int(text.hidden_size),
        intermediate=int(getattr(text, "intermediate_size", None) or 4 * text.hidden_size),
        heads=heads,
        kv_heads=int(getattr(text, "num_key_value_heads", None) or heads),
        head_dim=int(getattr(text, "head_dim", None) or text.hidden_size // heads),
        vocabulary=int(head.weight.shape[0]),
        layer_parameters=_largest_block(model, int(text.num_hidden_layers)),
        head_parameters=int(head.weight.numel()),
        tied=head.weight is embedding.weight,
        normed_heads=any(name.endswith("q_norm") for name, _ in model.named_modules()),
        linears=linears,
        context=int(getattr(text, "max_position_embeddings", None) or 1_000_000),
    )


def _largest_block(model: nn.Module, layers: int) -> int:
    """Return the parameters of the largest of the model's blocks."""
    lists = (one for one in model.modules() if isinstance(one, nn.ModuleList) and len(one) == layers)
    sizes = [sum(parameter.numel() for parameter in block.parameters()) for blocks in lists for block in blocks]
    return max(sizes, default=0)


def _configuration(source: str, config: ModelConfig) -> Any:
    from transformers import AutoConfig

    where: dict[str, Any] = {
        "revision": config.revision or "main",
        "trust_remote_code": config.trust_remote_code,
    }
    try:
        return AutoConfig.from_pretrained(source, **where)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise ModelError(
            f"model.path: the configuration of {config.path!r} is neither in a folder here nor could it be read from "
            f"the hub ({_line(error)}); check the name and the network, or give a folder with its config.json (for a "
            "plan no weights are needed)"
        ) from error


def _line(error: BaseException) -> str:
    """Return the first line of an error's text, shortened."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return text if len(text) <= 200 else f"{text[:197]}..."
