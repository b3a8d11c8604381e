"""One pass over the head: from hidden states to the per-token record AND the gradient, tile by tile.

For each tile of rows: project both sides, normalise, compare; let the token loss say how much each token's divergence
and log-probability count; differentiate in place; multiply back. The gradient is made in the forward pass, because the
gradient of a token's loss needs nothing but its own row of logits, so logits are made once and never kept: three matrix
products per token with a frozen head (two without a teacher), one more when the head is trained. What is held at any
time is one tile, whatever N and V are. Same definitions as the readable path, ``linear_reference.py``.

Nothing here uses autograd across tokens; :mod:`selfdistill.objectives.linear_divergence` and
:mod:`selfdistill.objectives.heads` give the results to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from selfdistill.models.head import Head, Projection
from selfdistill.objectives.divergence import LOG_FLOOR
from selfdistill.objectives.record import TokenRecord
from selfdistill.objectives.settings import DivergenceSettings, SettingError
from selfdistill.objectives.supports import Compared, Tile, compare_tile
from selfdistill.objectives.tiles import TileOperations
from selfdistill.objectives.torch_tiles import TorchTiles

Rows = slice | Int[Tensor, " n"]
"""Which of the N tokens."""
TokenLoss = Callable[[TokenRecord, Rows], Float[Tensor, " n"]]
"""From the record of some tokens, and which of the N they are, to what each adds to the loss; differentiable in
``divergence`` or in ``student_logprob``. Tokens must not depend on each other."""

TILE_BYTES = {"cpu": 2**28, "cuda": 29 * 2**30 // 20}
"""Logits that exist at a time: both sides of a tile, and elsewhere than on a CPU the gradient in the weights' dtype. On
CUDA 1024 tokens of a vocabulary of 151,936."""
ALIGNMENT = 16
"""Rows of logits begin at multiples of so many elements on a device, so that kernels can load them wide."""
MINIMUM_TILES = 3
"""Even a small batch is cut into this many, so that a tile is a fraction of [N, V] ..."""
LARGE_HEAD, LARGE_HEAD_ROWS = 2**24, 64
"""... but a head of so many weights is not read for fewer rows than this, where there are as many."""


@dataclass(frozen=True, slots=True)
class HeadInputs:
    """N tokens in front of the head."""

    student_hidden: Float[Tensor, "N H"]
    student: Projection
    ids: Int[Tensor, " N"] | None = None
    """The sampled ids, if log-probabilities are wanted."""
    temperature: float = 1.0
    """T_d."""
    logprob_temperature: float | None = None
    """Of the log-probabilities; None: T_d."""
    teacher_hidden: Float[Tensor, "N HT"] | None = None
    teacher: Head | None = None
    settings: DivergenceSettings | None = None
    """How to compare; None: there is no teacher."""
    strength: float = 0.0
    """k: every token's target is interpolated by this much (PAINT's second look at the selected rows)."""

    def rows(self, index: Rows) -> HeadInputs:
        """Return some of the tokens."""

        def take(column: Tensor | None) -> Tensor | None:
            return None if column is None else column[index]

        hidden, teacher = self.student_hidden[index], take(self.teacher_hidden)
        return replace(self, student_hidden=hidden, teacher_hidden=teacher, ids=take(self.ids))

    @property
    def dtype(self) -> torch.dtype:
        """float64 if anything is float64, else float32."""
        parts = (self.student_hidden, self.student, self.teacher_hidden, self.teacher)
        dtypes = {part.dtype for part in parts if part is not None}
        return torch.float64 if torch.float64 in dtypes else torch.float32


@dataclass(frozen=True, slots=True)
class HeadGradients:
    """Where the gradient with respect to a trained head is added up, in the tile's precision; None: not wanted."""

    weight: Float[Tensor, "V H"] | None = None
    bias: Float[Tensor, " V"] | None = None

    @classmethod
    def wanted_by(cls, inputs: HeadInputs) -> HeadGradients:
        """Return zeros for what requires a gradient."""

        def zeros(parameter: Tensor | None) -> Tensor | None:
            if parameter is None or not parameter.requires_grad:
                return None
            return torch.zeros(parameter.shape, dtype=inputs.dtype, device=parameter.device)

        return cls(zeros(inputs.student.weight), zeros(inputs.student.bias))

    @property
    def wanted(self) -> bool:
        """Whether the head is trained."""
        return self.weight is not None or self.bias is not None


@dataclass(frozen=True, slots=True)
class HeadPass:
    """What one pass came to; constants all."""

    record: TokenRecord
    hidden_gradient: Float[Tensor, "N H"] | None
    """d (sum of token losses) / d student_hidden, in the hidden states' dtype."""


@torch.no_grad()
def head_pass(
    inputs: HeadInputs,
    loss: TokenLoss | None = None,
    head_gradients: HeadGradients | None = None,
    *,
    rows_per_tile: int | None = None,
    operations: TileOperations | None = None,
) -> HeadPass:
    """Look at all tokens once.

    Args:
        inputs: the tokens.
        loss: what they are worth; None: no gradient, two matrix products.
        head_gradients: where to add the gradient of a trained head.
        rows_per_tile: tokens per tile; None: what fits ``TILE_BYTES``, and at most a third of N.
        operations: the backend; None: the fastest for the device.
    """
    gradient = None if loss is None else torch.zeros_like(inputs.student_hidden)
    parts: list[TokenRecord] = []
    # Autocast would round logits to 16 bits, which is what this is here to avoid.
    with torch.autocast(inputs.student_hidden.device.type, enabled=False):
        operations = operations or choose_operations(inputs)
        step = tile_rows(inputs, rows_per_tile)
        logits = _Logits(inputs, min(step, len(inputs.student_hidden)))
        for start in range(0, max(1, len(inputs.student_hidden)), step):
            rows = slice(start, start + step)
            record, over_z = _look_at_tile(inputs, rows, logits, operations, loss)
            parts.append(record)
            if gradient is not None and over_z is not None:
                gradient[rows] = operations.hidden_gradient(inputs.student, over_z)
                _add_head_gradients(head_gradients, operations, over_z, inputs.student_hidden[rows])
    return HeadPass(_joined(parts), gradient)


def _look_at_tile(
    inputs: HeadInputs, rows: slice, logits: _Logits, operations: TileOperations, loss: TokenLoss | None
) -> tuple[TokenRecord, Float[Tensor, "n V"] | None]:
    """Return the tile's record and, if there is a loss that depends on it, d loss / d raw logits."""
    chunk = inputs.rows(rows)
    student, teacher = logits.project(chunk, operations)
    softcap = inputs.student.softcap
    slope = None if softcap is None or loss is None else operations.cap_slope(student, softcap)
    tile, record = _normalised(chunk, student, teacher, operations)
    compared = compare_tile(tile, inputs.settings)
    record = _completed(record, compared)
    worth = None if loss is None else _worth(loss, record, rows, inputs)
    if worth is None:
        return record, None
    over_z = compared.gradient(*worth)
    return record, over_z if slope is None else over_z.mul_(slope)


@torch.no_grad()
def interpolated_pass(
    inputs: HeadInputs,
    first: HeadPass,
    rows: Int[Tensor, " n"],
    strength: float,
    loss: TokenLoss | None = None,
    head_gradients: HeadGradients | None = None,
    *,
    rows_per_tile: int | None = None,
) -> HeadPass:
    """Give the targets of ``rows`` a share k of the student's logits, and look at those rows again (PAINT).

    Returns the first pass with divergence, clip fraction and gradient replaced at ``rows``: teacher entropy and
    log-probability stay those before the interpolation.
    """
    if strength == 0 or len(rows) == 0:
        return first
    chosen = inputs.rows(rows)
    tile = tile_rows(inputs, rows_per_tile)  # of all tokens: few rows would make small tiles, and read the head often

    def own(record: TokenRecord, piece: Rows) -> Tensor:
        assert loss is not None
        return loss(record, rows[piece])

    if head_gradients is not None and head_gradients.wanted and loss is not None:
        # Take out what these rows gave with their plain targets; their hidden states' share is overwritten below.
        head_pass(chosen, lambda record, piece: -own(record, piece), head_gradients, rows_per_tile=tile)
    softened = replace(chosen, strength=strength)
    again = head_pass(softened, None if loss is None else own, head_gradients, rows_per_tile=tile)
    record = first.record
    assert record.divergence is not None and again.record.divergence is not None
    assert record.clip_fraction is not None and again.record.clip_fraction is not None
    record = replace(
        record,
        divergence=record.divergence.index_copy(0, rows, again.record.divergence),
        clip_fraction=record.clip_fraction.index_copy(0, rows, again.record.clip_fraction),
    )
    if first.hidden_gradient is not None and again.hidden_gradient is not None:
        first.hidden_gradient.index_copy_(0, rows, again.hidden_gradient)
    return replace(first, record=record)


def choose_operations(inputs: HeadInputs) -> TileOperations:
    """Return the kernels for NVIDIA's devices, plain torch for everything else."""
    if inputs.student_hidden.is_cuda and torch.version.hip is None and find_spec("triton") is not None:
        from selfdistill.objectives.triton_tiles import TritonTiles

        return TritonTiles(inputs.temperature, operand_dtype=inputs.student.dtype)
    return TorchTiles(inputs.temperature)


def tile_rows(inputs: HeadInputs, wanted: int | None = None) -> int:
    """Return how many tokens a tile holds.

    Raises:
        SettingError: ``wanted`` is not positive.
    """
    if wanted is not None:
        if wanted < 1:
            raise SettingError(f"rows_per_chunk={wanted} must be at least 1.")
        return wanted
    device = inputs.student_hidden.device.type
    row = inputs.student.vocabulary * inputs.dtype.itemsize * (1 if inputs.teacher is None else 2)
    if device != "cpu":  # where the gradient has a matrix of its own, in the dtype that is multiplied
        row += inputs.student.vocabulary * inputs.student_hidden.dtype.itemsize
    tokens = len(inputs.student_hidden)
    share = math.ceil(tokens / MINIMUM_TILES)
    if inputs.student.vocabulary * inputs.student.width >= LARGE_HEAD:
        share = max(share, LARGE_HEAD_ROWS)
    most = max(1, min(TILE_BYTES.get(device, TILE_BYTES["cuda"]) // row, share))
    return math.ceil(tokens / math.ceil(tokens / most)) if tokens else 1  # tiles of one size, not a small last one


class _Logits:
    """The memory of a tile, used again and again; one matrix, so that one product can fill both sides."""

    def __init__(self, inputs: HeadInputs, rows: int) -> None:
        sides = 1 if inputs.teacher is None else 2
        device, vocabulary = inputs.student_hidden.device, inputs.student.vocabulary
        aligned = vocabulary if device.type == "cpu" else -(-vocabulary // ALIGNMENT) * ALIGNMENT
        self._matrix = torch.empty((sides * rows, aligned), dtype=inputs.dtype, device=device)[:, :vocabulary]
        self._shared = inputs.teacher is not None and same_head(inputs.student, inputs.teacher)

    def project(self, chunk: HeadInputs, operations: TileOperations) -> tuple[Tensor, Tensor | None]:
        """Fill the tile with a chunk's logits; a shared head is read once."""
        count = len(chunk.student_hidden)
        student, teacher = self._matrix[:count], self._matrix[count : 2 * count]
        if chunk.teacher is None or chunk.teacher_hidden is None:
            operations.project(chunk.student, chunk.student_hidden, student)
            return student, None
        if self._shared:
            both = torch.cat([chunk.student_hidden, chunk.teacher_hidden])  # in the wider of their dtypes
            operations.project(chunk.student, both, self._matrix[: 2 * count])
        else:
            operations.project(chunk.student, chunk.student_hidden, student)
            operations.project(chunk.teacher, chunk.teacher_hidden, teacher)
        return student, teacher


def same_head(one: Head, other: Head) -> bool:
    """Return whether two heads are the same weights, scale and cap, so that one product serves both."""
    if not (isinstance(one, Projection) and isinstance(other, Projection)):
        return one is other
    places = [(_place(head.weight), _place(head.bias), head.scale, head.softcap) for head in (one, other)]
    return places[0] == places[1]


def _place(tensor: Tensor | None) -> tuple[object, ...] | None:
    """Return what says that two tensors are the same memory, read in the same way."""
    return None if tensor is None else (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)


def _normalised(
    chunk: HeadInputs, student: Tensor, teacher: Tensor | None, operations: TileOperations
) -> tuple[Tile, TokenRecord]:
    """Return a tile that is ready to be compared, and the record's fields that are read off its logits."""
    ours = operations.normalise(student)
    student_logprob, at_distillation = _logprobs(chunk, operations, student, ours.log_normaliser)
    # The entropy is a placeholder until the tile has been compared.
    record = TokenRecord(student_entropy=ours.log_normaliser, student_logprob=student_logprob)
    tile = Tile(operations, student, ours.log_normaliser, chunk.ids, at_distillation)
    if teacher is None:
        return tile, record
    theirs = operations.normalise(teacher)
    teacher_logprob, _ = _logprobs(chunk, operations, teacher, theirs.log_normaliser)
    agreement = (ours.argmax == theirs.argmax).to(student.dtype)
    record = replace(record, teacher_logprob=teacher_logprob, agreement=agreement)
    if chunk.strength > 0:
        _interpolate(teacher, student, chunk.strength)
        theirs = operations.normalise(teacher)
    return replace(tile, teacher=teacher, teacher_normaliser=theirs.log_normaliser), record


def _logprobs(
    chunk: HeadInputs, operations: TileOperations, logits: Tensor, normaliser: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Return the ids' log-probabilities at the temperature that is wanted, and at T_d."""
    if chunk.ids is None:
        return None, None
    z = operations.at_ids(logits, chunk.ids.unsqueeze(-1)).squeeze(-1)
    at_distillation = (z - normaliser).clamp(min=LOG_FLOOR)
    if chunk.logprob_temperature in (None, chunk.temperature):
        return at_distillation, at_distillation
    sharpness = chunk.temperature / chunk.logprob_temperature
    wanted = z * sharpness - operations.log_sum_exp(logits, sharpness)
    return wanted.clamp(min=LOG_FLOOR), at_distillation


def _interpolate(teacher: Tensor, student: Tensor, strength: float) -> None:
    """Turn the teacher's logits into (1-k) z_T + k z_S, in place (METHODS 3.5)."""
    if strength == 1:  # 0 * -inf would be nan
        teacher.copy_(student)
    else:
        teacher.mul_(1 - strength).add_(student, alpha=strength)


def _completed(record: TokenRecord, compared: Compared) -> TokenRecord:
    return replace(
        record,
        student_entropy=compared.student_entropy,
        teacher_entropy=compared.teacher_entropy,
        divergence=compared.divergence,
        clip_fraction=compared.clip_fraction,
        captured_mass=compared.captured_mass,
    )


def _worth(
    loss: TokenLoss, record: TokenRecord, rows: Rows, inputs: HeadInputs
) -> tuple[Tensor | None, Tensor | None] | None:
    """Return what a unit of each token's divergence and log-probability adds to the loss, per unit of raw logit."""
    fields = {name: getattr(record, name) for name in ("divergence", "student_logprob")}
    leaves = {name: value.detach().requires_grad_() for name, value in fields.items() if value is not None}
    with torch.enable_grad():
        total = loss(replace(record, **leaves), rows).sum()
        if not total.requires_grad:
            return None
        derivatives = dict(
            zip(leaves, torch.autograd.grad(total, list(leaves.values()), allow_unused=True), strict=True)
        )
    for_divergence, for_logprob = (derivatives.get(name) for name in fields)
    if for_divergence is None and for_logprob is None:
        return None
    if for_logprob is not None and inputs.logprob_temperature not in (None, inputs.temperature):
        temperatures = f"{inputs.logprob_temperature}, the distillation's {inputs.temperature}"
        raise SettingError(f"a loss of log-probabilities needs one temperature; theirs is {temperatures}.")
    # d z / d raw logits, up to the slope of a soft cap.
    factor = inputs.student.scale / inputs.temperature
    return tuple(None if one is None else one * factor for one in (for_divergence, for_logprob))  # type: ignore[return-value]


def _add_head_gradients(
    gradients: HeadGradients | None, operations: TileOperations, over_z: Tensor, hidden: Tensor
) -> None:
    if gradients is not None and gradients.weight is not None:
        operations.add_weight_gradient(over_z, hidden, gradients.weight)
    if gradients is not None and gradients.bias is not None:
        gradients.bias.add_(over_z.sum(0, dtype=gradients.bias.dtype))


def _joined(parts: list[TokenRecord]) -> TokenRecord:
    columns = {name: [getattr(part, name) for part in parts] for name in TokenRecord.__dataclass_fields__}
    fields: dict[str, Any] = {
        name: None if values[0] is None else torch.cat(values) for name, values in columns.items()
    }
    return TokenRecord(**fields)
