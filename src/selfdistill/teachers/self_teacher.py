"""The self-teacher at work: from (privileged prompt, response) pairs to hidden states and the head that reads them.

Everything here is a constant for the student (no gradient), and everything that a resumed run needs is in ``state_dict``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from selfdistill.errors import ModelError
from selfdistill.models.head import Head, MixedProjection, Projection, projection_of
from selfdistill.scoring.forward import TokenPair, score_rows
from selfdistill.teachers.parts import Initial, Live, MovingAverage, NoTeacher, TrustRegion
from selfdistill.teachers.weights import Weights, adapters_off, snapshot, swapped, trainable


@dataclass(frozen=True, slots=True)
class TeacherScores:
    """What the teacher says about a batch of rows."""

    states: list[Float[Tensor, "n H"]]
    """Per row, the hidden states that predict its response tokens (two states side by side for a trust-region teacher)."""
    projection: Head
    """The teacher's head, at the weights that scored."""


class SelfTeacher(ABC):
    """The student's own architecture with the teacher's weights."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    @abstractmethod
    def view(self) -> AbstractContextManager[None]:
        """Return a block inside which ``self.model`` has the teacher's weights."""

    def score(self, pairs: Sequence[TokenPair], token_budget: int, pad_id: int = 0) -> TeacherScores:
        """Score response tokens given privileged prompts, without gradient, ``token_budget`` tokens at a time."""
        with self.view():
            projection = _constant(projection_of(self.model))
            return TeacherScores(score_rows(self.model, pairs, token_budget, pad_id), projection)

    def after_step(self) -> None:
        """Follow the student after an optimiser step."""

    def after_batch(self) -> None:
        """Follow the student after all updates on one batch of rollouts."""

    def state_dict(self) -> Weights:
        """Return everything that must survive a restart."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state_dict` returned."""


class InitialTeacher(SelfTeacher):
    """The student's actual initial weights: adapters off under LoRA, else a frozen copy made before the first update."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.has_adapters = hasattr(model, "peft_config")
        self.initial = {} if self.has_adapters else snapshot(model)

    def view(self) -> AbstractContextManager[None]:
        return adapters_off(self.model) if self.has_adapters else swapped(self.model, self.initial)

    def state_dict(self) -> Weights:
        return dict(self.initial)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        _restore(self.initial, state)


class MovingAverageTeacher(SelfTeacher):
    """Moving average of the trainable weights (the adapter's factors under LoRA), started at the student's own values.

    The average is float32 even if the model is bf16 (float64 if that is): at small learning rates a bf16 average would
    not move at all.
    """

    def __init__(self, model: nn.Module, rate: float, every: Literal["batch", "step"]) -> None:
        super().__init__(model)
        self.rate, self.every = rate, every
        self.average = snapshot(model, torch.float32)

    def view(self) -> AbstractContextManager[None]:
        return swapped(self.model, self.average)

    def after_step(self) -> None:
        if self.every == "step":
            self._follow()

    def after_batch(self) -> None:
        if self.every == "batch":
            self._follow()

    @torch.no_grad()
    def _follow(self) -> None:
        for name, parameter in trainable(self.model).items():
            average = self.average[name]
            average.lerp_(parameter.detach().to(average.dtype), self.rate)

    def state_dict(self) -> Weights:
        return dict(self.average)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        _restore(self.average, state)


class LiveTeacher(SelfTeacher):
    """The student itself at its current weights."""

    def view(self) -> AbstractContextManager[None]:
        return nullcontext()


class TrustRegionTeacher(SelfTeacher):
    """Logits between the initial and the current weights: (1 - rate) z_initial + rate z_student."""

    def __init__(self, model: nn.Module, rate: float) -> None:
        super().__init__(model)
        self.rate = rate
        self.initial = InitialTeacher(model)

    def view(self) -> AbstractContextManager[None]:
        return self.initial.view()

    def score(self, pairs: Sequence[TokenPair], token_budget: int, pad_id: int = 0) -> TeacherScores:
        initial = self.initial.score(pairs, token_budget, pad_id)
        live = LiveTeacher(self.model).score(pairs, token_budget, pad_id)
        assert isinstance(initial.projection, Projection) and isinstance(live.projection, Projection)
        states = [torch.cat(both, dim=-1) for both in zip(initial.states, live.states, strict=True)]
        return TeacherScores(states, MixedProjection(initial.projection, live.projection, self.rate))

    def state_dict(self) -> Weights:
        return self.initial.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.initial.load_state_dict(state)


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


def _constant(projection: Projection) -> Projection:
    """Hold on to the head's values as they are now, without gradient: inside a view those are the teacher's."""
    bias = projection.bias
    return replace(projection, weight=projection.weight.detach(), bias=None if bias is None else bias.detach())


def _restore(own: Weights, state: Mapping[str, Tensor]) -> None:
    """Copy ``state`` into ``own``, so that neither changes with the other later."""
    differing = own.keys() ^ state.keys() or {name for name in own if own[name].shape != state[name].shape}
    if differing:
        raise ModelError(
            f"the teacher's saved weights are another model's: {min(differing)!r} is missing, unknown or of another shape; "
            "resume with the model and the method that the checkpoint was made with"
        )
    for name, value in own.items():
        value.copy_(state[name])
