"""Inputs of the head benchmark: two sets of hidden states, one head, sampled ids; and what a contestant returns."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from benchmarks.arguments import Settings, setting


@dataclass(frozen=True, kw_only=True)
class HeadSettings(Settings):
    """Sizes of the head benchmark."""

    FOR_CUDA: ClassVar[dict[str, Any]] = {"tokens": 8192, "width": 4096, "dtype": "bfloat16"}
    QUICK: ClassVar[dict[str, Any]] = {"tokens": 24, "width": 16, "vocabulary": 301, "top_k": 20, "memory_factor": 2}

    tokens: int = setting(512, "N, response tokens")
    width: int = setting(1024, "H, of a hidden state")
    vocabulary: int = setting(151_936, "V")
    dtype: str = setting("float32", "of hidden states and head")
    top_k: int = setting(100, "K of the top-k support")
    gap: float = setting(0.05, "teacher's states are the student's plus so much noise; sets the divergence")
    sharpness: float = setting(3.0, "standard deviation of the logits")
    checked_rows: int = setting(8, "rows that are compared with float64")
    memory_factor: int = setting(4, "memory is measured at N and at so many times N")


@dataclass(frozen=True)
class HeadInputs:
    """What every contestant is given."""

    student: Float[Tensor, "N H"]
    teacher: Float[Tensor, "N H"]
    weight: Float[Tensor, "V H"]
    ids: Int[Tensor, " N"]
    advantages: Float[Tensor, " N"]
    """Plus or minus one, for the policy gradient."""
    top_k: int

    def first(self, rows: int) -> HeadInputs:
        """Return the inputs of the first ``rows`` tokens."""
        named = ("student", "teacher", "ids", "advantages")
        return replace(self, **{name: getattr(self, name)[:rows] for name in named})


@dataclass(frozen=True)
class HeadOutcome:
    """What a contestant made: a loss and its gradients. Bare products have neither."""

    loss: Tensor
    hidden_gradient: Float[Tensor, "N H"]
    weight_gradient: Float[Tensor, "V H"] | None = None


def make_inputs(settings: HeadSettings) -> HeadInputs:
    """Return seeded inputs. Large tensors are filled in place: a peak here would hide a contestant's own."""
    device, dtype = settings.prepare(), getattr(torch, settings.dtype)
    shape = (settings.tokens, settings.width)
    weight = torch.empty(settings.vocabulary, settings.width, device=device, dtype=dtype)
    weight.normal_(std=settings.sharpness / math.sqrt(settings.width))
    student = torch.randn(shape, device=device).to(dtype)
    teacher = (student.float() + settings.gap * torch.randn(shape, device=device)).to(dtype)
    ids = torch.randint(settings.vocabulary, (settings.tokens,), device=device)
    advantages = torch.randint(2, (settings.tokens,), device=device) * 2.0 - 1.0
    return HeadInputs(student, teacher, weight, ids, advantages, settings.top_k)


def outcome(loss: Tensor, hidden: Tensor, weight: Tensor | None = None) -> HeadOutcome:
    """Differentiate ``loss`` with respect to the hidden states and, if it trains, the head."""
    wanted = [hidden] if weight is None else [hidden, weight]
    gradients = torch.autograd.grad(loss, wanted)
    return HeadOutcome(loss.detach(), *gradients)
