import json

import pytest

from selfdistill.errors import TrainingError
from selfdistill.training.run import train
from selfdistill.training.run_folder import RunFolder
from selfdistill.training.teacher_accuracy import Answered, read_evidence, summarise

ASKED = ("evaluation.teacher_questions=3", "train.evaluate_every=1")


def test_every_evaluation_says_whether_the_self_teacher_knows_more(make_recipe):
    recipe = make_recipe("paint", *ASKED)
    train(recipe)
    folder = RunFolder(recipe.folder)
    for step in (0, 1, 2):
        found = json.loads((folder.evaluation(step) / "teacher.json").read_text())
        assert (found["questions"], found["samples"]) == (3, 4)
        assert found["gap"]["mean"] == pytest.approx(found["teacher"]["mean"] - found["student"]["mean"])


def test_asking_the_teacher_changes_nothing_about_the_training(make_recipe, read_lines):
    plain, asked = make_recipe("sc_sdpo", folder="plain"), make_recipe("sc_sdpo", *ASKED, folder="asked")
    for recipe in (plain, asked):
        train(recipe)
    losses = [[row["loss"] for row in read_lines(recipe.folder / "metrics.jsonl")] for recipe in (plain, asked)]
    assert losses[0] == losses[1]


def test_a_method_without_a_teacher_asks_none(make_recipe):
    recipe = make_recipe("grpo", *ASKED)
    train(recipe)
    assert not list(recipe.folder.rglob("teacher.json"))


def test_a_teacher_that_is_no_better_is_warned_of_once_also_when_the_run_is_resumed(
    make_recipe, read_lines, monkeypatch
):
    worse = summarise([Answered((True,), (False,), (0, 0), 0)] * 3, samples=1, level=0.95)
    monkeypatch.setattr("selfdistill.training.run.measure_teacher", lambda *given, **named: worse)
    recipe = make_recipe("paint", *ASKED)
    train(recipe, stop_after=1)
    train(recipe, resume=True)
    warned = [row for row in read_lines(recipe.folder / "warnings.jsonl") if row["name"] == "teacher"]
    assert [row["step"] for row in warned] == [0]
    assert warned[0]["measure"] == "teacher_gap" and warned[0]["value"] == -1


def test_a_damaged_file_is_named(tmp_path):
    assert read_evidence(tmp_path / "teacher.json") is None
    (tmp_path / "teacher.json").write_text("{")
    with pytest.raises(TrainingError, match=r"teacher\.json' is damaged"):
        read_evidence(tmp_path / "teacher.json")


def test_a_run_may_begin_to_ask_its_teacher_when_it_is_resumed(make_recipe):
    train(make_recipe("paint", "train.evaluate_every=1"), stop_after=1)
    asked = make_recipe("paint", *ASKED)
    train(asked, resume=True)
    folder = RunFolder(asked.folder)
    assert [(folder.evaluation(step) / "teacher.json").exists() for step in (0, 1, 2)] == [False, False, True]
