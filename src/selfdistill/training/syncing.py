"""Which weights the engine has: it is given the policy's present ones before anything is drawn, and only then.

In: the number of steps done. Out: the engine's report, and what a step logs of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from selfdistill.rollouts.sampler import Engine, SyncReport
from selfdistill.training.metrics import Metrics


@dataclass(slots=True)
class Synced:
    """The weights that the engine has."""

    version: str | None = None
    """None: not known."""
    report: SyncReport | None = None
    """About ``version``; None if the engine shares the policy's weights."""

    def has(self, step: int) -> bool:
        """Whether these are the weights after ``step`` steps."""
        return self.version == version_of(step)

    def bring(self, engine: Engine, step: int) -> None:
        """Give the engine the policy's present weights, those after ``step`` steps.

        Raises:
            RolloutError: the engine does not get them; which it has is then unknown.
        """
        self.version = None
        self.report = engine.sync(version_of(step))
        self.version = version_of(step)

    def metrics(self, step: int) -> Metrics:
        """Return what is logged about the sync before ``step``: nothing without one, or if there was none to do."""
        if self.report is None or not self.has(step):
            return {}
        return {
            "sync/seconds": self.report.seconds,
            "sync/bytes": self.report.bytes,
            "sync/mean_difference": self.report.mean_difference,
            "sync/max_difference": self.report.max_difference,
        }


def version_of(step: int) -> str:
    """Return what the weights after ``step`` steps are called."""
    return f"step-{step:06d}"
