"""What a run leaves behind: recipe, versions, metrics, rollouts, evaluations, and a model that others can load."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
import yaml

from selfdistill import __version__
from selfdistill.errors import TrainingError
from selfdistill.training import run_folder
from selfdistill.training.recipe import load_recipe
from selfdistill.training.run import train
from selfdistill.training.run_folder import RunFolder, git_state, replace_text

EVERY_METHOD = {
    "step", "loss", "divergence", "student_entropy", "teacher_entropy", "pass_rate", "pass_rate_histogram",
    "weight_sum", "weight_max", "weighted_share", "clip_fraction", "reprompted_share",
    "response_length", "truncated_share", "unparseable_share", "leak_rate", "grad_norm", "learning_rate",
    "skipped_updates", "forwarded_share", "seconds/step", "seconds/sampling", "seconds/verifying", "seconds/update",
    "tokens_per_second/sampling", "tokens_per_second/update",
}  # fmt: skip
"""What a step of every distilling method logs."""


def finite_numbers(row: dict) -> bool:
    values = [one for value in row.values() for one in (value if isinstance(value, list) else [value])]
    return all(isinstance(one, int | float) and torch.isfinite(torch.tensor(float(one))) for one in values)


@pytest.mark.parametrize(
    ("method", "own"),
    [
        ("paint", {"overlap", "hidden_ratio", "selected_ratio", "selected_share"}),
        ("sc_sdpo", {"ratio", "informative_share"}),
    ],
)
def test_the_metrics_of_a_step_are_complete_and_finite(make_recipe, read_lines, method, own) -> None:
    recipe = make_recipe(method)
    train(recipe)
    rows = read_lines(RunFolder(recipe.folder).metrics)
    assert [row["step"] for row in rows] == [1, 2]
    informative = [row for row in rows if row["forwarded_share"] > 0]
    assert informative
    for row in informative:
        assert EVERY_METHOD | own <= row.keys()
    assert all(finite_numbers(row) for row in rows)


def test_the_folder_holds_recipe_versions_rollouts_and_evaluations_and_nothing_is_written_elsewhere(
    make_recipe, read_lines, tmp_path, monkeypatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    recipe = make_recipe("sdpo", "train.evaluate_every=1")
    train(recipe)
    folder = RunFolder(recipe.folder)
    assert load_recipe(folder.recipe) == recipe
    versions = json.loads(folder.environment.read_text())
    assert versions["packages"]["selfdistill"] == __version__
    assert versions["packages"]["torch"] == torch.__version__
    assert {"python", "platform", "git"} <= versions.keys()
    rollouts = read_lines(folder.rollouts)
    assert [row["step"] for row in rollouts] == [1] * 16 + [2] * 16
    assert {"question", "prompt", "response", "reward", "success", "answer", "shown", "weight"} <= rollouts[0].keys()
    assert folder.evaluated_steps() == [0, 1, 2]
    for step in (0, 1, 2):
        assert len(read_lines(folder.evaluation(step) / "generations.jsonl")) == 8
    summary = json.loads(folder.result.read_text())
    assert (summary["step"], set(summary["evaluations"])) == (2, {"0", "1", "2"})
    assert list(elsewhere.iterdir()) == []
    assert [path.name for path in tmp_path.iterdir() if path.name != "elsewhere"] == ["run"]
    assert {path.name for path in folder.path.rglob(".*")} <= {".lock", ".metadata"}


@pytest.mark.parametrize(("kept", "rows"), [("none", 0), ("sampled", 2), ("all", 3)])
def test_as_many_rollouts_are_kept_as_the_recipe_says(make_recipe, read_lines, kept, rows) -> None:
    recipe = make_recipe("paint", f"output.save_rollouts={kept}", "train.questions_per_step=3", "train.steps=1")
    train(recipe)
    assert len(read_lines(RunFolder(recipe.folder).rollouts)) == rows


def test_a_question_that_comes_twice_keeps_what_its_own_teacher_saw(make_recipe, read_lines) -> None:
    recipe = make_recipe(
        "paint",
        "train.questions_per_step=4",
        "data.train_limit=1",
        "train.steps=1",
        "output.save_rollouts=all",
        "train.seed=1",
    )
    train(recipe)
    rows = read_lines(RunFolder(recipe.folder).rollouts)
    assert len({row["question"] for row in rows}) == 1
    assert len({row["response"] for row in rows}) > 1
    assert len({(row["response"], row["shown"]) for row in rows}) == len({row["response"] for row in rows})


def test_the_final_model_loads_with_transformers_and_its_card_states_method_data_and_settings(make_recipe) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    recipe = make_recipe("paint")
    train(recipe)
    final = RunFolder(recipe.folder).final
    model, tokenizer = AutoModelForCausalLM.from_pretrained(final), AutoTokenizer.from_pretrained(final)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "3+4"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    text = tokenizer.decode(model.generate(**prompt, max_new_tokens=24, do_sample=False)[0])
    assert "####" in text
    card = (final / "README.md").read_text(encoding="utf-8")
    header = yaml.safe_load(card.split("---")[1])
    assert header["library_name"] == "transformers" and "paint" in header["tags"]
    for part in ("PAINT, arXiv 2604.26573", "for 2 steps", "hidden_wrong: 0.3", "task: arithmetic", "train_limit: 8"):
        assert part in card
    assert "| 0 |" in card and "| 2 |" in card


def test_the_final_adapters_load_with_peft(make_recipe) -> None:
    from peft import AutoPeftModelForCausalLM

    recipe = make_recipe("paint", "model.lora={r: 2, alpha: 4}")
    train(recipe)
    final = RunFolder(recipe.folder).final
    model = AutoPeftModelForCausalLM.from_pretrained(final)
    assert any("lora_B" in name and bool(value.any()) for name, value in model.named_parameters())
    assert "library_name: peft" in (final / "README.md").read_text()


def test_without_held_out_questions_the_run_ends_without_an_evaluation_and_says_so(tmp_path) -> None:
    from selfdistill.training.progress import NullProgress

    class Said(NullProgress):
        def __init__(self) -> None:
            self.messages: list[str] = []

        def message(self, text: str) -> None:
            self.messages.append(text)

    (tmp_path / "rows.jsonl").write_text('{"prompt": "3+4", "solution": "3+4=7\\n#### 7", "answer": "7"}\n')
    (tmp_path / "mine.yaml").write_text("method: sft\ndata: {task: maths}\n")
    where = [f"data.train={tmp_path / 'rows.jsonl'}", f"output.folder={tmp_path / 'run'}"]
    said = Said()
    recipe = load_recipe(
        tmp_path / "mine.yaml",
        [*where, "train.steps=1", "rollouts.sampling.max_new_tokens=24", "output.save_model=false"],
    )
    result = train(recipe, progress=said)
    assert result.finished and result.evaluations == {}
    assert any("no held-out questions" in message for message in said.messages)
    assert not RunFolder(result.folder).final.exists()


def test_a_folder_that_cannot_be_written_is_an_error_with_a_remedy(make_recipe, tmp_path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TrainingError, match=r"cannot be written .*; set output.folder to a place with room"):
        train(make_recipe("sft", f"output.folder={tmp_path / 'file' / 'run'}"))


def test_metrics_that_cannot_be_written_are_an_error_with_a_remedy(tmp_path) -> None:
    folder = RunFolder(tmp_path)
    folder.metrics.mkdir()
    with pytest.raises(
        TrainingError, match=r"metrics.jsonl' cannot be written .*; make room, then go on with --resume"
    ):
        folder.append(folder.metrics, [{"step": 1}])


def test_truncating_cuts_at_newlines_only_and_drops_half_lines(tmp_path) -> None:
    folder = RunFolder(tmp_path)
    responses = ["a\u2028b", "c\x85d\x0ce", "f"]
    folder.append(folder.rollouts, [{"step": step, "response": text} for step, text in enumerate(responses, start=1)])
    whole = folder.rollouts.read_bytes()
    with folder.rollouts.open("ab") as stream:
        stream.write('{"step": 3, "response": "\u00e9'.encode()[:-1])
    folder.truncate_after(3)
    assert folder.rollouts.read_bytes() == whole
    folder.truncate_after(2)
    assert [
        json.loads(line)["response"] for line in folder.rollouts.read_text("utf-8").strip("\n").split("\n")
    ] == responses[:2]


def test_truncating_drops_later_evaluations_and_the_mark_of_the_end(tmp_path) -> None:
    folder = RunFolder(tmp_path)
    for step in (0, 2, 4):
        replace_text(folder.evaluation(step) / "generations.jsonl", "")
    replace_text(folder.result, "{}")
    folder.truncate_after(2)
    assert folder.evaluated_steps() == [0, 2]
    assert not folder.result.exists()


def test_replacing_a_file_is_all_or_nothing(tmp_path, monkeypatch) -> None:
    file = tmp_path / "file.json"
    replace_text(file, "old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(TrainingError, match=r"No space left on device"):
        replace_text(file, "new")
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.json"]


def test_outside_of_a_repository_or_without_git_there_is_no_git_state(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state() is None
    monkeypatch.setattr(run_folder.subprocess, "run", _missing)
    assert git_state() is None


def _missing(*_: object, **__: object) -> None:
    raise FileNotFoundError("git")
