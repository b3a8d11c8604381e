"""AdamW and its learning rate as a function of the step."""

from __future__ import annotations

import math

import torch
from torch import nn

from selfdistill.teachers.weights import trainable
from selfdistill.training.config import TrainConfig


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters; weight decay applies to matrices only, as is usual."""
    parameters = list(trainable(model).values())
    groups = [
        {"params": [parameter for parameter in parameters if parameter.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [parameter for parameter in parameters if parameter.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas)


def learning_rate(config: TrainConfig, step: int) -> float:
    """Return the rate of the 0-based ``step``: linear warm-up, then constant or a half cosine down to zero after the last step."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    share = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * share))
