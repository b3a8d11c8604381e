"""Tile operations in plain torch: on the CPU, and on every accelerator without kernels of its own.

Elementwise work goes over blocks of the vocabulary that fit a core's cache, so that a tile is read from memory about as
often as it has to be, and in place: after :meth:`TorchTiles.compare` the student's matrix holds p_S and the teacher's
c (see :mod:`selfdistill.objectives.tiles`), from which the gradient is one multiply-add whatever the divergence.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from selfdistill.models.head import Head, MixedProjection, Projection
from selfdistill.objectives.divergence import LOG_FLOOR
from selfdistill.objectives.settings import DivergenceSettings
from selfdistill.objectives.tiles import FullComparison, RowStatistics

BLOCK_ELEMENTS, BLOCK_COLUMNS = 2**19, (512, 4096)
"""Logits of a block on the CPU, 2 MiB in float32, so that it and what is made from it stay in the cores' caches; within
these limits of columns."""
CAST_ELEMENTS = 2**23
"""Weights that are cast at once where their dtype is not the tile's: 32 MiB in float32."""


class TorchTiles:
    """:class:`~selfdistill.objectives.tiles.TileOperations` without kernels. ``temperature`` is T_d."""

    def __init__(self, temperature: float) -> None:
        self._temperature = temperature
        self._floored = False  # whether any log-probability so far was below the floor

    def project(self, head: Head, hidden: Float[Tensor, "n H"], out: Float[Tensor, "n V"]) -> None:
        """Fill ``out`` with logits divided by T_d."""
        if isinstance(head, MixedProjection):
            initial, live = torch.split(hidden, [head.initial.width, head.live.width], dim=-1)
            _project(head.initial, initial, out, (1 - head.mix) / self._temperature, keep=False)
            _project(head.live, live, out, head.mix / self._temperature, keep=True)
        elif isinstance(head, Projection):
            _project(head, hidden, out, 1 / self._temperature, keep=False)
        else:
            out.copy_(head.logits(hidden) / self._temperature)

    def at_ids(self, logits: Float[Tensor, "n V"], ids: Int[Tensor, "n K"]) -> Float[Tensor, "n K"]:
        """Return z at the ids of each row."""
        return logits.gather(-1, ids)

    def normalise(self, logits: Float[Tensor, "n V"]) -> RowStatistics:
        """Turn logits into log-probabilities, in place, and return the arg-max of each row."""
        _log_softmax_in_place(logits)
        peaks, lowest = [], []
        for block in _blocks(logits):
            peaks.append(block.amax(-1))
            lowest.append(block.amin(-1))
        self._floored = self._floored or bool((torch.stack(lowest) < LOG_FLOOR).any())
        return RowStatistics(logits.new_zeros(len(logits)), _argmax(logits, torch.stack(peaks)))

    def log_sum_exp(self, logits: Float[Tensor, "n V"], sharpness: float = 1.0) -> Float[Tensor, " n"]:
        """Return log sum exp(sharpness * z) of each row."""
        parts = [(block * sharpness if sharpness != 1.0 else block).logsumexp(-1) for block in _blocks(logits)]
        return torch.stack(parts).logsumexp(0)

    def entropy(self, logits: Float[Tensor, "n V"], log_normaliser: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return the entropy of each row; the matrix holds probabilities afterwards."""
        total = torch.zeros_like(log_normaliser)
        for block in _blocks(logits):
            total += _to_probabilities(block.clamp_(min=LOG_FLOOR))
        return total

    def compare(
        self,
        student: Float[Tensor, "n V"],
        teacher: Float[Tensor, "n V"],
        student_normaliser: Float[Tensor, " n"],
        teacher_normaliser: Float[Tensor, " n"],
        settings: DivergenceSettings,
    ) -> FullComparison:
        """Compare on the full support; afterwards the matrices hold p_S and c."""
        student_entropy, teacher_entropy, divergence, coefficients, clipped = (
            torch.zeros_like(student_normaliser) for _ in range(5)
        )
        for log_s, log_t in zip(_blocks(student), _blocks(teacher), strict=True):
            constant = log_s < LOG_FLOOR if self._floored else None  # below the floor a log-probability is a constant
            if self._floored:
                log_s.clamp_(min=LOG_FLOOR)
                log_t.clamp_(min=LOG_FLOOR)
            p_t = log_t.exp()
            teacher_entropy -= (p_t * log_t).sum(-1)
            log_ratio = log_t.sub_(log_s)
            student_entropy += _to_probabilities(log_s)
            p_s, coefficient = log_s, log_t  # what these blocks of the matrices hold from here on
            summands, unclipped = _summands(p_s, p_t, log_ratio, settings)
            if settings.entry_clip is not None:
                over = summands > settings.entry_clip
                clipped += over.sum(-1)
                summands.clamp_(max=settings.entry_clip)
                unclipped.masked_fill_(over, 0)
            divergence += summands.sum(-1)
            coefficient.copy_(unclipped if constant is None else unclipped.masked_fill_(constant, 0))
            coefficients += coefficient.sum(-1)
        share = clipped / student.shape[-1]
        return FullComparison(student_entropy, teacher_entropy, divergence, coefficients, share)

    def gradient(
        self,
        student: Float[Tensor, "n V"],
        student_normaliser: Float[Tensor, " n"],
        scale: Float[Tensor, " n"],
        *,
        teacher: Float[Tensor, "n V"] | None = None,
        teacher_normaliser: Float[Tensor, " n"] | None = None,
        coefficient_scale: Float[Tensor, " n"] | None = None,
        settings: DivergenceSettings | None = None,
    ) -> Float[Tensor, "n V"]:
        """Return scale * p_S + coefficient_scale * c in the student's memory, out of what the matrices now hold."""
        scale = scale.unsqueeze(-1)
        if teacher is None or coefficient_scale is None:
            return student.mul_(scale)
        for probability, coefficient in zip(_blocks(student), _blocks(teacher), strict=True):
            probability.mul_(scale).addcmul_(coefficient, coefficient_scale.unsqueeze(-1))
        return student

    def cap_slope(self, logits: Float[Tensor, "n V"], softcap: float) -> Float[Tensor, "n V"]:
        """Return 1 - (capped logit / softcap)^2."""
        return (logits * (self._temperature / softcap)).square_().neg_().add_(1)

    def hidden_gradient(self, head: Projection, gradient: Float[Tensor, "n V"]) -> Float[Tensor, "n H"]:
        """Return gradient @ W."""
        out = gradient.new_zeros(len(gradient), head.width)
        for part, weight in zip(_weight_columns(head, gradient), _weight_blocks(head, gradient), strict=True):
            out.addmm_(part, weight)
        return out

    def add_weight_gradient(
        self, gradient: Float[Tensor, "n V"], hidden: Float[Tensor, "n H"], out: Float[Tensor, "V H"]
    ) -> None:
        """Add gradient^T @ hidden to ``out``."""
        out.addmm_(gradient.t(), hidden.to(gradient.dtype))


def _block_columns(matrix: Float[Tensor, "n V"]) -> int:
    """Return the width of a block; elsewhere than on the CPU that is everything, one launch per operation."""
    if matrix.device.type != "cpu":
        return matrix.shape[-1]
    least, most = BLOCK_COLUMNS
    return min(most, max(least, BLOCK_ELEMENTS // max(1, len(matrix))))


def _blocks(matrix: Float[Tensor, "n V"]) -> Iterator[Float[Tensor, "n b"]]:
    """Yield the columns block by block."""
    return iter(matrix.split(_block_columns(matrix), dim=-1))


def _log_softmax_in_place(matrix: Float[Tensor, "n V"]) -> None:
    """Normalise every row in one fused operation, which reads an element for the last time when it writes it."""
    if matrix.device.type == "cpu":
        torch.log_softmax(matrix, dim=-1, out=matrix)
        return
    for rows in matrix.split(32):
        rows.copy_(rows.log_softmax(-1))


def _to_probabilities(log_probs: Float[Tensor, "n b"]) -> Float[Tensor, " n"]:
    """Turn log-probabilities into probabilities, in place, and return their share of the entropy."""
    probabilities = log_probs.exp()
    entropy = -log_probs.mul_(probabilities).sum(-1)
    log_probs.copy_(probabilities)
    return entropy


def _summands(
    p_s: Float[Tensor, "n b"], p_t: Float[Tensor, "n b"], log_ratio: Float[Tensor, "n b"], settings: DivergenceSettings
) -> tuple[Float[Tensor, "n b"], Float[Tensor, "n b"]]:
    """Return f and c of a block, unclipped, in memory that may be overwritten; ``log_ratio`` is log p_T - log p_S."""
    if settings.divergence == "forward_kl":
        return log_ratio.mul_(p_t), p_t.neg_()
    if settings.divergence == "reverse_kl":
        summands = log_ratio.mul_(p_s).neg_()
        return summands, summands + p_s
    log_beta, log_rest = (log_ratio.new_tensor(math.log(share)) for share in (settings.beta, 1 - settings.beta))
    # log(M / p_S) from the log-ratio: near equality this keeps digits that log M would round away.
    mixture_to_student = torch.logaddexp(log_rest, log_ratio + log_beta)
    mixture_to_teacher = log_ratio.neg_().add_(mixture_to_student)
    coefficient = mixture_to_student.mul_(p_s).mul_(settings.beta - 1)
    return torch.addcmul(coefficient, p_t, mixture_to_teacher, value=-settings.beta), coefficient


def _argmax(logits: Float[Tensor, "n V"], peaks: Float[Tensor, "blocks n"]) -> Int[Tensor, " n"]:
    """Return each row's arg-max, looking only into the first block that has the row's peak."""
    width = _block_columns(logits)
    if len(peaks) == 1:
        return logits.argmax(-1)
    start = peaks.argmax(0) * width
    columns = start.unsqueeze(-1) + torch.arange(width, device=logits.device)
    # Past the end the last column is looked at again, which cannot win against itself.
    return start + logits.gather(-1, columns.clamp_(max=logits.shape[-1] - 1)).argmax(-1)


def _project(head: Projection, hidden: Tensor, out: Tensor, factor: float, *, keep: bool) -> None:
    """Write ``factor`` times the head's logits into ``out``, or add them to what is there (``keep``)."""
    if head.softcap is not None and keep:
        fresh = torch.empty_like(out)
        _project(head, hidden, fresh, factor, keep=False)
        out += fresh
        return
    linear = head.scale * (factor if head.softcap is None else 1.0)
    hidden = hidden.to(out.dtype)
    for target, weight in zip(_weight_columns(head, out), _weight_blocks(head, out), strict=True):
        target.addmm_(hidden, weight.t(), beta=float(keep), alpha=linear)
    if head.bias is not None:
        out.add_(head.bias.to(out.dtype), alpha=linear)
    if head.softcap is not None:
        out.div_(head.softcap).tanh_().mul_(head.softcap * factor)


def _rows_per_cast(head: Projection, matrix: Tensor) -> int:
    """Return how many rows of the weights are used at once: all, or few where a cast copies them."""
    return head.vocabulary if head.dtype == matrix.dtype else max(1, CAST_ELEMENTS // head.width)


def _weight_blocks(head: Projection, matrix: Tensor) -> Iterator[Float[Tensor, "b H"]]:
    """Yield the head's weights, block by block, in the dtype of ``matrix``."""
    return (block.to(matrix.dtype) for block in head.weight.detach().split(_rows_per_cast(head, matrix)))


def _weight_columns(head: Projection, matrix: Float[Tensor, "n V"]) -> Iterator[Float[Tensor, "n b"]]:
    """Yield the columns of a tile that belong to :func:`_weight_blocks`."""
    return iter(matrix.split(_rows_per_cast(head, matrix), dim=-1))
