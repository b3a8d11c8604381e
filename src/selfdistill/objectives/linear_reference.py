"""The readable path from hidden states: chunks of rows, autograd, and nothing clever. The fused path must equal it.

In: hidden states [N, H] of student and self-teacher at the positions that predict each response token, and the
projection head. Out: a :class:`TokenRecord` of N tokens, differentiable in the student's hidden states (and in the
head, if it is trained). Each chunk's logits are made, compared and dropped, and made again in the backward pass, so
memory is a few [rows_per_chunk, V] tensors whatever N is. Same definitions as ``divergence.py`` (METHODS section 2).
A recipe's ``scoring.head: readable`` trains with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from selfdistill.models.head import Head, Projection
from selfdistill.objectives.divergence import compare_log_probabilities, entropy, log_probabilities, working_dtype
from selfdistill.objectives.interpolation import check_share, interpolate_targets
from selfdistill.objectives.record import TokenRecord
from selfdistill.objectives.settings import DivergenceSettings, SettingError

CHUNK_ELEMENTS = 2**24
"""Logits per chunk by default: 64 MiB in float32."""
MINIMUM_CHUNKS = 4
"""Even a small batch is cut into this many, so that the peak is always a fraction of [N, V]."""

Rows = Sequence[Tensor | None]
"""Per-token inputs of a chunk: tensors whose first dimension is N, or None where an input was not given."""


def linear_token_divergence(
    student_hidden: Float[Tensor, "N H"],
    teacher_hidden: Float[Tensor, "N H2"],
    weight: Float[Tensor, "V H"] | Head,
    settings: DivergenceSettings,
    *,
    response_ids: Int[Tensor, " N"] | None = None,
    teacher_weight: Float[Tensor, "V H2"] | Head | None = None,
    selected: Bool[Tensor, " N"] | None = None,
    strength: float = 0.0,
    logprob_temperature: float | None = None,
    rows_per_chunk: int | None = None,
) -> TokenRecord:
    """Return the record of N tokens; a full :func:`token_divergence` on projected logits, in chunks of rows.

    ``student_hidden`` may have any floating dtype and is where gradients flow; ``teacher_hidden`` is a constant.
    ``weight`` is the student's head, a [V, H] matrix or a :class:`Projection` (with bias, scale, soft cap);
    ``teacher_weight`` is the teacher's, None for the same. With ``response_ids`` the record has log-probabilities, at
    ``logprob_temperature`` (None: T_d). On ``selected`` tokens the target is interpolated by ``strength``,
    k in [0, 1] (PAINT, METHODS 3.5); teacher entropy and log-probability are those before. With ``rows_per_chunk``
    None a chunk has at most 2^24 logits and a quarter of the rows. For the rest see :func:`token_divergence`.

    Raises:
        SettingError: settings that cannot be, or tensors whose sizes do not fit together.
    """
    check_share("strength", strength)
    student_head = as_head(weight)
    teacher_head = student_head if teacher_weight is None else as_head(teacher_weight)
    settings.check_vocabulary(student_head.vocabulary)
    check_sizes(student_head, teacher_head, student_hidden, teacher_hidden, response_ids, selected)
    student_head, teacher_head = _cast_once(student_head, teacher_head, student_hidden, teacher_hidden)
    at = settings.temperature if logprob_temperature is None else logprob_temperature
    compare_rows = partial(_compare_rows, student_head, teacher_head, settings, strength, at)
    rows = (student_hidden, teacher_hidden.detach(), response_ids, selected)
    return _in_chunks(compare_rows, rows, _rows(rows_per_chunk, student_hidden, student_head))


def _compare_rows(
    student_head: Head,
    teacher_head: Head,
    settings: DivergenceSettings,
    strength: float,
    logprob_temperature: float,
    student_hidden: Float[Tensor, "n H"],
    teacher_hidden: Float[Tensor, "n H2"],
    ids: Int[Tensor, " n"] | None,
    selected: Bool[Tensor, " n"] | None,
) -> TokenRecord:
    """Return the record of one chunk of rows; the only place where logits exist."""
    temperature = settings.temperature
    student_logits = student_head.logits(student_hidden)
    student = log_probabilities(student_logits, temperature)
    with torch.no_grad():
        teacher_logits = teacher_head.logits(teacher_hidden)
        teacher = target = log_probabilities(teacher_logits, temperature)
        if selected is not None and strength > 0:
            mixed = interpolate_targets(teacher_logits, student_logits, selected, strength)
            target = log_probabilities(mixed, temperature)
    compared = compare_log_probabilities(student, target, settings)
    return TokenRecord(
        student_entropy=entropy(student.detach()),
        student_logprob=_logprob(student, student_logits, ids, temperature, logprob_temperature),
        divergence=compared.divergence,
        teacher_entropy=entropy(teacher),
        teacher_logprob=_logprob(teacher, teacher_logits, ids, temperature, logprob_temperature),
        clip_fraction=compared.clip_fraction,
        captured_mass=compared.captured_mass,
        agreement=(student_logits.argmax(-1) == teacher_logits.argmax(-1)).to(student.dtype),
    )


def linear_token_logprobs(
    student_hidden: Float[Tensor, "N H"],
    projection: Float[Tensor, "V H"] | Head,
    response_ids: Int[Tensor, " N"],
    temperature: float = 1.0,
    *,
    rows_per_chunk: int | None = None,
) -> TokenRecord:
    """Return a record with the student's fields only: entropy (constant), log-probability of each id (differentiable).

    For policy gradients and imitation, which have no teacher. Chunked as :func:`linear_token_divergence`.

    Raises:
        SettingError: tensors whose sizes do not fit together.
    """
    head = as_head(projection)
    check_sizes(head, head, student_hidden, student_hidden, response_ids, None)
    head, _ = _cast_once(head, head, student_hidden)

    def look_at_rows(hidden: Tensor, ids: Tensor) -> TokenRecord:
        student = log_probabilities(head.logits(hidden), temperature)
        return TokenRecord(student_entropy=entropy(student.detach()), student_logprob=_gather(student, ids))

    return _in_chunks(look_at_rows, (student_hidden, response_ids), _rows(rows_per_chunk, student_hidden, head))


@torch.no_grad()
def linear_entropies(
    hidden: Float[Tensor, "N H"],
    projection: Float[Tensor, "V H"] | Head,
    temperature: float = 1.0,
    *,
    rows_per_chunk: int | None = None,
) -> Float[Tensor, " N"]:
    """Return the entropy in nats of each token's next-token distribution, without gradient, in chunks of rows."""
    head = as_head(projection)
    check_sizes(head, head, hidden, hidden, None, None)
    head, _ = _cast_once(head, head, hidden)
    chunks = torch.split(hidden, _rows(rows_per_chunk, hidden, head))
    return torch.cat([entropy(log_probabilities(head.logits(chunk), temperature)) for chunk in chunks])


def _rows(rows_per_chunk: int | None, hidden: Tensor, head: Head) -> int:
    """Return how many tokens a chunk holds: what the caller says, or what bounds both a chunk and its share of N."""
    if rows_per_chunk is None:
        return max(1, min(CHUNK_ELEMENTS // head.vocabulary, math.ceil(len(hidden) / MINIMUM_CHUNKS)))
    if rows_per_chunk < 1:
        raise SettingError(f"rows_per_chunk={rows_per_chunk} must be at least 1.")
    return rows_per_chunk


def as_head(weight: Tensor | Head) -> Head:
    """Return a bare [V, H] matrix as a :class:`Projection`, and a head as it is."""
    return Projection(weight) if isinstance(weight, Tensor) else weight


def _in_chunks(function: Callable[..., TokenRecord], rows: Rows, rows_per_chunk: int) -> TokenRecord:
    """Apply ``function`` to chunks of rows, keeping only their inputs for the backward pass, and join the records."""
    columns = [None if column is None else torch.split(column, rows_per_chunk) for column in rows]
    chunks = max(len(column) for column in columns if column is not None)
    names = TokenRecord.__dataclass_fields__
    parts: dict[str, list[Tensor | None]] = {name: [] for name in names}

    def values(*inputs: Tensor | None) -> tuple[Tensor | None, ...]:
        record = function(*inputs)
        return tuple(getattr(record, name) for name in names)

    for index in range(chunks):
        inputs = [None if column is None else column[index] for column in columns]
        # The checkpoint drops the chunk's logits after the forward pass. Nothing in a chunk is random.
        outputs = checkpoint(values, *inputs, use_reentrant=False, preserve_rng_state=False)
        for name, value in zip(names, outputs, strict=True):
            parts[name].append(value)
    return TokenRecord(**{name: _join(values) for name, values in parts.items()})  # type: ignore[arg-type]


def _join(parts: list[Tensor | None]) -> Tensor | None:
    tensors = [part for part in parts if part is not None]
    return torch.cat(tensors) if tensors else None


def _cast_once(student: Head, teacher: Head, *hidden: Tensor) -> tuple[Head, Head]:
    """Return both heads in the working dtype; one cast, and one copy, when they are the same head."""
    dtype = torch.float64 if torch.float64 in (student.dtype, teacher.dtype) else working_dtype(*hidden)
    cast = student.to(dtype)
    return cast, cast if teacher is student else teacher.to(dtype)


def _logprob(log_probs: Tensor, logits: Tensor, ids: Tensor | None, temperature: float, wanted: float) -> Tensor | None:
    """Return log-probabilities of ``ids`` at the temperature ``wanted``, given those at ``temperature``."""
    if ids is None:
        return None
    return _gather(log_probs if wanted == temperature else log_probabilities(logits, wanted), ids)


def _gather(log_probs: Float[Tensor, "n V"], ids: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    return log_probs.gather(-1, ids.long().unsqueeze(-1)).squeeze(-1)


def check_sizes(
    student_head: Head,
    teacher_head: Head,
    student: Tensor,
    teacher: Tensor,
    ids: Tensor | None,
    selected: Tensor | None,
) -> None:
    """Raise :class:`SettingError` when widths, vocabularies or numbers of tokens do not fit together."""
    for name, hidden, head in (("student", student, student_head), ("teacher", teacher, teacher_head)):
        if hidden.dim() != 2 or hidden.shape[1] != head.width:
            raise SettingError(f"{name}_hidden has shape {tuple(hidden.shape)}; its head needs [N, {head.width}].")
    if student_head.vocabulary != teacher_head.vocabulary:
        sizes = f"{student_head.vocabulary} and {teacher_head.vocabulary}"
        raise SettingError(f"student and teacher heads have {sizes} ids; self-distillation needs one vocabulary.")
    for name, column in (("teacher_hidden", teacher), ("response_ids", ids), ("selected", selected)):
        if column is not None and column.shape[:1] != student.shape[:1]:
            sizes = f"{name} has {column.shape[0]} rows but student_hidden {student.shape[0]}"
            raise SettingError(f"{sizes}; pass one row per response token.")
