"""Figures show the numbers that are in the run folders, each with its words, its table and its tags."""

from __future__ import annotations

import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from selfdistill.analysis import svg
from selfdistill.analysis.figures import ablations, accuracy, curriculum, divergences, dynamics, phases, style
from selfdistill.analysis.figures.style import Chart, Missing
from selfdistill.analysis.grouping import Series, group_runs
from selfdistill.analysis.results import evaluated
from selfdistill.analysis.run_data import read_run
from selfdistill.training.recipe import load_recipe

sys.path.insert(0, str(Path(__file__).parent))
import fake_run


@pytest.fixture
def seeds(tmp_path: Path) -> list[Series]:
    """Return one series with two seeds, and another one."""
    folders = [fake_run.make(tmp_path / f"sc{seed}", seed=seed) for seed in (0, 2)]
    folders.append(fake_run.make(tmp_path / "grpo", recipe="grpo"))
    return group_runs([read_run(folder) for folder in folders])


def named(name: str) -> dynamics.Dynamics:
    every = (*dynamics.CURRICULUM, *dynamics.TRAINING, *dynamics.TEACHING, *dynamics.ENGINE)
    return next(one for one in every if one.name == name)


def chart(drawn: Chart | Missing) -> Chart:
    assert isinstance(drawn, Chart), drawn
    return drawn


def lines(ax: Any, index: int) -> list[Any]:
    """Return the lines of a series, the main one last."""
    return [line for line in ax.get_lines() if line.get_gid() == f"series-{index}"]


def test_a_line_is_the_mean_over_seeds_and_its_area_reaches_from_least_to_most(seeds: list[Series]) -> None:
    ax = chart(dynamics.draw(named("length"), seeds, 1)).figure.axes[0]
    [line] = lines(ax, 0)
    np.testing.assert_allclose(line.get_xdata(), range(1, 13))
    np.testing.assert_allclose(line.get_ydata(), 21.0 + np.arange(1, 13))
    [area] = [one for one in ax.collections if one.get_gid() == "series-0"]
    heights = area.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (21.0, 34.0)
    assert not [one for one in ax.collections if one.get_gid() == "series-1"], "one seed has no band"


def test_a_smoothed_line_has_the_raw_one_behind_it_and_the_caption_says_so(seeds: list[Series]) -> None:
    drawn = chart(dynamics.draw(named("loss"), seeds[1:], 3))
    raw, line = lines(drawn.figure.axes[0], 1)
    np.testing.assert_allclose(raw.get_ydata(), 1 / np.arange(1, 13))
    np.testing.assert_allclose(line.get_ydata()[1], (1 + 1 / 2 + 1 / 3) / 3)
    assert "centred means over 3 steps (faint: unsmoothed)" in drawn.caption


def test_the_caption_states_how_many_seeds_a_band_is_over(seeds: list[Series]) -> None:
    assert "minimum to maximum over 1 to 2 seeds" in chart(dynamics.draw(named("loss"), seeds, 1)).caption
    assert "minimum to maximum over 2 seeds" in chart(dynamics.draw(named("loss"), seeds[:1], 1)).caption


def test_series_differ_in_more_than_colour() -> None:
    looks = {(style.colour(i), str(style.line_style(i)), style.marker(i)) for i in range(28)}
    assert len(looks) == 28
    assert len({(str(style.line_style(i)), style.marker(i)) for i in range(8)}) == 8


@pytest.mark.parametrize("name", ["informative", "leaks", "mass", "pass-rate"])
def test_axes_of_shares_begin_at_0(seeds: list[Series], name: str) -> None:
    bottom, top = chart(dynamics.draw(named(name), seeds, 1)).figure.axes[0].get_ylim()
    assert bottom == 0 and top <= 1.02


def test_a_metric_that_no_run_logs_is_missing_with_a_reason(tmp_path: Path) -> None:
    folder = fake_run.make(tmp_path / "run", without=["captured_mass", "clip_fraction"])
    series = group_runs([read_run(folder)])
    missing = dynamics.draw(named("mass"), series, 1)
    assert missing == Missing("Captured mass", "no run has logged it: the method has no teacher")
    assert len(chart(dynamics.draw(named("clipping"), series, 1)).figure.axes) == 1, "the other panel is left out"


def test_a_value_that_is_not_finite_is_a_gap_in_the_line_and_in_the_table(tmp_path: Path) -> None:
    series = group_runs([read_run(fake_run.make(tmp_path / "run", extra={5: {"loss": None}}))])
    drawn = chart(dynamics.draw(named("loss"), series, 1))
    assert np.isnan(drawn.figure.axes[0].get_lines()[0].get_ydata()[4])
    assert np.isfinite(drawn.figure.axes[0].get_ylim()).all()


def test_long_runs_are_thinned_but_keep_their_peaks(tmp_path: Path) -> None:
    folder = fake_run.make(tmp_path / "run", steps=900, evaluate_every=0, extra={501: {"grad_norm": 99.0}})
    [ax] = chart(dynamics.draw(named("gradient"), group_runs([read_run(folder)]), 45)).figure.axes
    raw, line = lines(ax, 0)
    assert max(raw.get_ydata()) == 99.0
    assert len(line.get_xdata()) <= dynamics.POINTS and line.get_xdata()[-1] == 900


def test_steps_that_were_warned_about_are_marked_once_per_kind(tmp_path: Path) -> None:
    folder = fake_run.make(tmp_path / "run")
    for step, name in ((4, "leak_rate"), (5, "leak_rate"), (9, "collapse")):
        fake_run.warn(folder, step, name)
    ax = chart(dynamics.draw(named("leaks"), group_runs([read_run(folder)]), 1)).figure.axes[0]
    marks = [line.get_xdata()[0] for line in lines(ax, 0) if line.get_marker() == "v"]
    assert marks == [4, 9]


def test_accuracy_shows_the_intervals_of_the_evaluations(seeds: list[Series]) -> None:
    found = {one.index: evaluated(one) for one in seeds}
    drawn = chart(accuracy.accuracy(seeds, found))
    [line] = lines(drawn.figure.axes[0], 1)
    run = seeds[1].runs[0]
    np.testing.assert_allclose(line.get_ydata(), [100 * run.evaluations[step].avg.mean for step in (0, 6, 12)])
    row = next(row for row in drawn.rows if row[:2] == ("grpo", 6))
    interval = run.evaluations[6].avg
    np.testing.assert_allclose(row[3:6], [100 * interval.mean, 100 * interval.low, 100 * interval.high])
    assert "6 held-out questions" in drawn.caption and "95%" in drawn.caption


def test_teacher_accuracy_has_both_sides_and_the_gap(tmp_path: Path) -> None:
    folder = fake_run.make(tmp_path / "run")
    for step in (0, 6):
        fake_run.teach(folder, step, 0.25, 0.75)
    left, right = chart(accuracy.teacher(group_runs([read_run(folder)]))).figure.axes
    assert [line.get_ydata()[0] for line in lines(left, 0)] == [75.0, 25.0]
    assert [line.get_ydata()[0] for line in lines(right, 0)] == [50.0]


def test_the_curriculum_adds_up_to_1_and_has_the_histograms_shares(seeds: list[Series]) -> None:
    own = curriculum.histograms(seeds[0], 3)
    assert own is not None
    np.testing.assert_allclose(own.shares.sum(axis=1), 1.0)
    np.testing.assert_allclose(own.shares[0], [0.75, 0.25, 0, 0, 0])  # steps 1 to 4: right // 4 is 0 but for the last
    assert [own.name(window) for window in range(3)] == ["1-4", "5-8", "9-12"]
    for draw in (curriculum.heat_map, curriculum.ridge):
        assert len(chart(draw(seeds)).figure.axes) >= 2


def test_without_groups_there_is_no_curriculum(tmp_path: Path) -> None:
    extra = {step: {"pass_rate_histogram": [3, 5]} for step in range(1, 13)}
    series = group_runs([read_run(fake_run.make(tmp_path / "run", recipe="paint", extra=extra))])
    missing = curriculum.heat_map(series)
    assert isinstance(missing, Missing) and "several rollouts per question" in missing.reason


def test_phases_stack_up_to_the_seconds_of_a_step(seeds: list[Series]) -> None:
    several = chart(phases.phases(seeds))
    assert several.columns == ("run", "sampling", "verifying", "update")
    assert [row[1:] for row in several.rows] == [(2.0, 0.5, 1.5)] * 2
    alone = chart(phases.phases(seeds[1:]))
    tops = [bar.get_y() + bar.get_height() for bar in alone.figure.axes[0].patches]
    assert max(tops) == pytest.approx(4.0)


def test_the_papers_dynamics_show_all_four_measures(seeds: list[Series]) -> None:
    drawn = chart(dynamics.papers_dynamics(seeds, 1))
    assert drawn.columns == ("run", "step", "response_length", "pass_rate", "informative_share", "grad_norm")
    assert len(drawn.figure.axes) == 4


def test_divergences_by_correctness_are_densities_of_the_tokens(tmp_path: Path) -> None:
    folder = fake_run.make(tmp_path / "run")
    fake_run.diverge(folder)
    data = json.loads((folder / "analysis" / "divergences.json").read_text(encoding="utf-8"))
    [drawn] = divergences.by_correctness(group_runs([read_run(folder)]))
    rows = [row for row in chart(drawn).rows if row[:2] == ("wrong", "jsd")]
    assert sum((high - low) * density for _, _, low, high, density in rows) == pytest.approx(1)
    counts = data["histograms"]["jsd"]["wrong"]
    assert rows[3][4] == pytest.approx(counts[3] / sum(counts) / 0.1)
    assert "top 100 tokens and one tail bucket" in drawn.caption


def test_divergences_of_seeds_with_other_bins_are_put_together_and_lose_no_token(tmp_path: Path) -> None:
    folders = [fake_run.make(tmp_path / f"{seed}", seed=seed) for seed in (0, 1)]
    for place, folder in enumerate(folders):
        fake_run.diverge(folder)
        file = folder / "analysis" / "divergences.json"
        data = json.loads(file.read_text(encoding="utf-8"))
        data["histograms"]["jsd"] = {"edges": [place, place + 1, place + 2], "correct": [4, 6], "wrong": [2, 0]}
        data["without_context"] = 3
        file.write_text(json.dumps(data), encoding="utf-8")
    [drawn] = divergences.by_correctness(group_runs([read_run(folder) for folder in folders]))
    rows = [row for row in chart(drawn).rows if row[:2] == ("correct", "jsd")]
    assert [row[2:] for row in rows] == [
        (0.0, 1.5, pytest.approx((4 + 3 + 2) / 20 / 1.5)),
        (1.5, 3.0, pytest.approx((3 + 2 + 6) / 20 / 1.5)),
    ]
    assert "6 rollouts without a privileged context" in chart(drawn).caption


def test_divergences_by_pass_rate_are_mean_and_deviation_over_rollouts(tmp_path: Path) -> None:
    folder = fake_run.make(tmp_path / "run")
    fake_run.diverge(folder)
    drawn = chart(divergences.by_pass_rate(group_runs([read_run(folder)])))
    row = next(row for row in drawn.rows if row[1:3] == ("jsd", 0.5))
    values = 0.5 + 0.1 * np.arange(8)
    assert row[3:] == (pytest.approx(values.mean()), pytest.approx(values.std()), 8)


def test_divergences_that_were_not_measured_are_missing(seeds: list[Series]) -> None:
    assert all(
        isinstance(one, Missing) for one in [*divergences.by_correctness(seeds), divergences.by_pass_rate(seeds)]
    )


OFF = ("method.distillation.interpolation_fraction=0", "method.distillation.interpolation_strength=0")


def test_paints_ablations_are_told_by_the_settings_of_the_rows() -> None:
    rows = {
        "full": [*OFF, "method.context.hidden_correct=0", "method.context.hidden_wrong=0"],
        "half": [*OFF, "method.context.hidden_correct=0.5", "method.context.hidden_wrong=0.5"],
        "middle": [*OFF, "method.context.placement=middle"],
        "published": [*OFF],
        "soft": [],
    }
    recipes = {name: load_recipe(fake_run.RECIPES / "paint.yaml", own) for name, own in rows.items()}
    table = [
        {"run": name, "seeds": 3, "avg": fake_run.interval(0.5 + place / 100), "published": {}}
        for place, name in enumerate(recipes)
    ]
    drawn = {one.name: one for one in ablations.ablations(table, recipes)}
    assert list(drawn) == ["ablation-schedule", "ablation-placement", "ablation-interpolation", "study"]
    assert [row[:2] for row in drawn["ablation-schedule"].rows] == [
        ("0, 0", "full"),
        ("0.5, 0.5", "half"),
        ("0.4, 0.3", "published"),
    ]
    assert [row[0] for row in drawn["ablation-placement"].rows] == ["middle", "suffix"]
    assert [row[0] for row in drawn["ablation-interpolation"].rows] == ["0, 0", "0.03, 0.03"]
    bars = drawn["ablation-schedule"].figure.axes[0].patches
    assert [bar.get_height() for bar in bars] == pytest.approx([50, 51, 53])
    assert "3 seeds" in drawn["ablation-schedule"].caption


def test_any_table_has_a_figure_of_all_its_rows() -> None:
    table = [
        {"run": "base", "seeds": 1, "avg": fake_run.interval(0.4), "against_base": None},
        {"run": "sdpo", "seeds": 2, "avg": fake_run.interval(0.6), "against_base": {"avg": fake_run.interval(0.2)}},
    ]
    [drawn] = ablations.ablations(table, {})
    assert [row[:2] for row in drawn.rows] == [("base", 40.0), ("sdpo", 60.0)]
    assert drawn.rows[1][4] == pytest.approx(20.0)


def test_markup_of_a_figure_is_the_same_every_time_and_its_ids_are_its_own(seeds: list[Series]) -> None:
    first, second = (svg.inline(chart(dynamics.draw(named("weights"), seeds, 1)), "one") for _ in range(2))
    assert first == second
    root = ElementTree.fromstring(first)
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids)) and all(str(name).startswith("one-") for name in ids)
    targets = re.findall(r'url\(#([^)]*)\)|href="#([^"]*)"', first)
    assert {name for pair in targets for name in pair if name} <= set(ids)


def test_markup_has_the_pages_ink_and_classes_for_its_series(seeds: list[Series]) -> None:
    markup = svg.inline(chart(dynamics.draw(named("length"), seeds, 1)), "one")
    assert "currentColor" in markup and "var(--ground)" in markup
    assert not any(colour in markup for colour in (style.INK, style.GROUND, style.LINE, style.SOFT))
    assert {'class="series-0"', 'class="series-1"'} <= set(re.findall(r'class="[^"]*"', markup))
    assert 'role="img"' in markup and "response length (tokens) from" in markup


def test_hostile_names_are_text_in_a_figure(tmp_path: Path) -> None:
    name = "<b>$\\frac{1}$ & _x"
    folders = [fake_run.make(tmp_path / f"{place}", recipe=one) for place, one in enumerate(("sdpo", "grpo"))]
    series = group_runs([read_run(folder) for folder in folders])
    hostile = [Series(f"{name}{one.index}", one.runs, one.index) for one in series]
    markup = svg.inline(chart(dynamics.draw(named("loss"), hostile, 1)), "one")
    texts = ["".join(element.itertext()) for element in ElementTree.fromstring(markup).iter(f"{{{svg.SVG}}}text")]
    assert f"{name}0" in texts


def test_files_for_papers_are_written_in_every_format(seeds: list[Series], tmp_path: Path) -> None:
    drawn = chart(dynamics.draw(named("loss"), seeds, 1))
    paths = svg.write(drawn, tmp_path / "figures", ["png", "svg", "pdf"])
    assert [path.name for path in paths] == ["loss.png", "loss.svg", "loss.pdf"]
    assert paths[0].read_bytes().startswith(b"\x89PNG") and paths[2].read_bytes().startswith(b"%PDF")
