"""Warnings: each on its evidence, none on a healthy run, and none said twice for nothing."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest

from selfdistill.errors import RecipeError
from selfdistill.evaluation.bootstrap import Interval
from selfdistill.evaluation.result import EvaluationResult
from selfdistill.methods import names
from selfdistill.training.alarm_config import RULES, WarningsConfig
from selfdistill.training.alarm_remedies import remedies
from selfdistill.training.alarms import Alarm, Alarms
from selfdistill.training.recipe import parse_recipe

HEALTHY = {
    "pass_rate": 0.5,
    "response_length": 200.0,
    "student_entropy": 0.3,
    "truncated_share": 0.1,
    "leak_rate": 0.01,
    "informative_share": 0.4,
    "forwarded_share": 1.0,
    "captured_mass": 0.98,
    "sampler_mismatch": 0.01,
}
ONE_ROLLOUT: dict[str, Any] = {"informative_share": None}
"""Of a method with one rollout per question."""
Curve = Callable[[int], dict[str, Any]]


def alarms(mismatch: float = 0.05, **settings: Any) -> Alarms:
    return Alarms(WarningsConfig(**settings), mismatch, defaultdict(lambda: "try something"))


def watched(own: Alarms, curve: Curve, steps: int = 60) -> list[Alarm]:
    rows = ({"step": step, **HEALTHY, **curve(step)} for step in range(1, steps + 1))
    logged = ({name: value for name, value in row.items() if value is not None} for row in rows)
    return [alarm for row in logged for alarm in own.observe(row)]


def evaluated(mean: float, half: float = 0.04) -> EvaluationResult:
    avg = Interval(mean, mean - half, mean + half)
    return EvaluationResult(16, 100, avg, avg, {1: avg}, 0.0, 0.0, 50.0, {})


def falling(name: str, end: float, by: int = 40) -> Curve:
    """A measure that moves from its healthy value to ``end``, evenly."""
    return lambda step: {name: HEALTHY[name] + (end - HEALTHY[name]) * min(1.0, step / by)}


BAD: dict[tuple[str, str], Curve] = {
    ("collapse", "pass_rate"): falling("pass_rate", 0.05),
    ("collapse", "response_length"): falling("response_length", 10.0),
    ("collapse", "student_entropy"): falling("student_entropy", 0.001),
    ("truncation", "truncated_share"): falling("truncated_share", 0.9),
    ("leak_rate", "leak_rate"): falling("leak_rate", 0.3),
    ("informative_share", "informative_share"): falling("informative_share", 0.0),
    ("informative_share", "forwarded_share"): lambda step: {"forwarded_share": float(step < 20), **ONE_ROLLOUT},
    ("captured_mass", "captured_mass"): falling("captured_mass", 0.8),
    ("mismatch", "sampler_mismatch"): falling("sampler_mismatch", 0.2),
}


@pytest.mark.parametrize(("name", "measure"), list(BAD))
def test_a_sign_of_trouble_is_warned_of_with_its_evidence(name: str, measure: str) -> None:
    first = watched(alarms(), BAD[name, measure])[0]
    assert (first.name, first.measure) == (name, measure)
    assert first.window[1] == first.step > 5
    assert f"step {first.step}: " in first.text and f"{first.value:.3g}" in first.text
    assert first.text.count("warnings.") + first.text.count("mismatch_warning") == (measure != "forwarded_share")
    assert str(first).endswith("; try something")
    assert Alarm.from_json(first.to_json()) == first


def test_every_name_that_can_end_a_run_has_a_rule() -> None:
    assert {name for name, _ in BAD} | {"teacher"} == set(RULES)


@pytest.mark.parametrize("seed", range(5))
def test_a_healthy_run_is_not_warned_of(seed: int) -> None:
    """Noisy, improving, and as certain of itself as training makes a model."""
    noise = random.Random(seed)

    def curve(step: int) -> dict[str, float]:
        progress = step / 200
        return {
            "pass_rate": 0.3 + 0.5 * progress + noise.gauss(0, 0.1),
            "response_length": 200 * (1 - 0.4 * progress) + noise.gauss(0, 20),
            "student_entropy": 0.3 * (1 - 0.8 * progress),
            "truncated_share": max(0.0, 0.3 + noise.gauss(0, 0.1)),
            "leak_rate": max(0.0, noise.gauss(0.01, 0.01)),
            "informative_share": 0.5 - 0.4 * progress,
            "captured_mass": 0.95 + noise.gauss(0, 0.01),
        }

    own = alarms()
    assert watched(own, curve, steps=200) == []
    assert not any(own.observe_evaluation(step, evaluated(0.3 + step / 500)) for step in range(0, 200, 20))


@pytest.mark.parametrize("seed", range(5))
def test_a_small_batch_s_noise_is_no_collapse(seed: int) -> None:
    """Two questions a step: the pass rate is 0, 0.5 or 1, and the best window of many is a lucky one."""
    noise = random.Random(seed)
    curve = [noise.choice((0.0, 0.0, 0.0, 0.5, 0.5, 1.0)) for _ in range(400)]
    assert watched(alarms(), lambda step: {"pass_rate": curve[step - 1]}, steps=400) == []


def test_a_small_batch_s_collapse_is_one() -> None:
    noise = random.Random(0)
    curve = [noise.choice((0.5, 0.5, 1.0)) if step < 50 else 0.0 for step in range(100)]
    (first, *_) = watched(alarms(), lambda step: {"pass_rate": curve[step - 1]}, steps=100)
    assert 50 < first.step <= 60


def test_what_a_step_does_not_log_is_not_judged() -> None:
    own = alarms()
    for step in range(1, 60):
        odd = {"pass_rate": math.nan, "leak_rate": None, "captured_mass": None}
        assert own.observe({"step": step, "response_length": 20.0, **odd}) == []


@pytest.mark.parametrize(
    ("measure", "settings"),
    [
        ("pass_rate", {"pass_rate_share": 0.01}),
        ("pass_rate", {"pass_rate_drop": 0.49}),
        ("response_length", {"length_share": 0.01}),
        ("student_entropy", {"entropy_share": 0.001}),
        ("student_entropy", {"entropy_floor": 0.0001}),
        ("truncated_share", {"truncated_share": 0.95}),
        ("truncated_share", {"truncated_rise": 0.8}),
        ("leak_rate", {"leak_rise": 0.5}),
        ("informative_share", {"informative_share": 0.0}),
        ("captured_mass", {"captured_mass": 0.5, "captured_mass_drop": 0.5}),
    ],
)
def test_thresholds_are_settings(measure: str, settings: dict[str, float]) -> None:
    (curve,) = (curve for (_, own), curve in BAD.items() if own == measure)
    assert watched(alarms(), curve) and not watched(alarms(**settings), curve)


def test_a_longer_window_warns_later() -> None:
    curve = BAD["collapse", "pass_rate"]
    first = [watched(alarms(window=window), curve)[0].step for window in (3, 10, 20)]
    assert first == sorted(set(first))


def test_a_mass_that_falls_is_warned_of_though_it_is_still_large() -> None:
    curve = falling("captured_mass", 0.91)
    assert [one.measure for one in watched(alarms(), curve)][:1] == ["captured_mass"]


def test_a_warning_is_repeated_only_after_a_while_and_only_if_it_got_worse() -> None:
    def step_down(step: int) -> dict[str, float]:
        return {"sampler_mismatch": 0.01 if step < 5 else 0.2 if step < 40 else 0.4}

    assert [one.step for one in watched(alarms(), step_down, steps=80)] == [5, 40]
    rising = watched(alarms(repeat_after=7), lambda step: {"sampler_mismatch": 0.05 + 0.01 * step}, steps=30)
    assert [one.step for one in rising] == [1, 8, 15, 22, 29]


def test_a_warning_that_had_gone_may_come_again_but_not_at_once() -> None:
    flapping = watched(alarms(), lambda step: {"sampler_mismatch": 0.2 if step % 2 else 0.01}, steps=24)
    assert [one.step for one in flapping] == [1, 11, 21]


def test_the_mismatch_of_engines_says_what_it_said_before() -> None:
    recipe = parse_recipe({"method": "sdpo"})
    own = Alarms.of(recipe)
    assert own.observe({"step": 1, "sampler_mismatch": 0.05}) == []
    (warning,) = own.observe({"step": 2, "sampler_mismatch": 0.1234})
    for part in ("step 2", "0.123 nats", "rollouts.mismatch_warning (0.05)", "model.dtype=float32", "ratio_cap"):
        assert part in str(warning)


def test_an_evaluation_well_below_the_best_is_warned_of() -> None:
    own = alarms()
    means = {0: 0.40, 10: 0.62, 20: 0.58, 30: 0.57, 40: 0.50}
    said = [alarm for step, mean in means.items() for alarm in own.observe_evaluation(step, evaluated(mean))]
    assert [(one.step, one.name, one.measure) for one in said] == [(40, "collapse", "evaluation/avg@16")]
    assert "at step 10 it was 0.62" in said[0].text and said[0].threshold == pytest.approx(0.57)


def test_a_fall_within_the_interval_is_no_evidence() -> None:
    own = alarms()
    assert [own.observe_evaluation(step, evaluated(mean, half=0.15)) for step, mean in ((0, 0.6), (9, 0.5))] == [[], []]
    own = alarms(accuracy_drop=0.3)
    assert [own.observe_evaluation(step, evaluated(mean)) for step, mean in ((0, 0.6), (9, 0.4))] == [[], []]


def test_a_teacher_that_knows_no_more_is_warned_of() -> None:
    assert alarms().observe_teacher(0, 0.40, 0.55, 0.08, 0.22) == []
    (equal,) = alarms().observe_teacher(0, 0.40, 0.38, -0.10, 0.06)
    (worse,) = alarms().observe_teacher(20, 0.60, 0.41, -0.26, -0.12)
    (perfect,) = alarms().observe_teacher(0, 1.0, 1.0, 0.0, 0.0)
    assert "no better than the student: accuracy 0.38 against 0.4" in equal.text and "no better" in perfect.text
    assert "worse than the student" in worse.text and (worse.name, worse.step) == ("teacher", 20)
    assert (worse.value, worse.threshold) == (pytest.approx(-0.19), 0.0)


def test_only_what_is_asked_for_ends_a_run_and_only_after_its_patience() -> None:
    def stops(**settings: Any) -> int | None:
        own = alarms(**settings)
        for step in range(1, 30):
            own.observe({"step": step, "sampler_mismatch": 0.2 if step > 4 and step != 6 else 0.01})
            if own.stop:
                return own.stop.step
        return None

    assert stops() is None and stops(stop_on=["collapse"]) is None
    assert stops(stop_on="mismatch") == 9 and stops(stop_on=["leak_rate", "mismatch"], patience=1) == 5


def test_a_run_is_not_ended_for_what_has_gone() -> None:
    own = alarms(stop_on=["mismatch"], patience=1)
    own.observe({"step": 1, "sampler_mismatch": 0.2})
    assert own.stop is not None
    own.observe({"step": 2, "sampler_mismatch": 0.01})
    assert own.stop is None


def test_records_observed_again_give_the_same_warnings_and_the_same_state() -> None:
    def curve(step: int) -> dict[str, Any]:
        return {"step": step, **HEALTHY, **BAD["collapse", "pass_rate"](step), **BAD["leak_rate", "leak_rate"](step)}

    rows = [curve(step) for step in range(1, 61)]
    results = {step: evaluated(0.7 - step / 100) for step in range(0, 61, 10)}
    teachers = {0: (0.4, 0.5, 0.05, 0.15), 30: (0.4, 0.3, -0.2, -0.05)}
    whole, said = alarms(), []
    said += whole.observe_evaluation(0, results[0]) + whole.observe_teacher(0, *teachers[0])
    for row in rows:
        step = row["step"]
        said += whole.observe(row)
        said += whole.observe_evaluation(step, results[step]) if step in results else []
        said += whole.observe_teacher(step, *teachers[step]) if step in teachers else []
    assert {one.name for one in said} == {"collapse", "leak_rate", "teacher"}
    for stop in (0, 7, 30, 60):
        before = {step: result for step, result in results.items() if step <= stop}
        resumed = alarms()
        again = resumed.catch_up(rows[:stop], before, {step: gap for step, gap in teachers.items() if step <= stop})
        assert again == [one for one in said if one.step <= stop]
        assert resumed.count == len(again)


@pytest.mark.parametrize("name", names())
def test_every_warning_has_a_remedy_that_fits_the_method(name: str) -> None:
    recipe = parse_recipe({"method": name})
    found = remedies(recipe)
    assert {measure for _, measure in BAD} | {"evaluation", "teacher_gap"} == found.keys()
    moving = hasattr(recipe.method.teacher, "rate")
    assert ("method.teacher.rate" in found["pass_rate"]) == moving
    assert ("method.context.hidden_wrong" in found["leak_rate"]) == (recipe.method.context.kind == "partial_solution")


def test_a_misspelt_warning_is_named_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"warnings.stop_on.* 'colapse'.*did you mean 'collapse'\?"):
        parse_recipe({"method": "paint", "warnings": {"stop_on": ["colapse"]}})
    with pytest.raises(RecipeError, match=r"unknown setting 'warnings.pacience' \(did you mean 'patience'\?\)"):
        parse_recipe({"method": "paint", "warnings": {"pacience": 2}})
