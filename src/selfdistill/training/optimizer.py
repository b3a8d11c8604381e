"""AdamW (Loshchilov & Hutter, arXiv 1711.05101) and its learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from selfdistill.teachers.weights import trainable
from selfdistill.training.config import TrainConfig


class Float32AdamW(torch.optim.AdamW):
    """AdamW that updates float32 copies of parameters of another dtype and rounds them into the model.

    Why: an update of 1e-5 is below half an ulp of most bf16 weights, and would be lost every time. The copies are part
    of the state. Float32 parameters are updated in place, without a copy.
    """

    def __init__(self, groups: list[dict[str, Any]], **settings: Any) -> None:
        self._copies: list[tuple[nn.Parameter, Tensor]] = []
        super().__init__(
            [{**group, "params": [self._held(one) for one in group["params"]]} for group in groups], **settings
        )

    def _held(self, parameter: nn.Parameter) -> Tensor:
        if parameter.dtype == torch.float32:
            return parameter
        copy = parameter.detach().float().requires_grad_()
        self._copies.append((parameter, copy))
        return copy

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the weights from their gradients."""
        for parameter, copy in self._copies:
            copy.grad = None if parameter.grad is None else parameter.grad.float()
        super().step()
        with torch.no_grad():
            for parameter, copy in self._copies:
                parameter.copy_(copy)
                copy.grad = None

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        super().zero_grad(set_to_none)
        for parameter, _ in self._copies:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Return moments, settings and the float32 copies."""
        return {**super().state_dict(), "copies": [copy.detach() for _, copy in self._copies]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned. Raises ValueError when it belongs to other parameters."""
        state = dict(state_dict)
        copies = state.pop("copies")
        super().load_state_dict(state)
        with torch.no_grad():
            for (_, own), saved in zip(self._copies, copies, strict=True):
                own.copy_(saved)


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters; weight decay applies to matrices only, as is usual."""
    parameters = list(trainable(model).values())
    groups = [
        {"params": [one for one in parameters if one.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [one for one in parameters if one.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    # One parameter after the other, every operation on a divided one is dispatched twice: ten times slower than fused.
    divided = any(isinstance(one, DTensor) for one in parameters)
    return Float32AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True if divided else None)


def learning_rate(config: TrainConfig, step: int) -> float:
    """Return the rate of the 0-based ``step``: linear warm-up, then constant or a half cosine to zero."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    share = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * share))
