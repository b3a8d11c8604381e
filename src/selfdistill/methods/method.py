"""A method is a composition of parts, as data: it can be printed, saved with a run, compared and overridden.

Two independent choices make a self-teacher, WHAT it sees (``context``) and WHOSE weights it has (``teacher``);
``weighting`` says which questions count, ``routing`` which objective each rollout goes to, ``reduction`` what the loss
is divided by.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, TypeAdapter, model_validator
from pydantic.dataclasses import dataclass

from selfdistill.contexts.hindsight import SiblingSuccess
from selfdistill.contexts.solution import FullSolution, NoContext, PartialSolution
from selfdistill.methods.sources import OwnRollouts, Source
from selfdistill.objectives.parts import Distillation, Imitation, PolicyGradient, Reduction
from selfdistill.teachers.parts import NoTeacher, Teacher
from selfdistill.validation import PART
from selfdistill.weighting.parts import Uniform, Weighting
from selfdistill.weighting.routing import Routing

Context = Annotated[NoContext | FullSolution | PartialSolution | SiblingSuccess, Field(discriminator="kind")]


@dataclass(frozen=True, kw_only=True, config=PART)
class Method:
    """One self-distillation method or baseline, as the parts that it is made of."""

    name: str
    """Registered name, or the name of the method that this one was derived from."""
    paper: str
    """Where the method comes from."""
    source: Source
    routing: Routing
    reduction: Reduction
    context: Context = NoContext()
    teacher: Teacher = NoTeacher()
    weighting: Weighting = Uniform()
    distillation: Distillation | None = None
    policy: PolicyGradient | None = None
    imitation: Imitation | None = None

    @property
    def requires(self) -> tuple[str, ...]:
        """Fields of a Question that must be there: ``solution`` and / or ``answer``."""
        return tuple(dict.fromkeys((*self.context.requires, *self.source.requires)))

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Method:
        for check in (self._check_objectives, self._check_teacher, self._check_group):
            problem = check()
            if problem:
                raise ValueError(problem)
        return self

    def _check_objectives(self) -> str | None:
        used = set(self.routing.objectives)
        for objective in ("distillation", "policy", "imitation"):
            present = getattr(self, objective) is not None
            if objective in used and not present:
                return f"routing sends rows to {objective!r}, which this method does not have; add {objective}: {{}}"
            if present and objective not in used:
                return f"{objective} is set, but routing sends no row there; remove it or change routing"
        sampled = isinstance(self.source, OwnRollouts)
        if sampled == ("imitation" in used):
            remedy = "imitation learns from reference_solutions, everything else from rollouts"
            return f"source {self.source.kind!r} does not go with objectives {sorted(used)}: {remedy}"
        return None

    def _check_teacher(self) -> str | None:
        has_teacher, has_context = not isinstance(self.teacher, NoTeacher), not isinstance(self.context, NoContext)
        if self.distillation is None:
            if not has_teacher and not has_context:
                return None
            parts = f"context {self.context.kind!r} and teacher {self.teacher.kind!r}"
            return f"{parts} are never used: this method has no distillation; set both to none"
        if not has_teacher:
            remedy = "choose initial, moving_average, live or trust_region"
            return f"distillation needs a teacher, but teacher is 'none'; {remedy}"
        if not has_context:
            remedy = "choose full_solution, partial_solution or sibling_success"
            return f"distillation needs privileged text, but context is 'none'; {remedy}"
        return None

    def _check_group(self) -> str | None:
        comparing: list[str] = [
            part.kind for part in (self.context, self.weighting) if getattr(part, "compares_siblings", False)
        ]
        comparing += [] if self.policy is None else [self.policy.kind]
        if self.source.group_size > 1 or not comparing:
            return None
        if isinstance(self.source, OwnRollouts):
            return f"source.group_size is 1, but {comparing[0]!r} compares the rollouts of a group; use 2 or more"
        return f"{comparing[0]!r} compares rollouts of a group, but source {self.source.kind!r} has none; remove it"


ADAPTER: TypeAdapter[Method] = TypeAdapter(Method)


def as_data(method: Method) -> dict[str, Any]:
    """Return the method as plain nested dictionaries, in the order in which it reads.

    Complete, so that ``build(name, **rest)`` gives an equal method: an objective that it does not have is None.
    """
    data: dict[str, Any] = ADAPTER.dump_python(method, mode="json")
    return data
