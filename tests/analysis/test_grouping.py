"""Which runs are one series, what it is called, and what its band is."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from selfdistill.analysis.grouping import band, group_runs, legends, smoothed, smoothing_window
from selfdistill.analysis.run_data import read_run

sys.path.insert(0, str(Path(__file__).parent))
import fake_run


def test_runs_that_differ_only_in_seed_and_place_are_one_series(tmp_path: Path) -> None:
    runs = [read_run(fake_run.make(tmp_path / f"run{seed}", seed=seed)) for seed in (1, 0)]
    runs.append(read_run(fake_run.make(tmp_path / "other", recipe="paint")))
    first, second = group_runs(runs)
    assert [run.seed for run in first.runs] == [0, 1]
    assert (first.label, first.legend, second.legend) == ("sc_sdpo", "sc_sdpo (2 seeds)", "paint")
    assert legends([first, second]) == [(0, "sc_sdpo (2 seeds)"), (1, "paint")]


def test_runs_of_one_name_are_called_by_what_they_differ_in(tmp_path: Path) -> None:
    rates = ("1e-3", "2e-3")
    runs = [
        read_run(fake_run.make(tmp_path / rate, overrides=[f"train.learning_rate={rate}"], evaluate_every=0))
        for rate in rates
    ]
    assert [one.label for one in group_runs(runs)] == ["sc_sdpo", "sc_sdpo learning_rate=0.002"]


def test_rows_of_a_study_with_equal_settings_stay_apart_by_their_names(tmp_path: Path) -> None:
    runs = [read_run(fake_run.make(tmp_path / name, overrides=[f"name={name}"])) for name in ("a", "b")]
    assert [one.label for one in group_runs(runs)] == ["a", "b"]


def test_runs_without_a_recipe_are_called_by_their_folders(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (fake_run.make(tmp_path / name) / "recipe.yaml").unlink()
    runs = [read_run(tmp_path / name) for name in ("one", "two")]
    assert [one.label for one in group_runs(runs)] == ["one", "two"]


def test_a_band_is_mean_minimum_and_maximum_over_the_seeds(tmp_path: Path) -> None:
    [one] = group_runs([read_run(fake_run.make(tmp_path / f"run{seed}", seed=seed)) for seed in (0, 1, 5)])
    found = band(one, "response_length")
    assert found is not None and found.seeds == 3
    np.testing.assert_allclose(found.steps, range(1, 13))
    np.testing.assert_allclose(found.mean, 22.0 + np.arange(1, 13))
    np.testing.assert_allclose(found.low, 20.0 + np.arange(1, 13))
    np.testing.assert_allclose(found.high, 25.0 + np.arange(1, 13))


def test_a_seed_that_has_not_got_so_far_is_not_counted(tmp_path: Path) -> None:
    [one] = group_runs(
        [read_run(fake_run.make(tmp_path / f"{seed}", seed=seed, steps=12 - 6 * seed)) for seed in (0, 1)]
    )
    found = band(one, "response_length")
    assert found is not None
    np.testing.assert_allclose(found.mean[[5, 6]], [26.5, 27.0])


def test_a_value_that_is_not_finite_is_a_gap(tmp_path: Path) -> None:
    [one] = group_runs([read_run(fake_run.make(tmp_path / "run", extra={4: {"loss": None}}))])
    found = band(one, "loss", 3)
    assert found is not None
    assert np.flatnonzero(~np.isfinite(found.mean)).tolist() == [3]
    assert np.isfinite(found.low[[2, 4]]).all()


def test_a_metric_that_nobody_logs_has_no_band(tmp_path: Path) -> None:
    [one] = group_runs([read_run(fake_run.make(tmp_path / "run", without=["leak_rate"]))])
    assert band(one, "leak_rate") is None


@pytest.mark.parametrize(("window", "expected"), [(1, [1.0, 2.0, 6.0]), (3, [1.5, 3.0, 4.0])])
def test_smoothing_takes_centred_means(window: int, expected: list[float]) -> None:
    np.testing.assert_allclose(smoothed(np.array([1.0, 2.0, 6.0]), window), expected)


def test_short_runs_are_not_smoothed_and_long_ones_over_a_twentieth(tmp_path: Path) -> None:
    short = group_runs([read_run(fake_run.make(tmp_path / "short"))])
    long = group_runs([read_run(fake_run.make(tmp_path / "long", steps=100, evaluate_every=0))])
    assert (smoothing_window(short), smoothing_window(long), smoothing_window([])) == (1, 5, 1)
