"""Routing: which objective each rollout of a group goes to (SRPO, arXiv 2604.02288; METHODS 7).

In: a group's verdicts and privileged prompts, one each per rollout. Out: the name of an objective per rollout, or None
for a row without signal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from selfdistill.contexts.prompt import PrivilegedPrompt
from selfdistill.validation import PART
from selfdistill.verifiers.verdict import Verdict

Objective = Literal["distillation", "policy", "imitation"]
"""Divergence to the self-teacher; policy gradient on the reward; cross-entropy on the reference solution."""


@dataclass(frozen=True, config=PART, kw_only=True)
class EveryRow:
    """Every rollout goes to one objective."""

    objective: Objective
    """``distillation`` leaves out the rollouts that have no teacher context."""
    kind: Literal["every_row"] = "every_row"

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """The objectives that rows can go to."""
        return (self.objective,)

    def route(self, verdicts: Sequence[Verdict], prompts: Sequence[PrivilegedPrompt | None]) -> list[Objective | None]:
        """Return the objective per rollout; None where it is distillation and there is no prompt."""
        return [
            None if self.objective == "distillation" and prompt is None else self.objective
            for _, prompt in _rows(verdicts, prompts)
        ]


@dataclass(frozen=True, config=PART, kw_only=True)
class FailuresToDistillation:
    """Failed rollouts with teacher context go to distillation, all others to the policy (SRPO, arXiv 2604.02288)."""

    kind: Literal["failures_to_distillation"] = "failures_to_distillation"

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """The objectives that rows can go to."""
        return ("distillation", "policy")

    def route(self, verdicts: Sequence[Verdict], prompts: Sequence[PrivilegedPrompt | None]) -> list[Objective | None]:
        """Return the objective per rollout; never None."""
        return [
            "policy" if verdict.success or prompt is None else "distillation"
            for verdict, prompt in _rows(verdicts, prompts)
        ]


Routing = Annotated[EveryRow | FailuresToDistillation, Field(discriminator="kind")]


def _rows(
    verdicts: Sequence[Verdict], prompts: Sequence[PrivilegedPrompt | None]
) -> list[tuple[Verdict, PrivilegedPrompt | None]]:
    return list(zip(verdicts, prompts, strict=True))
