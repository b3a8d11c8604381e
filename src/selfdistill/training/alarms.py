"""Warnings with evidence: signs that training goes wrong, said once, with what was measured and what to try.

In: the metrics of every step, evaluations, and comparisons of teacher and student, in their order. Out: the warnings
that are due, and whether the run is to end early. All state follows from what was observed: a resumed run, which
observes its own records again, warns as one that was never stopped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from selfdistill.evaluation.result import EvaluationResult
from selfdistill.training.alarm_config import RuleName, WarningsConfig
from selfdistill.training.alarm_remedies import remedies
from selfdistill.training.alarm_rules import STEP_RULES, Curve, Finding, Rule, mismatch_rule
from selfdistill.training.recipe import Recipe

WORSE = 1.1
"""A warning has become worse when the value is so many times as far beyond the threshold as when it was last said."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """A warning and its evidence: a line of warnings.jsonl."""

    step: int
    """Steps done when it was found."""
    name: RuleName
    measure: str
    """As in metrics.jsonl, ``evaluation/avg@k``, or ``teacher_gap``."""
    value: float
    threshold: float
    window: tuple[int, int]
    """First and last step that ``value`` is about."""
    text: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.text}; {self.remedy}"

    def to_json(self) -> dict[str, Any]:
        """Return the line as plain data."""
        return asdict(self) | {"window": list(self.window)}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        """Return what :meth:`to_json` wrote."""
        return cls(**{**row, "window": tuple(row["window"])})


@dataclass(slots=True)
class _Watched:
    """What is known of one sign of trouble."""

    streak: int = 0
    """How many times in a row it has been found."""
    said: Alarm | None = None
    recovered: bool = False
    """It was not there for a while since it was said."""


class Alarms:
    """The warnings of a run.

    Args:
        config: thresholds, windows, and what ends the run.
        mismatch: nats between engine and trainer that are too much (``rollouts.mismatch_warning``).
        remedies: what to try, by measure.
    """

    def __init__(self, config: WarningsConfig, mismatch: float, remedies: Mapping[str, str]) -> None:
        self._config, self._remedies = config, remedies
        self._rules = (*STEP_RULES, mismatch_rule(mismatch))
        self._curves = {rule.measure: Curve(rule.measure, rule.window or config.window) for rule in self._rules}
        self._watched: dict[tuple[RuleName, str], _Watched] = {}
        self._stopping: dict[tuple[RuleName, str], Alarm] = {}
        self._best: tuple[int, EvaluationResult] | None = None
        self.count = 0
        """Warnings so far."""

    @classmethod
    def of(cls, recipe: Recipe) -> Self:
        """Return the warnings of a run that has seen nothing yet."""
        return cls(recipe.warnings, recipe.rollouts.mismatch_warning, remedies(recipe))

    @property
    def stop(self) -> Alarm | None:
        """The warning that ends the run: the first of ``stop_on`` that was found ``patience`` times, and still is."""
        return next(iter(self._stopping.values()), None)

    def observe(self, metrics: Mapping[str, Any]) -> list[Alarm]:
        """Look at the metrics of a step and return the warnings that are due."""
        step = int(metrics["step"])
        rules = [rule for rule in self._rules if rule.unless not in metrics]
        return [alarm for rule in rules for alarm in self._step_rule(rule, step, metrics.get(rule.measure))]

    def observe_evaluation(self, step: int, result: EvaluationResult) -> list[Alarm]:
        """Look at an evaluation of the weights after ``step`` steps; warn if it is well below the best so far."""
        measure, finding = f"evaluation/avg@{result.samples}", None
        if self._best is not None:
            finding = _accuracy_falls(measure, self._best, (step, result), self._config.accuracy_drop)
        if self._best is None or result.avg.mean > self._best[1].avg.mean:
            self._best = (step, result)
        return self._judged("collapse", measure, step, finding)

    def observe_teacher(
        self, step: int, student_mean: float, teacher_mean: float, gap_low: float, gap_high: float
    ) -> list[Alarm]:
        """Look at the accuracy of student and teacher on the same questions; warn if the teacher knows no more.

        Args:
            step: steps done.
            student_mean: share of right samples, from the question alone.
            teacher_mean: the same from the privileged prompt.
            gap_low: lower end of the interval of teacher - student.
            gap_high: its upper end.
        """
        gap, finding = teacher_mean - student_mean, None
        if gap <= 0 or gap_high <= 0:
            how = "worse" if gap < 0 and gap_high <= 0 else "no better"
            text = (
                f"the self-teacher is {how} than the student: accuracy "
                f"{teacher_mean:.3g} against {student_mean:.3g}, a gap of {gap:.3g} [{gap_low:.3g}, {gap_high:.3g}], "
                "not more than 0"
            )
            finding = Finding(gap, 0.0, (step, step), text)
        return self._judged("teacher", "teacher_gap", step, finding)

    def catch_up(
        self,
        metrics: Iterable[Mapping[str, Any]],
        evaluations: Mapping[int, EvaluationResult],
        teachers: Mapping[int, tuple[float, float, float, float]] | None = None,
    ) -> list[Alarm]:
        """Observe what a run has on record, in the order in which it came about; return all its warnings.

        Args:
            metrics: of every step.
            evaluations: by number of steps done.
            teachers: what :meth:`observe_teacher` was told, by number of steps done.
        """
        gaps = teachers or {}

        def after(step: int) -> list[Alarm]:
            found = self.observe_evaluation(step, evaluations[step]) if step in evaluations else []
            return found + (self.observe_teacher(step, *gaps[step]) if step in gaps else [])

        due = after(0)
        for row in metrics:
            due += self.observe(row)
            due += after(int(row["step"]))
        return due

    def _step_rule(self, rule: Rule, step: int, value: object) -> list[Alarm]:
        if not isinstance(value, int | float) or not math.isfinite(value):
            return []  # not every step has every measure
        curve = self._curves[rule.measure]
        curve.add(step, value)
        return self._judged(rule.name, rule.measure, step, rule.judge(curve, self._config))

    def _judged(self, name: RuleName, measure: str, step: int, finding: Finding | None) -> list[Alarm]:
        """Keep what was found, and return it if it is due to be said."""
        watched = self._watched.setdefault((name, measure), _Watched())
        if finding is None:
            watched.streak, watched.recovered = 0, True
            self._stopping.pop((name, measure), None)
            return []
        remedy = self._remedies[measure.partition("/")[0]]
        text = f"step {step}: {finding.text}"
        alarm = Alarm(step, name, measure, finding.value, finding.threshold, finding.window, text, remedy)
        watched.streak += 1
        if name in self._config.stop_on and watched.streak >= self._config.patience:
            self._stopping.setdefault((name, measure), alarm)
        if watched.said is not None:
            changed = watched.recovered or _excess(alarm) > WORSE * _excess(watched.said)
            if not changed or step - watched.said.step < self._config.repeat_after:
                return []
        watched.said, watched.recovered = alarm, False
        self.count += 1
        return [alarm]


def _excess(alarm: Alarm) -> float:
    return abs(alarm.value - alarm.threshold)


def _accuracy_falls(
    measure: str, best: tuple[int, EvaluationResult], now: tuple[int, EvaluationResult], drop: float
) -> Finding | None:
    """Return the evidence if the accuracy is below the best by more than ``drop`` and than half an interval."""
    (best_step, before), (step, after) = best, now
    half = max((one.avg.high - one.avg.low) / 2 for one in (before, after))
    limit = before.avg.mean - max(drop, half)
    if after.avg.mean >= limit:
        return None
    text = (
        f"{measure} is {after.avg.mean:.4g}, less than {limit:.4g} (warnings.accuracy_drop, and half of the interval "
        f"[{after.avg.low:.3g}, {after.avg.high:.3g}]); at step {best_step} it was {before.avg.mean:.4g}"
    )
    return Finding(after.avg.mean, limit, (step, step), text)
