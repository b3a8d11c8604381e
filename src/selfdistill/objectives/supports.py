"""Which ids of a tile are compared: all, a top-k support, or none (no teacher).

In: a :class:`Tile` of normalised logits. Out: a :class:`Compared`, the record's fields, and the gradient with respect
to the logits once the token losses have said what each field is worth. Formulas: :mod:`selfdistill.objectives.tiles`;
for ``student_topk`` with a tail bucket, d log p_tail / d log p_v = p_v / p_tail for every id v outside the support.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from selfdistill.objectives.divergence import LOG_FLOOR, clipped_divergence, largest_ids
from selfdistill.objectives.settings import DivergenceSettings
from selfdistill.objectives.tiles import TileOperations

PerToken = Float[Tensor, " n"]
Gradient = Callable[[PerToken | None, PerToken | None], Float[Tensor, "n V"]]
"""From d loss / d divergence and d loss / d log p_S(y) of each token (None: 0) to d loss / dz."""


@dataclass(frozen=True, slots=True)
class Tile:
    """A few rows of logits, normalised."""

    operations: TileOperations
    student: Float[Tensor, "n V"]
    student_normaliser: PerToken
    ids: Int[Tensor, " n"] | None
    student_logprob: PerToken | None
    """log p_S of the ids at T_d."""
    teacher: Float[Tensor, "n V"] | None = None
    """The target: interpolated where it has to be."""
    teacher_normaliser: PerToken | None = None


@dataclass(frozen=True, slots=True)
class Compared:
    """Fields of the record, and how to differentiate them. Calling ``gradient`` uses the tile up."""

    gradient: Gradient
    student_entropy: PerToken
    teacher_entropy: PerToken | None = None
    divergence: PerToken | None = None
    clip_fraction: PerToken | None = None
    captured_mass: PerToken | None = None


def compare_tile(tile: Tile, settings: DivergenceSettings | None) -> Compared:
    """Compare a tile's two sides on the support that the settings ask for; without settings there is one side."""
    if settings is None:
        return _alone(tile)
    return _token_clipped(_full(tile, settings) if settings.support == "full" else _topk(tile, settings), settings)


def _alone(tile: Tile) -> Compared:
    entropy = tile.operations.entropy(tile.student, tile.student_normaliser)
    return Compared(lambda _, for_logprob: _logprob_gradient(tile, for_logprob), student_entropy=entropy)


def _logprob_gradient(tile: Tile, for_logprob: PerToken | None) -> Float[Tensor, "n V"]:
    """Return b (1[v = y] - p_S(v)); at the id itself as -b expm1(log p_S), which keeps its digits near p_S = 1."""
    assert tile.ids is not None and tile.student_logprob is not None and for_logprob is not None
    gradient = tile.operations.gradient(tile.student, tile.student_normaliser, -for_logprob)
    at_id = -for_logprob * torch.expm1(tile.student_logprob)
    return gradient.scatter_(1, tile.ids.unsqueeze(-1), at_id.unsqueeze(-1).to(gradient.dtype))


def _full(tile: Tile, settings: DivergenceSettings) -> Compared:
    assert tile.teacher is not None and tile.teacher_normaliser is not None
    sums = tile.operations.compare(
        tile.student, tile.teacher, tile.student_normaliser, tile.teacher_normaliser, settings
    )

    def gradient(for_divergence: PerToken | None, for_logprob: PerToken | None) -> Float[Tensor, "n V"]:
        if for_divergence is None:
            return _logprob_gradient(tile, for_logprob)
        scale = -for_divergence * sums.coefficient_sum
        result = tile.operations.gradient(
            tile.student,
            tile.student_normaliser,
            scale if for_logprob is None else scale - for_logprob,
            teacher=tile.teacher,
            teacher_normaliser=tile.teacher_normaliser,
            coefficient_scale=for_divergence,
            settings=settings,
        )
        return _add_at_ids(result, tile.ids, for_logprob)

    return Compared(
        gradient,
        student_entropy=sums.student_entropy,
        teacher_entropy=sums.teacher_entropy,
        divergence=sums.divergence,
        clip_fraction=sums.clip_fraction,
        captured_mass=torch.ones_like(sums.divergence),
    )


def _topk(tile: Tile, settings: DivergenceSettings) -> Compared:
    """Compare on K ids, and the rest as one bucket if there is a tail; the K entries leave the tile for that."""
    assert tile.teacher is not None and tile.teacher_normaliser is not None and settings.top_k is not None
    owner = tile.student if settings.support == "student_topk" else tile.teacher
    ids = largest_ids(owner, settings.top_k)
    student = _take_out(tile.operations, tile.student, tile.student_normaliser, ids)
    teacher = _take_out(tile.operations, tile.teacher, tile.teacher_normaliser, ids)
    leaf = student.log_probs.requires_grad_()
    with torch.enable_grad():
        divergence, clipped = clipped_divergence(*_on_support(leaf, teacher.log_probs, settings), settings)
        (derivative,) = torch.autograd.grad(divergence.sum(), leaf)
    derivative.masked_fill_(leaf.detach() <= LOG_FLOOR, 0)  # a floored log-probability is a constant
    on_ids, on_tail = derivative[:, :-1], derivative[:, -1]
    p_ids = leaf.detach()[:, :-1].exp()

    def gradient(for_divergence: PerToken | None, for_logprob: PerToken | None) -> Float[Tensor, "n V"]:
        a = torch.zeros_like(on_tail) if for_divergence is None else for_divergence
        common = -a * derivative.sum(-1)
        common = common if for_logprob is None else common - for_logprob
        # 1 / p_tail, kept finite: a tail below e^-80 has no float32 probabilities to spread its gradient over.
        outside = common + a * on_tail * (-leaf.detach()[:, -1].clamp(min=-80.0)).exp()
        result = tile.operations.gradient(tile.student, tile.student_normaliser, outside)
        at_ids = a.unsqueeze(-1) * on_ids + common.unsqueeze(-1) * p_ids
        result.scatter_(1, ids, at_ids.to(result.dtype))
        return _add_at_ids(result, tile.ids, for_logprob)

    captured = (student if settings.support == "student_topk" else teacher).log_probs.detach()[:, :-1].exp().sum(-1)
    return Compared(gradient, student.entropy, teacher.entropy, divergence.detach(), clipped, captured)


@dataclass(frozen=True, slots=True)
class _TakenOut:
    log_probs: Float[Tensor, "n K+1"]
    """On the K ids and, last, of everything else together."""
    entropy: PerToken
    """Over the full vocabulary."""


def _take_out(operations: TileOperations, logits: Tensor, normaliser: PerToken, ids: Int[Tensor, "n K"]) -> _TakenOut:
    """Read the K ids off one side and forbid them there, so that what is left is the tail, precise however small."""
    log_probs = (operations.at_ids(logits, ids) - normaliser.unsqueeze(-1)).clamp(min=LOG_FLOOR)
    logits.scatter_(1, ids, -torch.inf)
    tail = (operations.log_sum_exp(logits) - normaliser).clamp(min=LOG_FLOOR)
    entropy = operations.entropy(logits, normaliser) - (log_probs.exp() * log_probs).sum(-1)
    return _TakenOut(torch.cat([log_probs, tail.unsqueeze(-1)], dim=-1), entropy)


def _on_support(student: Tensor, teacher: Tensor, settings: DivergenceSettings) -> tuple[Tensor, Tensor]:
    if settings.support == "teacher_topk":
        return student[:, :-1].log_softmax(-1), teacher[:, :-1].log_softmax(-1)
    return (student, teacher) if settings.tail else (student[:, :-1], teacher[:, :-1])


def _token_clipped(compared: Compared, settings: DivergenceSettings) -> Compared:
    """Apply the token clip, above which a token has no gradient; to apply it twice, as for a top-k, changes nothing."""
    clip, divergence = settings.token_clip, compared.divergence
    if clip is None or divergence is None:
        return compared
    within = divergence <= clip

    def gradient(for_divergence: PerToken | None, for_logprob: PerToken | None) -> Float[Tensor, "n V"]:
        return compared.gradient(None if for_divergence is None else for_divergence * within, for_logprob)

    clipped = compared.clip_fraction
    if settings.entry_clip is None and settings.support == "full":
        clipped = (~within).to(divergence.dtype)
    return replace(compared, gradient=gradient, divergence=divergence.clamp(max=clip), clip_fraction=clipped)


def _add_at_ids(gradient: Tensor, ids: Int[Tensor, " n"] | None, values: PerToken | None) -> Float[Tensor, "n V"]:
    if values is None:
        return gradient
    assert ids is not None
    return gradient.scatter_add_(1, ids.unsqueeze(-1), values.unsqueeze(-1).to(gradient.dtype))
