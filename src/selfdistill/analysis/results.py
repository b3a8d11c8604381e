"""What the evaluations of a series say, pooled over its seeds, and what it cost.

In: a :class:`Series`. Out: intervals by step, paired differences, steps, tokens and seconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from selfdistill.analysis.grouping import Series
from selfdistill.errors import DataError
from selfdistill.evaluation.bootstrap import Interval, mean_interval
from selfdistill.evaluation.compare import Comparison, Metric, compare_results, pooled
from selfdistill.evaluation.metrics import pass_per_problem
from selfdistill.evaluation.result import EvaluationResult


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The evaluations of a series, by number of steps done."""

    results: Mapping[int, tuple[EvaluationResult, ...]]
    """One per seed that has got so far."""
    avg: Mapping[int, Interval]
    maj: Mapping[int, Interval]
    seeds: int

    @property
    def steps(self) -> list[int]:
        """Steps that every seed was evaluated at; where there are none, those of any seed."""
        whole = [step for step, own in self.results.items() if len(own) == self.seeds]
        return sorted(whole or self.results)

    @property
    def best(self) -> int | None:
        """The step with the highest avg@k."""
        return max(self.steps, key=lambda step: (self.avg[step].mean, -step), default=None)

    @property
    def level(self) -> float:
        """Of the intervals."""
        return next((_level(own) for own in self.results.values()), 0.95)

    @property
    def samples(self) -> int:
        """How many avg@k and maj@k are over."""
        return next((own[0].samples for own in self.results.values()), 0)

    @property
    def most(self) -> int:
        """Largest j of pass@j."""
        return min((max(one.pass_at) for own in self.results.values() for one in own), default=1)

    def passes(self, step: int) -> Interval:
        """Return pass@j for the largest j, over problems and seeds."""
        own = self.results[step]
        if len(own) == 1:
            return own[0].pass_at[self.most]
        problems = list(own[0].outcomes)
        table = [pass_per_problem([one.outcomes[name].success for name in problems], self.most) for one in own]
        return mean_interval(table, level=_level(own))


@dataclass(frozen=True, slots=True)
class Cost:
    """What a training took, mean over seeds."""

    steps: float
    rollout_tokens: float | None
    seconds: float
    """Of the steps alone: evaluations and checkpoints are not in it."""
    sampled_per_second: float | None
    trained_per_second: float | None


def evaluated(series: Series) -> Evaluated:
    """Return the evaluations of all seeds.

    Raises:
        DataError: the seeds were evaluated on different problems.
    """
    steps = sorted({step for run in series.runs for step in run.evaluations})
    results = {step: tuple(run.evaluations[step] for run in series.runs if step in run.evaluations) for step in steps}
    return Evaluated(
        results,
        {step: _pooled(own, "avg", series) for step, own in results.items()},
        {step: _pooled(own, "maj", series) for step, own in results.items()},
        len(series.runs),
    )


def gain(baseline: Sequence[EvaluationResult], candidate: Sequence[EvaluationResult]) -> Comparison | None:
    """Return candidate minus baseline; None where they are not about the same problems."""
    try:
        return compare_results(baseline, candidate, level=_level(candidate))
    except DataError:
        return None


def cost(series: Series) -> Cost:
    """Return what the runs have cost so far."""
    runs = series.runs
    tokens = [
        float(run.metrics[-1]["rollout_tokens"]) for run in runs if run.metrics and "rollout_tokens" in run.metrics[-1]
    ]
    return Cost(
        steps=_mean([run.steps for run in runs]) or 0.0,
        rollout_tokens=_mean(tokens),
        seconds=_mean([run.total("seconds/step") for run in runs]) or 0.0,
        sampled_per_second=_mean(
            [value for run in runs for value in _finite(run.metric("tokens_per_second/sampling"))]
        ),
        trained_per_second=_mean([value for run in runs for value in _finite(run.metric("tokens_per_second/update"))]),
    )


def _pooled(results: Sequence[EvaluationResult], metric: Metric, series: Series) -> Interval:
    if len(results) == 1:
        return results[0].avg if metric == "avg" else results[0].maj
    try:
        return pooled(results, metric, level=_level(results))
    except DataError as error:
        raise DataError(f"the seeds of {series.label!r} cannot be put together: {error}") from None


def _level(results: Sequence[EvaluationResult]) -> float:
    return float(results[0].settings.get("level", 0.95))


def _finite(values: Mapping[int, float]) -> list[float]:
    return [value for value in values.values() if math.isfinite(value)]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
