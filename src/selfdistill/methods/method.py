"""A method is a composition of parts, as data: it can be printed, saved with a run, compared and overridden setting by setting.

Two independent choices make a self-teacher, WHAT it sees (``context``) and WHOSE weights it has (``teacher``); ``weighting`` says which questions count,
``routing`` which objective each rollout goes to, ``reduction`` what the loss is divided by.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, model_validator
from pydantic.dataclasses import dataclass

from selfdistill.contexts.hindsight import SiblingSuccess
from selfdistill.contexts.solution import FullSolution, NoContext, PartialSolution
from selfdistill.methods.sources import OwnRollouts, Source
from selfdistill.objectives.parts import Distillation, Imitation, PolicyGradient, Reduction
from selfdistill.teachers.parts import NoTeacher, Teacher
from selfdistill.weighting.parts import Uniform, Weighting
from selfdistill.weighting.routing import Routing


Context = Annotated[NoContext | FullSolution | PartialSolution | SiblingSuccess, Field(discriminator="kind")]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
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
            return f"source {self.source.kind!r} does not go with objectives {sorted(used)}: imitation learns from reference_solutions, everything else from rollouts"
        return None

    def _check_teacher(self) -> str | None:
        distils = self.distillation is not None
        if distils and isinstance(self.teacher, NoTeacher):
            return "distillation needs a teacher, but teacher is 'none'; choose initial, moving_average, live or trust_region"
        if distils and isinstance(self.context, NoContext):
            return "distillation needs privileged text, but context is 'none'; choose full_solution, partial_solution or sibling_success"
        if not distils and not (isinstance(self.teacher, NoTeacher) and isinstance(self.context, NoContext)):
            return f"context {self.context.kind!r} and teacher {self.teacher.kind!r} are never used: this method has no distillation; set both to none"
        return None

    def _check_group(self) -> str | None:
        size = self.source.group_size
        if size > 1:
            return None
        for part in (self.context, self.weighting, self.policy):
            if part is not None and getattr(part, "compares_siblings", False):
                return f"source.group_size is {size}, but {part.kind!r} compares the rollouts of a group; use 2 or more"
        return None


ADAPTER: TypeAdapter[Method] = TypeAdapter(Method)


def as_data(method: Method) -> dict[str, Any]:
    """Return the method as plain nested dictionaries, in the order in which it reads."""
    data: dict[str, Any] = ADAPTER.dump_python(method, mode="json")
    return {key: value for key, value in data.items() if value is not None}
