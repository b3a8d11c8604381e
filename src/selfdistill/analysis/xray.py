"""A token x-ray: everything that scoring one question's rollouts says, token by token, ready to be drawn.

In: nothing; these are plain records. :mod:`selfdistill.analysis.inspection` makes them from a recipe or a run,
:mod:`selfdistill.analysis.xray_page` draws them. All probabilities and entropies are at the distillation temperature,
in nats, float32 on the CPU; the log-probabilities of the sampled tokens are at the sampling temperature.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor

COLUMNS = {
    "divergence": "divergence of the student from the (interpolated) self-teacher, nats, as the method minimises it",
    "entropy_ratio": "H_T / max(H_S, 1e-6), what PAINT ranks tokens by",
    "log_ratio": "log p_T(y) - log p_S(y) of the sampled token",
    "weight": "what the token's loss is multiplied with, over the mean size of that on this group's tokens",
    "student_entropy": "H_S, nats",
    "teacher_entropy": "H_T, nats",
    "student_logprob": "log p_S(y)",
    "teacher_logprob": "log p_T(y)",
    "rollout_logprob": "log-probability that the token was drawn with",
    "clip_fraction": "share of the divergence's summands that the clip cut",
    "captured_mass": "probability that the owner of a top-k support has on its ids",
    "student_logprob_after": "log p_S(y) after the update",
    "divergence_after": "divergence after the update, from the same teacher",
}
"""What a token may be told about, by column; a rollout has those of its method."""


@dataclass(frozen=True, slots=True)
class TopTokens:
    """The likeliest next tokens at some positions."""

    ids: Int[Tensor, "n k"]
    probabilities: Float[Tensor, "n k"]
    """Largest first."""


@dataclass(frozen=True, slots=True)
class TokenTable:
    """What is known about the tokens of one response, in order."""

    ids: Int[Tensor, " n"]
    columns: Mapping[str, Float[Tensor, " n"]]
    """By names of :data:`COLUMNS`."""
    selected: Bool[Tensor, " n"]
    """PAINT: the interpolated positions."""
    student: TopTokens
    teacher: TopTokens | None
    """None: the rollout has no teacher."""
    interpolated: TopTokens | None
    """Of the selected positions only, in order; elsewhere the target is the teacher's."""


@dataclass(frozen=True, slots=True)
class Anchor:
    """One of PAINT's anchors: what the reference solution contains that a response may contain too."""

    text: str
    found: bool


@dataclass(frozen=True, slots=True)
class Context:
    """What the teacher was shown for one rollout."""

    source: str
    """As in :class:`selfdistill.contexts.prompt.PrivilegedPrompt`."""
    shown: str
    """The privileged text as the teacher sees it."""
    messages: tuple[Mapping[str, str], ...]
    """The teacher's whole prompt: ``role`` and ``content``."""
    overlap: float | None = None
    hidden_ratio: float | None = None
    anchors: tuple[Anchor, ...] = ()
    solution_parts: tuple[tuple[str, bool], ...] = ()
    """The reference solution in consecutive parts, each with whether it was hidden from the teacher; empty where the
    teacher is shown no solution."""
    demonstrator: int | None = None
    """Sibling whose response was shown."""
    truncated_tokens: int = 0


@dataclass(frozen=True, slots=True)
class RolloutXray:
    """One rollout of the question."""

    sibling: int
    text: str
    finish_reason: str
    reward: float
    success: bool
    answer: str | None
    feedback: str | None
    objective: str | None
    """``distillation``, ``policy``, ``imitation``; None: no signal, so it is not trained on."""
    weight: float
    """The question's weight."""
    advantage: float
    context: Context | None
    tokens: TokenTable | None
    """None: it was not scored."""


@dataclass(frozen=True, slots=True)
class Xray:
    """One question's rollouts under a microscope."""

    title: str
    recipe: str
    method: str
    model: str
    weights: str
    """Which weights scored, for people: ``before training``, ``checkpoint after step 40``."""
    step: int
    question_id: str
    messages: tuple[Mapping[str, str], ...]
    answer: str | None
    solution: str | None
    pass_rate: float
    rollouts: tuple[RolloutXray, ...]
    vocabulary: Mapping[int, str]
    """Text of every id that occurs in a table; untrusted, and may be a part of a character."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The method's settings that a reader wants beside the tokens, name to value."""
    update: str | None = None
    """What the update was whose effect the ``_after`` columns show; None: none was made."""
