from __future__ import annotations

import numpy as np
import pytest

from selfdistill.errors import DataError
from selfdistill.evaluation import bootstrap, mean_interval, paired_difference


def test_an_interval_is_near_the_normal_one_for_many_problems():
    values = np.random.default_rng(0).normal(2.0, 1.0, 400)
    interval = mean_interval(values)
    half = 1.96 * values.std() / 20
    assert interval.mean == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.02)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.02)


def test_an_interval_covers_the_truth_about_as_often_as_its_level_says():
    generator = np.random.default_rng(1)
    hits = 0
    for trial in range(200):
        interval = mean_interval(generator.random(60) < 0.4, level=0.9, resamples=400, seed=trial)
        hits += interval.low <= 0.4 <= interval.high
    assert 0.83 < hits / 200 < 0.96


def test_the_same_seed_gives_the_same_interval_and_chunks_do_not_matter_to_the_mean(monkeypatch):
    values = [0.0, 1.0, 1.0, 0.5]
    assert mean_interval(values, seed=3) == mean_interval(values, seed=3)
    whole = mean_interval(values)
    monkeypatch.setattr(bootstrap, "_CHUNK", 100)
    assert mean_interval(values).mean == whole.mean
    assert mean_interval(values).low == pytest.approx(whole.low, abs=0.05)


def test_pairing_removes_what_both_sides_share():
    generator = np.random.default_rng(2)
    difficulty = generator.random(80)
    better = np.clip(difficulty + 0.03 + generator.normal(0, 0.01, 80), 0, 2)
    paired = paired_difference(better, difficulty)
    assert paired.mean == pytest.approx((better - difficulty).mean())
    assert paired.excludes_zero
    alone = mean_interval(better)
    assert paired.high - paired.low < 0.1 * (alone.high - alone.low)
    assert paired_difference(difficulty, better).high == pytest.approx(-paired.low)


def test_equal_sides_differ_by_nothing():
    values = [0.1, 0.9, 0.4]
    difference = paired_difference(values, values)
    assert (difference.mean, difference.low, difference.high) == (0, 0, 0)
    assert not difference.excludes_zero


def test_seeds_that_disagree_widen_the_interval():
    problems = np.random.default_rng(3).random(50)
    agreeing = mean_interval(np.stack([problems] * 3))
    disagreeing = mean_interval(np.stack([problems - 0.2, problems, problems + 0.2]))
    assert agreeing.mean == pytest.approx(disagreeing.mean)
    assert disagreeing.high - disagreeing.low > 1.5 * (agreeing.high - agreeing.low)
    single = mean_interval(problems)
    assert agreeing.high - agreeing.low == pytest.approx(single.high - single.low, rel=0.1)


def test_resampling_seeds_has_the_variance_of_a_mean_over_them():
    offsets = np.array([0.0, 1.0, 2.0, 5.0])
    table = np.repeat(offsets[:, None], 10, axis=1)
    resampled = bootstrap._resampled([table], 20_000, 0)
    assert resampled.mean() == pytest.approx(2.0, abs=0.03)
    assert resampled.std() == pytest.approx(offsets.std() / 2, rel=0.03)


def test_a_difference_can_compare_one_run_with_several_seeds():
    problems = np.random.default_rng(4).random(30)
    difference = paired_difference(np.stack([problems + 0.1, problems + 0.3]), problems)
    assert difference.mean == pytest.approx(0.2)
    assert difference.low == pytest.approx(0.1)
    assert difference.high == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("values", "settings", "message"),
    [
        ([], {}, "needs values"),
        (np.zeros((2, 2, 2)), {}, "not the shape"),
        ([1.0, float("nan")], {}, "finite"),
        ([1.0], {"level": 1.0}, "between 0 and 1, not 1.0"),
        ([1.0], {"resamples": 0}, "at least 1 resample"),
    ],
)
def test_intervals_of_unusable_input_are_refused(values, settings, message):
    with pytest.raises(DataError, match=message):
        mean_interval(values, **settings)


def test_a_paired_difference_of_different_problems_is_refused():
    with pytest.raises(DataError, match="not 2 and 3"):
        paired_difference([1, 2], [1, 2, 3])
