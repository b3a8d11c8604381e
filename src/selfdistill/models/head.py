"""The projection head: from last hidden states to logits, as data that a chunked loss can apply row by row.

In: a causal language model of transformers, plain or wrapped by PEFT. Out: a :class:`Projection` whose ``logits`` equal
the model's own; :func:`check_projection` proves it on a few ids. :class:`MixedProjection` is SDPO's trust-region
teacher (arXiv 2601.20802), whose logits mix those of two models.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from selfdistill.errors import ModelError


class Head(Protocol):
    """Anything that turns hidden states [n, H] into logits [n, V]."""

    @property
    def width(self) -> int:
        """H: the size of a hidden state."""
        ...

    @property
    def vocabulary(self) -> int:
        """V: the number of logits."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        ...

    def to(self, dtype: torch.dtype) -> Head:
        """Return the same head with its weights cast once, so that no chunk has to."""
        ...

    def logits(self, hidden: Float[Tensor, "n H"]) -> Float[Tensor, "n V"]:
        """Return logits in float32, or in float64 if the weights or the hidden states are float64."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Projection:
    """logits = softcap * tanh(scale * (hidden W^T + bias) / softcap), or without the cap."""

    weight: Float[Tensor, "V H"]
    bias: Float[Tensor, " V"] | None = None
    scale: float = 1.0
    """Multiplies the logits (Cohere's ``logit_scale``, the inverse of Granite's ``logits_scaling``)."""
    softcap: float | None = None
    """Gemma's ``final_logit_softcapping``, or None."""

    @property
    def width(self) -> int:
        """H: the size of a hidden state."""
        return self.weight.shape[1]

    @property
    def vocabulary(self) -> int:
        """V: the number of logits."""
        return self.weight.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.weight.dtype

    def to(self, dtype: torch.dtype) -> Projection:
        """Return the same projection with its weights cast once; gradients still reach the original weights."""
        return replace(self, weight=self.weight.to(dtype), bias=None if self.bias is None else self.bias.to(dtype))

    def logits(self, hidden: Float[Tensor, "n H"]) -> Float[Tensor, "n V"]:
        """Return logits in float32, or in float64 if the weights or the hidden states are float64."""
        dtype = torch.promote_types(torch.promote_types(hidden.dtype, self.dtype), torch.float32)
        bias = None if self.bias is None else self.bias.to(dtype)
        logits = F.linear(hidden.to(dtype), self.weight.to(dtype), bias)
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits


@dataclass(frozen=True, slots=True, eq=False)
class MixedProjection:
    """The trust-region teacher: logits = (1-u) z_initial + u z_live, on hidden states [initial, live] of width 2H."""

    initial: Projection
    live: Projection
    mix: float
    """u in [0, 1], the live model's share."""

    def __post_init__(self) -> None:
        """Check the share and that both vocabularies agree."""
        if not 0 <= self.mix <= 1:
            raise ModelError(f"mix={self.mix!r} of the trust-region teacher must lie in [0, 1].")
        if self.initial.vocabulary != self.live.vocabulary:
            sizes = f"{self.initial.vocabulary} and {self.live.vocabulary}"
            raise ModelError(f"initial and live model have {sizes} ids; a trust-region teacher needs one vocabulary.")

    @property
    def width(self) -> int:
        """2H: both hidden states side by side."""
        return self.initial.width + self.live.width

    @property
    def vocabulary(self) -> int:
        """V: the number of logits."""
        return self.initial.vocabulary

    @property
    def dtype(self) -> torch.dtype:
        """The wider dtype of the two models' weights."""
        return torch.promote_types(self.initial.dtype, self.live.dtype)

    def to(self, dtype: torch.dtype) -> MixedProjection:
        """Return the same head with its weights cast once."""
        return replace(self, initial=self.initial.to(dtype), live=self.live.to(dtype))

    def logits(self, hidden: Float[Tensor, "n 2H"]) -> Float[Tensor, "n V"]:
        """Return logits in float32, or in float64 if the weights or the hidden states are float64."""
        initial, live = torch.split(hidden, [self.initial.width, self.live.width], dim=-1)
        return (1 - self.mix) * self.initial.logits(initial) + self.mix * self.live.logits(live)


def backbone_of(model: nn.Module) -> nn.Module:
    """Return the part of a causal language model that ends in its last hidden states (adapters included)."""
    causal: Any = unwrapped(model)
    backbone = causal.base_model if hasattr(causal, "base_model") else None
    if not isinstance(backbone, nn.Module) or backbone is causal:
        raise ModelError(f"{type(causal).__name__} has no base model under its head; use a transformers causal LM.")
    return backbone


BACKBONE = "selfdistill_backbone"
"""The method of a divided model (:mod:`selfdistill.parallel.sharding`) through which its backbone has to be run."""


def run_backbone(model: nn.Module, **inputs: Any) -> Any:
    """Run the backbone, in a divided model so that weights are brought together for it, and return its output."""
    own: Any = getattr(unwrapped(model), BACKBONE, None)
    run: Any = backbone_of(model) if own is None else own
    return run(**inputs)


def projection_of(model: nn.Module) -> Projection:
    """Return the projection head of a transformers causal language model, plain or wrapped by PEFT; weights are shared.

    Raises:
        ModelError: there is no output embedding, or an adapter changes it.
    """
    causal: Any = unwrapped(model)
    head: Any = causal.get_output_embeddings() if hasattr(causal, "get_output_embeddings") else None
    if head is not None and hasattr(head, "modules_to_save"):
        head = head.original_module if head.disable_adapters else head.modules_to_save[head.active_adapters[0]]
    if head is not None and hasattr(head, "lora_A"):
        raise ModelError(
            "The output embedding carries a LoRA adapter; leave lm_head out of the adapter's target modules."
        )
    weight = getattr(head, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2:
        raise ModelError(f"{type(causal).__name__} has no [V, H] output embedding; use a transformers causal LM.")
    scale, softcap = _logit_transform(causal.config)
    return Projection(weight, getattr(head, "bias", None), scale, softcap)


def check_projection(model: nn.Module, projection: Projection, ids: tuple[int, ...] = (0, 1, 2, 3)) -> None:
    """Compare the model's own logits on ``ids`` with the projection of its last hidden states.

    Raises:
        ModelError: they differ by more than rounding, so losses would train another model than the one that is sampled.
    """
    causal: Any = unwrapped(model)
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            inputs = torch.tensor([[i % projection.vocabulary for i in ids]], device=projection.weight.device)
            expected = causal(input_ids=inputs, use_cache=False).logits[0].float()
            hidden = run_backbone(model, input_ids=inputs, use_cache=False).last_hidden_state[0]
            actual = projection.logits(hidden).float()
    finally:
        model.train(training)
    if actual.shape != expected.shape:
        shapes = f"{tuple(actual.shape)}, the model {tuple(expected.shape)}"
        raise ModelError(f"The projection yields logits {shapes}; its output embedding is not the whole head.")
    error, size = (actual - expected).abs().max().item(), expected.abs().max().item()
    # Both sides are rounded to the model's dtype at a few places; a forgotten scale, bias or cap is far outside this.
    if not error <= 16 * torch.finfo(projection.dtype).eps * max(size, 1.0):
        difference = f"differ from the model's own by {error:.3g} (largest logit {size:.3g})"
        raise ModelError(f"The projection's logits {difference}; the model's head has a step that is not known here.")


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the transformers model inside a PEFT wrapper (whose adapter layers stay in place), or the model itself."""
    wrapper: Any = model
    base: nn.Module = wrapper.get_base_model() if hasattr(model, "get_base_model") else model
    return base


def _logit_transform(config: Any) -> tuple[float, float | None]:
    """Return (scale, softcap) that a model's configuration, or the text part of a multimodal one, asks for."""
    text = getattr(config, "text_config", None)

    def setting(name: str) -> float | None:
        value = getattr(config, name, None)
        return getattr(text, name, None) if value is None else value

    factors = (setting("logit_scale"), setting("lm_head_multiplier"))
    scale = math.prod(float(factor) for factor in factors if factor is not None)
    scale /= float(setting("logits_scaling") or 1.0)
    softcap = setting("final_logit_softcapping")
    return scale, None if softcap is None else float(softcap)
