"""Reading run folders: finished, under way, damaged, and of other versions."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest

from selfdistill.analysis.run_data import find_runs, read_lines, read_run, read_table
from selfdistill.errors import DataError

sys.path.insert(0, str(Path(__file__).parent))
import fake_run


def test_a_run_is_read_with_its_metrics_evaluations_and_recipe(tmp_path: Path) -> None:
    run = read_run(fake_run.make(tmp_path / "run", seed=3))
    assert (run.steps, run.seed, run.name, run.finished) == (12, 3, "sc_sdpo", True)
    assert run.metric("response_length") == {step: 23.0 + step for step in range(1, 13)}
    assert sorted(run.evaluations) == [0, 6, 12]
    assert run.total("seconds/step") == 48.0
    assert len(list(run.rollouts())) == 12 * fake_run.GROUP


def test_optional_files_are_read_where_they_are_and_missed_by_nobody_where_not(tmp_path: Path) -> None:
    bare = read_run(fake_run.make(tmp_path / "bare"))
    assert (bare.warnings, bare.teachers, bare.divergences) == ((), {}, None)
    folder = fake_run.make(tmp_path / "full")
    fake_run.warn(folder, 5)
    fake_run.teach(folder, 6)
    fake_run.diverge(folder)
    full = read_run(folder)
    assert full.warnings[0]["step"] == 5
    assert full.teachers[6]["gap"]["mean"] == pytest.approx(0.3)
    assert full.divergences is not None and full.divergences["support"] == 100


def test_of_a_run_under_way_the_half_written_line_is_left_out(tmp_path: Path) -> None:
    folder = fake_run.make(tmp_path / "run", finished=False)
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"step": 13, "loss": 0.')
    run = read_run(folder)
    assert (run.steps, run.finished) == (12, False)


def test_an_evaluation_under_way_is_left_out(tmp_path: Path) -> None:
    folder = fake_run.make(tmp_path / "run")
    (folder / "evaluations" / "step-000012" / "result.json").unlink()
    assert sorted(read_run(folder).evaluations) == [0, 6]


@pytest.mark.parametrize("line", ["not JSON", "[1, 2]", '{"step": 2', '{"loss": 1.0}', '{"step": "two"}'])
def test_a_line_that_cannot_be_read_is_named_with_its_file(tmp_path: Path, line: str) -> None:
    folder = fake_run.make(tmp_path / "run")
    rows = (folder / "metrics.jsonl").read_text(encoding="utf-8").split("\n")
    (folder / "metrics.jsonl").write_text("\n".join([*rows[:4], line, *rows[4:]]), encoding="utf-8")
    with pytest.raises(DataError, match=r"metrics\.jsonl.* line|metrics\.jsonl' has a line without a step"):
        read_run(folder)


def test_a_bad_line_is_named_by_its_number(tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    file.write_text('{"a": 1}\n{"a": 2}\n{"a"\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"lines\.jsonl' line 3 is not a JSON object"):
        list(read_lines(file))


def test_only_newlines_end_a_line(tmp_path: Path) -> None:
    fake_run.write_lines(tmp_path / "lines.jsonl", [{"response": "a\u2028b\x85c"}])
    assert [row["response"] for row in read_lines(tmp_path / "lines.jsonl")] == ["a\u2028b\x85c"]


def test_a_damaged_evaluation_is_named(tmp_path: Path) -> None:
    folder = fake_run.make(tmp_path / "run")
    (folder / "evaluations" / "step-000006" / "result.json").write_text('{"avg": 1}', encoding="utf-8")
    with pytest.raises(DataError, match=r"step-000006/result\.json.*not an evaluation result"):
        read_run(folder)


def test_a_teacher_that_had_nothing_to_see_is_no_accuracy_of_0(tmp_path: Path) -> None:
    folder = fake_run.make(tmp_path / "run")
    for step in (0, 6):
        fake_run.teach(folder, step)
    file = folder / "evaluations" / "step-000006" / "teacher.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | {"covered": 0}), encoding="utf-8")
    assert list(read_run(folder).teachers) == [0]


@pytest.mark.parametrize("name", ["evaluations/step-000006/teacher.json", "analysis/divergences.json"])
def test_an_analysis_without_its_fields_is_named(tmp_path: Path, name: str) -> None:
    folder = fake_run.make(tmp_path / "run")
    (folder / "analysis").mkdir()
    (folder / name).write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match=rf"{name}' has no '(student|rollouts)'; remove it or make it again"):
        read_run(folder)


def test_what_is_not_finite_is_nan_and_does_not_spoil_a_sum(tmp_path: Path) -> None:
    folder = fake_run.make(tmp_path / "run", extra={2: {"loss": None}, 3: {"seconds/step": None}})
    run = read_run(folder)
    assert math.isnan(run.metric("loss")[2])
    assert run.total("seconds/step") == 44.0


def test_a_recipe_of_another_version_is_noted_and_the_run_read_all_the_same(tmp_path: Path) -> None:
    folder = fake_run.make(tmp_path / "run")
    with (folder / "recipe.yaml").open("a", encoding="utf-8") as stream:
        stream.write("\nfuture_section: {a: 1}\n")
    run = read_run(folder)
    assert run.recipe is None and run.name == "run"
    assert "future_section" in run.notes[0]


def test_folders_that_hold_no_run_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"'.*empty' holds no run; give the folder of a run"):
        find_runs([tmp_path / "empty"])
    with pytest.raises(DataError, match="is not a folder"):
        find_runs([tmp_path / "nowhere"])
    with pytest.raises(DataError, match="is not a folder"):
        read_run(tmp_path / "nowhere")


def test_a_study_stands_for_its_runs_and_no_run_is_read_twice(tmp_path: Path) -> None:
    folder = fake_run.study(tmp_path / "study", {"a": [], "b": []}, seeds=2)
    names = [run.name for run in find_runs([folder, folder / "a-seed0"])]
    assert names == ["a-seed0", "a-seed1", "b-seed0", "b-seed1", "base"]
    assert [row["run"] for row in read_table(folder)] == ["base", "a", "b"]


def test_the_base_of_a_study_is_an_evaluation_at_step_0(tmp_path: Path) -> None:
    base = read_run(fake_run.study(tmp_path / "study", {"a": []}) / "base")
    assert base.untrained and base.finished and base.name == "base" and list(base.evaluations) == [0]
    assert len(list(base.generations(0, ["held-out:1"]))) == fake_run.SAMPLES


def test_a_table_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "table.json").write_text(json.dumps({"rows": []}), encoding="utf-8")
    with pytest.raises(DataError, match=r"table\.json' is not the table of a study"):
        read_table(tmp_path)


def test_only_the_wanted_questions_are_taken_from_the_generations(tmp_path: Path) -> None:
    run = read_run(fake_run.make(tmp_path / "run"))
    found = list(run.generations(6, ["held-out:1", "held-out:4"]))
    assert {row["question_id"] for row in found} == {"held-out:1", "held-out:4"}
    assert len(found) == 2 * fake_run.SAMPLES
