"""What a backend must do to one tile of logits, and which backend does it where.

A tile is a few rows (tokens) times the whole vocabulary, in float32 (float64 for float64 inputs); it is the only place
where logits exist. :mod:`selfdistill.objectives.head_pass` walks over the tiles; the operations here are made by
:class:`~selfdistill.objectives.torch_tiles.TorchTiles` (any device) and
:class:`~selfdistill.objectives.triton_tiles.TritonTiles` (CUDA).

Notation: z are logits divided by T_d, p = softmax(z), f_v the vocabulary summand of a divergence (clipped at tau), and
c_v = d f_v / d log p_S(v), 0 where f_v was clipped. Then, for every divergence on the full support,

    D = sum_v f_v        and        dD / dz_v = c_v - p_S(v) * sum_u c_u.

- forward_kl: f = p_T (log p_T - log p_S), c = -p_T
- reverse_kl: f = p_S (log p_S - log p_T), c = p_S (log p_S - log p_T + 1)
- jsd: f = (1-beta) p_S log(p_S / M) + beta p_T log(p_T / M), c = (1-beta) p_S log(p_S / M)
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from jaxtyping import Float, Int
from torch import Tensor

from selfdistill.models.head import Head, Projection
from selfdistill.objectives.settings import DivergenceSettings


class RowStatistics(NamedTuple):
    """What normalises each row of a tile."""

    log_normaliser: Float[Tensor, " n"]
    """log sum_v exp(z_v) of the matrix as it now is: 0 where the backend has subtracted it."""
    argmax: Int[Tensor, " n"]
    """Id of the largest logit; ties go to the lowest id."""


class FullComparison(NamedTuple):
    """Sums over the vocabulary of each row, in nats where they are information."""

    student_entropy: Float[Tensor, " n"]
    teacher_entropy: Float[Tensor, " n"]
    divergence: Float[Tensor, " n"]
    """Sum of the summands after the entry clip, before any token clip."""
    coefficient_sum: Float[Tensor, " n"]
    """sum_v c_v."""
    clip_fraction: Float[Tensor, " n"]
    """Share of the V summands that the entry clip cut; 0 without a clip."""


class TileOperations(Protocol):
    """The operations of one head pass. An object may keep scratch memory between tiles, and knows T_d.

    Order of calls for a tile: ``project`` each side; ``cap_slope``; ``normalise`` each side, which may subtract the
    normaliser in place; reads through ``at_ids`` and ``log_sum_exp``; then ``compare`` (full support) or ``entropy`` of
    each side (top-k support, or no teacher); then ``gradient``. From ``compare`` / ``entropy`` on the matrices belong
    to the backend: it may have overwritten them.
    """

    def project(self, head: Head, hidden: Float[Tensor, "n H"], out: Float[Tensor, "n V"]) -> None:
        """Fill ``out`` with the logits of ``hidden``: z, or z up to a factor that the other operations apply."""
        ...

    def at_ids(self, logits: Float[Tensor, "n V"], ids: Int[Tensor, "n K"]) -> Float[Tensor, "n K"]:
        """Return z at the ids of each row."""
        ...

    def normalise(self, logits: Float[Tensor, "n V"]) -> RowStatistics:
        """Return what normalises each row, and its arg-max."""
        ...

    def log_sum_exp(self, logits: Float[Tensor, "n V"], sharpness: float = 1.0) -> Float[Tensor, " n"]:
        """Return log sum_v exp(sharpness * z_v); a ``sharpness`` of T_d / T normalises at another temperature T."""
        ...

    def entropy(self, logits: Float[Tensor, "n V"], log_normaliser: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return the entropy of each row."""
        ...

    def compare(
        self,
        student: Float[Tensor, "n V"],
        teacher: Float[Tensor, "n V"],
        student_normaliser: Float[Tensor, " n"],
        teacher_normaliser: Float[Tensor, " n"],
        settings: DivergenceSettings,
    ) -> FullComparison:
        """Compare both sides on the full support."""
        ...

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
        """Return g_v = scale * p_S(v) + coefficient_scale * c_v, the gradient with respect to z; no c without teacher.

        The matrix may be the ``student``'s own memory, and may be in the dtype in which it will be multiplied. The
        caller adds what belongs to single ids (the sampled one, a top-k support) to it afterwards.
        """
        ...

    def cap_slope(self, logits: Float[Tensor, "n V"], softcap: float) -> Float[Tensor, "n V"]:
        """Return 1 - (capped logit / softcap)^2, the slope of a soft cap, in memory of its own."""
        ...

    def hidden_gradient(self, head: Projection, gradient: Float[Tensor, "n V"]) -> Float[Tensor, "n H"]:
        """Return gradient @ W, the product that carries a tile's gradient back to the hidden states."""
        ...

    def add_weight_gradient(
        self, gradient: Float[Tensor, "n V"], hidden: Float[Tensor, "n H"], out: Float[Tensor, "V H"]
    ) -> None:
        """Add gradient^T @ hidden to ``out``, in the precision of ``out``."""
        ...
