"""The self-teacher at work: from (privileged prompt, response) pairs to hidden states and the head that reads them.

Everything here is a constant for the student (no gradient), and all that a resumed run needs is in ``state_dict``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from selfdistill.models.head import Head, MixedProjection, Projection, projection_of
from selfdistill.parallel.sharding import scoring, sharding_of
from selfdistill.scoring.forward import score_rows
from selfdistill.scoring.rows import TokenPair
from selfdistill.scoring.settings import Forwarding
from selfdistill.teachers.parts import Initial, Live, MovingAverage, NoTeacher, TrustRegion
from selfdistill.teachers.weights import Weights, adapters_off, snapshot, swapped, trainable


@dataclass(frozen=True, slots=True)
class TeacherScores:
    """What the teacher says about a batch of rows."""

    states: list[Float[Tensor, "n H"]]
    """Per row, the hidden states that predict its response tokens; of width 2H (initial, live) under a trust region."""
    projection: Head
    """The teacher's head, at the weights that scored."""


class SelfTeacher:
    """The student's own architecture with the teacher's weights.

    Args:
        model: the student.
        weights: by parameter name, what differs from the student's; empty if nothing does.
    """

    def __init__(self, model: nn.Module, weights: Weights) -> None:
        self.model, self.weights = model, weights

    def view(self) -> AbstractContextManager[None]:
        """Return a block inside which ``self.model`` has the teacher's weights."""
        return swapped(self.model, self.weights)

    def score(self, pairs: Sequence[TokenPair], forwarding: Forwarding) -> TeacherScores:
        """Score response tokens given privileged prompts, without gradient, a prompt that rows share only once."""
        with self.view(), scoring(self.model) as together:
            states = score_rows(self.model, pairs, forwarding, together)
            return TeacherScores(
                states, _constant(projection_of(self.model), copied=sharding_of(self.model) is not None)
            )

    def after_step(self) -> None:
        """Follow the student after an optimiser step."""

    def after_batch(self) -> None:
        """Follow the student after all updates on one batch of rollouts."""

    def state_dict(self) -> Weights:
        """Return everything that must survive a restart."""
        return dict(self.weights)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy what :meth:`state_dict` returned into this teacher.

        Raises:
            ValueError: the weights are another model's.
        """
        own = self.weights
        differing = own.keys() ^ state.keys() or {name for name in own if own[name].shape != state[name].shape}
        if differing:
            name = min(differing)
            raise ValueError(
                f"the teacher's saved weights do not fit: {name!r} is missing, unknown or of another shape"
            )
        for name, value in own.items():
            value.copy_(state[name])


class InitialTeacher(SelfTeacher):
    """The student's actual initial weights: adapters off under LoRA, else a frozen copy made before training."""

    def __init__(self, model: nn.Module) -> None:
        self.has_adapters = hasattr(model, "peft_config")
        super().__init__(model, {} if self.has_adapters else snapshot(model))

    def view(self) -> AbstractContextManager[None]:
        """Return a block with the adapters off, or with the frozen copy in place."""
        return adapters_off(self.model) if self.has_adapters else super().view()


class MovingAverageTeacher(SelfTeacher):
    """Moving average of the trainable weights (the adapter's factors under LoRA), started at the student's own values.

    The average is float32 even if the model is bf16 (float64 if that is): at small learning rates a bf16 average would
    not move at all.
    """

    def __init__(self, model: nn.Module, rate: float, every: Literal["batch", "step"]) -> None:
        super().__init__(model, snapshot(model, at_least=torch.float32))
        self.rate, self.every = rate, every

    def after_step(self) -> None:
        """Move towards the student if the average follows every optimiser step."""
        if self.every == "step":
            self._follow()

    def after_batch(self) -> None:
        """Move towards the student if the average follows every batch of rollouts."""
        if self.every == "batch":
            self._follow()

    @torch.no_grad()
    def _follow(self) -> None:
        for name, parameter in trainable(self.model).items():
            average = self.weights[name]
            average.lerp_(parameter.detach().to(average.dtype), self.rate)


class LiveTeacher(SelfTeacher):
    """The student itself at its current weights."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, {})


class TrustRegionTeacher(InitialTeacher):
    """Logits between the initial and the current weights: (1 - rate) z_initial + rate z_student."""

    def __init__(self, model: nn.Module, rate: float) -> None:
        super().__init__(model)
        self.rate = rate

    def score(self, pairs: Sequence[TokenPair], forwarding: Forwarding) -> TeacherScores:
        """Score twice, with the initial and with the current weights; the head mixes the two logits."""
        initial = super().score(pairs, forwarding)
        live = LiveTeacher(self.model).score(pairs, forwarding)
        assert isinstance(initial.projection, Projection) and isinstance(live.projection, Projection)
        states = [torch.cat(both, dim=-1) for both in zip(initial.states, live.states, strict=True)]
        return TeacherScores(states, MixedProjection(initial.projection, live.projection, self.rate))


def start_teacher(
    part: Initial | MovingAverage | Live | TrustRegion | NoTeacher, model: nn.Module
) -> SelfTeacher | None:
    """Make the teacher that a method asks for, from the student as it is now (before its first update)."""
    match part:
        case Initial():
            return InitialTeacher(model)
        case MovingAverage(rate=rate, every=every):
            return MovingAverageTeacher(model, rate, every)
        case Live():
            return LiveTeacher(model)
        case TrustRegion(rate=rate):
            return TrustRegionTeacher(model, rate)
        case NoTeacher():
            return None


def _constant(projection: Projection, *, copied: bool) -> Projection:
    """Hold on to the head's values as they are now, without gradient: inside a view those are the teacher's.

    What was brought together from several processes has to be ``copied``: it is let go of at the end of the block.
    """

    def held(value: Tensor) -> Tensor:
        return value.detach().clone() if copied else value.detach()

    bias = projection.bias
    return replace(projection, weight=held(projection.weight), bias=None if bias is None else held(bias))
