"""Tile operations on CUDA: products on tensor cores with float32 results, everything else in Triton kernels.

In: hidden states and weights in bfloat16 (or float16, float32), tiles of logits in float32. A tile is written once by
the product with the head and then read: once to normalise each side, once (both sides together) to compare, once to
differentiate. Per row and V logits on each side that is 4V bytes written and 4V read per side, 8V read, and 8V read
with 2V written, in a bfloat16 matrix that the next product multiplies. The logits themselves stay as they are.

In Triton's interpreter (``TRITON_INTERPRET=1`` before Triton is imported) the same code runs on CPU tensors, slowly:
products are then made in the precision of the tile.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from selfdistill.models.head import Head, MixedProjection, Projection
from selfdistill.objectives import triton_kernels
from selfdistill.objectives.settings import DivergenceSettings
from selfdistill.objectives.tiles import FullComparison, RowStatistics

ROW_ALIGNMENT = 16
"""Rows of a matrix begin at multiples of so many elements: then loads are 16 bytes wide whatever V is."""
CAST_ELEMENTS = 2**26
"""Weights that have to be cast are cast this many at a time: 256 MiB in float32."""
_HALF = (torch.bfloat16, torch.float16)


class TritonTiles:
    """:class:`~selfdistill.objectives.tiles.TileOperations` for CUDA.

    The matrices hold a head's logits; 1 / T_d stays pending and is applied by whatever reads them. Logits are never
    overwritten. The gradient is written to one matrix in ``operand_dtype``, which the next tile uses again: take it as
    lost with the next call of :meth:`gradient`.

    Args:
        temperature: T_d.
        operand_dtype: of the weights that the gradient will be multiplied with; None: that of the logits, which
            float64 logits keep in any case. float16 becomes float32, because most entries of a gradient lie below the
            smallest float16.
    """

    def __init__(self, temperature: float = 1.0, *, operand_dtype: torch.dtype | None = None) -> None:
        self._factor = 1.0 / temperature
        self._operand_dtype = torch.float32 if operand_dtype == torch.float16 else operand_dtype
        self._scratch: Tensor | None = None

    def project(self, head: Head, hidden: Float[Tensor, "n H"], out: Float[Tensor, "n V"]) -> None:
        """Fill ``out`` with the head's logits, in its precision."""
        if isinstance(head, MixedProjection):
            initial, live = torch.split(hidden, [head.initial.width, head.live.width], dim=-1)
            _project(head.initial, initial, out, share=1.0 - head.mix)
            _project(head.live, live, out, share=head.mix, keep=True)
        elif isinstance(head, Projection):
            _project(head, hidden, out)
        else:
            out.copy_(head.logits(hidden))

    def at_ids(self, logits: Float[Tensor, "n V"], ids: Int[Tensor, "n K"]) -> Float[Tensor, "n K"]:
        """Return z at the ids of each row."""
        return logits.gather(-1, ids) * self._factor

    def normalise(self, logits: Float[Tensor, "n V"]) -> RowStatistics:
        """Return log sum_v exp(z_v) and the arg-max of each row."""
        return self._statistics(logits, 1.0)

    def log_sum_exp(self, logits: Float[Tensor, "n V"], sharpness: float = 1.0) -> Float[Tensor, " n"]:
        """Return log sum_v exp(sharpness * z_v) of each row."""
        return self._statistics(logits, sharpness).log_normaliser

    def _statistics(self, logits: Float[Tensor, "n V"], sharpness: float) -> RowStatistics:
        normaliser = _per_row(logits)
        argmax = torch.empty_like(normaliser, dtype=torch.int64)
        arguments = (logits, normaliser, argmax, logits.stride(0), logits.shape[1])
        _launch(triton_kernels.row_statistics, logits, *arguments, FACTOR=self._factor * sharpness)
        return RowStatistics(normaliser, argmax)

    def entropy(self, logits: Float[Tensor, "n V"], log_normaliser: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return the entropy of each row."""
        entropy = _per_row(logits)
        arguments = (logits, log_normaliser.contiguous(), entropy, logits.stride(0), logits.shape[1])
        _launch(triton_kernels.row_entropy, logits, *arguments, FACTOR=self._factor)
        return entropy

    def compare(
        self,
        student: Float[Tensor, "n V"],
        teacher: Float[Tensor, "n V"],
        student_normaliser: Float[Tensor, " n"],
        teacher_normaliser: Float[Tensor, " n"],
        settings: DivergenceSettings,
    ) -> FullComparison:
        """Compare both sides on the full support."""
        sums = student.new_empty(len(FullComparison._fields), len(student))
        _launch(
            triton_kernels.compare_rows,
            student,
            *(student, teacher, student_normaliser.contiguous(), teacher_normaliser.contiguous(), sums),
            *(student.stride(0), teacher.stride(0), *student.shape),
            FACTOR=self._factor,
            **_constants(settings),
        )
        return FullComparison(*sums)

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
        """Return scale * p_S + coefficient_scale * c, in ``operand_dtype``, in memory that the next call writes to."""
        result = self._gradient_matrix(student)
        rows = (student_normaliser, teacher_normaliser, scale, coefficient_scale)
        columns = [None if column is None else column.to(student.dtype).contiguous() for column in rows]
        _launch(
            triton_kernels.differentiate_rows,
            student,
            *(student, teacher, result, *columns),
            *(student.stride(0), 0 if teacher is None else teacher.stride(0), result.stride(0), student.shape[1]),
            FACTOR=self._factor,
            **_constants(settings),
        )
        return result

    def cap_slope(self, logits: Float[Tensor, "n V"], softcap: float) -> Float[Tensor, "n V"]:
        """Return 1 - (capped logit / softcap)^2, the slope of a soft cap."""
        return torch.addcmul(logits.new_ones(()), logits, logits, value=-(softcap**-2))

    def hidden_gradient(self, head: Projection, gradient: Float[Tensor, "n V"]) -> Float[Tensor, "n H"]:
        """Return gradient @ W in float32 (float64 for a float64 gradient)."""
        dtype = torch.promote_types(gradient.dtype, torch.float32)
        out = torch.empty(len(gradient), head.width, dtype=dtype, device=gradient.device)
        for columns, weight in _weight_blocks(head.weight, gradient.dtype):
            _multiply(gradient[:, columns], weight, out, keep=float(columns.start > 0))
        return out

    def add_weight_gradient(
        self, gradient: Float[Tensor, "n V"], hidden: Float[Tensor, "n H"], out: Float[Tensor, "V H"]
    ) -> None:
        """Add gradient^T @ hidden to ``out``, in the precision of ``out``."""
        _multiply(gradient.t(), hidden.to(gradient.dtype), out, keep=1.0)

    def _gradient_matrix(self, logits: Float[Tensor, "n V"]) -> Float[Tensor, "n V"]:
        rows, vocabulary = logits.shape
        width = -(-vocabulary // ROW_ALIGNMENT) * ROW_ALIGNMENT
        keep = self._operand_dtype is None or logits.dtype == torch.float64
        dtype = logits.dtype if keep else self._operand_dtype
        old = self._scratch
        if old is None or old.numel() < rows * width or old.dtype != dtype or old.device != logits.device:
            self._scratch = old = None  # the old one is free before there is a new one
            self._scratch = torch.empty(rows * width, dtype=dtype, device=logits.device)
        assert self._scratch is not None
        return self._scratch[: rows * width].view(rows, width)[:, :vocabulary]


def _constants(settings: DivergenceSettings | None) -> dict[str, Any]:
    """Return what the kernels are compiled for; a setting that is not read is always the same, to compile less."""
    if settings is None:
        return {"DIVERGENCE": None, "BETA": None, "CLIP": None}
    beta = settings.beta if settings.divergence == "jsd" else None
    return {"DIVERGENCE": settings.divergence, "BETA": beta, "CLIP": settings.entry_clip}


def _launch(kernel: Any, matrix: Float[Tensor, "n V"], *arguments: Any, **constants: Any) -> None:
    """Run a kernel, one program per row of ``matrix``, on the device that holds it."""
    if len(matrix) == 0:
        return
    limits = {"num_warps": triton_kernels.WARPS}
    if matrix.dtype == torch.float32:  # float64, which only tests use, takes the registers it needs
        limits["maxnreg"] = triton_kernels.REGISTERS
    with torch.cuda.device_of(matrix):
        kernel[(len(matrix),)](*arguments, **constants, **limits)


def _per_row(logits: Float[Tensor, "n V"]) -> Float[Tensor, " n"]:
    return torch.empty(len(logits), dtype=logits.dtype, device=logits.device)


def _project(head: Projection, hidden: Tensor, out: Tensor, *, share: float = 1.0, keep: bool = False) -> None:
    """Write ``share`` of the head's logits to ``out``, or add them to it."""
    finished = head.bias is None and head.softcap is None
    if keep and not finished:
        fresh = torch.empty_like(out)
        _project(head, hidden, fresh, share=share)
        out += fresh
        return
    linear = head.scale if head.softcap is not None else head.scale * share
    for columns, weight in _weight_blocks(head.weight, hidden.dtype if hidden.dtype == head.dtype else out.dtype):
        _multiply(hidden.to(weight.dtype), weight.t(), out[:, columns], keep=float(keep), factor=linear)
    if not finished:
        bias = None if head.bias is None else head.bias.contiguous()
        arguments = (out, bias, out.stride(0), out.shape[1])
        _launch(triton_kernels.finish_logits, out, *arguments, BIAS_SCALE=linear, CAP=head.softcap, SHARE=share)


def _weight_blocks(weight: Float[Tensor, "V H"], dtype: torch.dtype) -> Iterator[tuple[slice, Float[Tensor, "v H"]]]:
    """Yield the weights in ``dtype``: all at once if that is theirs, else in blocks, which are small when cast."""
    rows = len(weight) if weight.dtype == dtype else max(1, CAST_ELEMENTS // weight.shape[1])
    for start in range(0, len(weight), rows):
        columns = slice(start, min(start + rows, len(weight)))
        yield columns, weight[columns].to(dtype)


def _multiply(left: Tensor, right: Tensor, out: Tensor, *, keep: float = 0.0, factor: float = 1.0) -> None:
    """Write keep * out + factor * left @ right to ``out``: operands may be 16 bits wide, sums are not."""
    on_tensor_cores = left.dtype in _HALF and out.dtype == torch.float32 and out.is_cuda
    options: dict[str, Any] = {"out_dtype": out.dtype} if on_tensor_cores else {}
    if not on_tensor_cores:
        left, right = left.to(out.dtype), right.to(out.dtype)
    if keep == 0.0 and factor == 1.0:
        torch.mm(left, right, out=out, **options)
    else:
        torch.addmm(out, left, right, beta=keep, alpha=factor, out=out, **options)
