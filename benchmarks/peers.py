"""The peers' loss heads, called as their own trainers call them; each is imported only when it runs.

A function here returns a :class:`HeadOutcome` like ours. :func:`missing` says why one cannot run here.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import torch

from benchmarks.head_inputs import HeadInputs, HeadOutcome, outcome
from benchmarks.machine import installed

NOT_INSTALLED = "not installed"

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # it says at every import that its experimental part may change


def missing(library: str, device: torch.device, *, triton: bool = False) -> str | None:
    """Return why contestants of ``trl`` or ``liger`` cannot run, or None if they can."""
    if installed({"liger": "liger-kernel"}.get(library, library)) is None:
        return NOT_INSTALLED
    if triton and device.type != "cuda":
        return "needs CUDA (Triton kernels)"
    if triton and importlib.util.find_spec("triton") is None:
        return "needs triton"
    return None


def trl_chunked_divergence(inputs: HeadInputs, *, beta: float, trained: bool = False) -> HeadOutcome:
    """TRL's chunked kernel, of its DistillationTrainer: beta 0 is the forward KL."""
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    hidden, weight = inputs.student.detach().requires_grad_(), inputs.weight.detach().requires_grad_(trained)
    function: Any = ChunkedDivergenceFunction
    divergence, _ = function.apply(hidden, weight, None, inputs.teacher, inputs.weight.detach(), None, beta)
    return outcome(divergence.mean(), hidden, weight if trained else None)


def trl_chunked_logprob(inputs: HeadInputs) -> HeadOutcome:
    """TRL's chunked log-probability, of its policy-gradient trainers, with the entropy that ours returns as well."""
    from trl.kernels.chunked_divergence import VOCAB_CHUNK_SIZE
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    hidden = inputs.student.detach().requires_grad_()
    function: Any = ChunkedLogProbFunction
    arguments = (hidden, inputs.weight.detach(), None, inputs.ids, 1.0, VOCAB_CHUNK_SIZE, None, 1.0, ("entropy",))
    logprob = function.apply(*arguments)[0]
    return outcome(-(inputs.advantages * logprob).mean(), hidden)


def trl_full_logits(inputs: HeadInputs, *, alpha: float, top_k: bool = False) -> HeadOutcome:
    """The loss functions of TRL's SDPOTrainer, on the logits that its forward passes hold."""
    from trl.experimental.sdpo import loss_utils

    hidden = inputs.student.detach().requires_grad_()
    student = hidden @ inputs.weight.T / 1.0  # its trainer divides by the temperature, also when that is 1
    with torch.no_grad():
        teacher = inputs.teacher @ inputs.weight.T / 1.0
    if top_k:
        losses = loss_utils.compute_topk_self_distillation_loss(
            student,
            teacher,
            distillation_topk=inputs.top_k,
            distillation_alpha=alpha,
            distillation_add_tail=True,
        )
    else:
        losses = loss_utils.compute_full_logit_self_distillation_loss(student, teacher, distillation_alpha=alpha)
    return outcome(losses.mean(), hidden)


def liger_chunked_jsd(inputs: HeadInputs) -> HeadOutcome:
    """Liger's chunked distillation loss: plain torch in chunks of 1024 rows; always makes the head's gradient.

    Without torch.compile, which it would use by default: that needs a C++ compiler on a CPU.
    """
    from liger_kernel.chunked_loss.jsd_loss import LigerFusedLinearJSDLoss

    hidden, weight = inputs.student.detach().requires_grad_(), inputs.weight.detach().requires_grad_()
    loss = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.5, compiled=inputs.student.device.type == "cuda"
    )
    return outcome(loss(hidden, weight, inputs.teacher, inputs.weight.detach(), inputs.ids), hidden, weight)


def liger_fused_jsd(inputs: HeadInputs) -> HeadOutcome:
    """Liger's fused linear JSD, a Triton kernel, with a frozen head."""
    from liger_kernel.transformers.fused_linear_jsd import LigerFusedLinearJSD

    hidden, weight = inputs.student.detach().requires_grad_(), inputs.weight.detach()
    loss = LigerFusedLinearJSD(jsd_beta=0.5)(hidden, weight, inputs.teacher, weight, None)
    return outcome(loss, hidden)


def load(library: str) -> None:
    """Import what a contestant of ``library`` imports, so that an idle process holds it as well."""
    if library == "trl":
        import trl.experimental.sdpo.loss_utils
        import trl.kernels.chunked_divergence
        import trl.kernels.chunked_logprob  # noqa: F401
    elif library == "liger":
        import liger_kernel.chunked_loss.jsd_loss  # noqa: F401
