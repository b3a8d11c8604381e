"""Rules that tell a run that goes wrong from one that does not: pure functions of a measure's recent values.

In: the values of one measure, step by step. Out: what was found wrong, with the value, the threshold and the steps that
it is about, or None. The ways in which these methods fail are those of METHODS 10.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean

from selfdistill.training.alarm_config import RuleName, WarningsConfig

ERRORS = 5.0
"""A fall of the pass rate counts from so many standard errors on: a small batch has a noisy one, and the best of many
windows is a lucky one."""
LEAK_RATIO = 2.0
"""A rising leak rate is at least so many times the first window's."""


@dataclass(frozen=True, slots=True)
class Window:
    """The mean of a measure over some steps in a row."""

    first: int
    last: int
    mean: float

    def __str__(self) -> str:
        return f"step {self.last}" if self.first == self.last else f"steps {self.first} to {self.last}"


class Curve:
    """One measure: its last values, and the windows that they are compared with. Costs a window per step.

    Args:
        measure: its name in metrics.jsonl.
        window: steps of a window.
    """

    def __init__(self, measure: str, window: int) -> None:
        self.measure = measure
        self._values: deque[tuple[int, float]] = deque(maxlen=window)
        self._window, self._changes, self._count = window, 0.0, 0
        self.now: Window | None = None
        """The last window; None until there are as many values."""
        self.start: Window | None = None
        """The first window."""
        self.best: Window | None = None
        """The window with the highest mean."""

    def add(self, step: int, value: float) -> None:
        """Count the value of a step."""
        if self._values:
            self._changes += (value - self._values[-1][1]) ** 2
            self._count += 1
        self._values.append((step, value))
        if len(self._values) < self._window:
            return
        self.now = Window(self._values[0][0], step, fmean(value for _, value in self._values))
        self.start = self.start or self.now
        if self.best is None or self.now.mean > self.best.mean:
            self.best = self.now

    @property
    def error(self) -> float:
        """Standard error of a window's mean, from changes between steps: a trend does not count as noise."""
        return math.sqrt(self._changes / max(1, 2 * self._count * self._window))


@dataclass(frozen=True, slots=True)
class Finding:
    """What a rule found wrong."""

    value: float
    threshold: float
    window: tuple[int, int]
    """First and last step that ``value`` is about."""
    text: str
    """The evidence, as part of a sentence."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One sign of trouble in one measure."""

    name: RuleName
    """Of the warning; several signs may have the same."""
    measure: str
    """As in metrics.jsonl."""
    judge: Callable[[Curve, WarningsConfig], Finding | None]
    window: int | None = None
    """Steps of a window; None: as the recipe says."""
    unless: str | None = None
    """A measure that says more: where a step has it, this one is not looked at."""


def pass_rate_falls(curve: Curve, config: WarningsConfig) -> Finding | None:
    """The pass rate is far below that of the best window."""
    now, best = curve.now, curve.best
    if now is None or best is None:
        return None
    limits = (
        config.pass_rate_share * best.mean,
        best.mean - config.pass_rate_drop,
        best.mean - ERRORS * math.sqrt(2) * curve.error,
    )
    return _below(curve, min(limits), f"over {best} it was {best.mean:.3g}", "pass_rate_share")


def responses_shrink(curve: Curve, config: WarningsConfig) -> Finding | None:
    """Responses are a fraction of what they were."""
    now, start = curve.now, curve.start
    if now is None or start is None:
        return None
    return _below(
        curve, config.length_share * start.mean, f"over {start} it was {start.mean:.3g} tokens", "length_share"
    )


def entropy_is_gone(curve: Curve, config: WarningsConfig) -> Finding | None:
    """The student has become certain of every token."""
    now, start = curve.now, curve.start
    if now is None or start is None:
        return None
    limit = min(config.entropy_share * start.mean, config.entropy_floor)
    return _below(curve, limit, f"over {start} it was {start.mean:.3g} nats per token", "entropy_share")


def more_is_truncated(curve: Curve, config: WarningsConfig) -> Finding | None:
    """Most responses no longer end."""
    now, start = curve.now, curve.start
    if now is None or start is None:
        return None
    limit = max(config.truncated_share, start.mean + config.truncated_rise)
    return _above(curve, limit, f"over {start} it was {start.mean:.3g}", "truncated_share")


def leaks_rise(curve: Curve, config: WarningsConfig) -> Finding | None:
    """More responses mention a reference that the student cannot see."""
    now, start = curve.now, curve.start
    if now is None or start is None:
        return None
    limit = max(start.mean + config.leak_rise, LEAK_RATIO * start.mean)
    return _above(curve, limit, f"over {start} it was {start.mean:.3g}", "leak_rise")


def few_are_informative(curve: Curve, config: WarningsConfig) -> Finding | None:
    """Nearly all questions are always right or always wrong."""
    if curve.now is None:
        return None
    return _below(curve, config.informative_share, "the other questions teach nothing", "informative_share")


def nothing_is_forwarded(curve: Curve, config: WarningsConfig) -> Finding | None:
    """Not one rollout had anything to learn from."""
    if curve.now is None or curve.now.mean > 0:
        return None
    window = (curve.now.first, curve.now.last)
    return Finding(0.0, 0.0, window, f"forwarded_share is 0 over {curve.now}; no rollout had anything to learn from")


def mass_escapes(curve: Curve, config: WarningsConfig) -> Finding | None:
    """The student's probability moves to ids that are not compared."""
    now, start = curve.now, curve.start
    if now is None or start is None:
        return None
    limit = max(config.captured_mass, start.mean - config.captured_mass_drop)
    return _below(curve, limit, f"over {start} it was {start.mean:.3g}", "captured_mass")


STEP_RULES: tuple[Rule, ...] = (
    Rule("collapse", "pass_rate", pass_rate_falls),
    Rule("collapse", "response_length", responses_shrink),
    Rule("collapse", "student_entropy", entropy_is_gone),
    Rule("truncation", "truncated_share", more_is_truncated),
    Rule("leak_rate", "leak_rate", leaks_rise),
    Rule("informative_share", "informative_share", few_are_informative),
    Rule("informative_share", "forwarded_share", nothing_is_forwarded, unless="informative_share"),
    Rule("captured_mass", "captured_mass", mass_escapes),
)
"""What is looked at after every step, where the step has it."""


def mismatch_rule(threshold: float) -> Rule:
    """Return the rule about an engine whose log-probabilities are not the trainer's; ``threshold`` in nats."""

    def judge(curve: Curve, config: WarningsConfig) -> Finding | None:
        now = curve.now
        if now is None or now.mean <= threshold:
            return None
        text = (
            f"the engine's log-probabilities differ from the trainer's by {now.mean:.3g} nats per token, more than "
            f"rollouts.mismatch_warning ({threshold:g})"
        )
        return Finding(now.mean, threshold, (now.first, now.last), text)

    return Rule("mismatch", "sampler_mismatch", judge, window=1)


def _below(curve: Curve, limit: float, before: str, setting: str) -> Finding | None:
    now = curve.now
    return None if now is None or now.mean >= limit else _finding(curve.measure, now, "less", limit, before, setting)


def _above(curve: Curve, limit: float, before: str, setting: str) -> Finding | None:
    now = curve.now
    return None if now is None or now.mean <= limit else _finding(curve.measure, now, "more", limit, before, setting)


def _finding(measure: str, now: Window, than: str, limit: float, before: str, setting: str) -> Finding:
    text = f"{measure} is {now.mean:.3g} over {now}, {than} than {limit:.3g} (warnings.{setting}); {before}"
    return Finding(now.mean, limit, (now.first, now.last), text)
