"""Comparisons: a matrix of runs, one table, nothing done twice. The runs' commands are executed in this process."""

from __future__ import annotations

import contextlib
import json
import signal
from pathlib import Path
from typing import ClassVar

import pytest

from selfdistill import cli
from selfdistill.errors import RecipeError, TrainingError
from selfdistill.training import comparison, jobs
from selfdistill.training.comparison import as_json, table
from selfdistill.training.progress import NullProgress
from selfdistill.training.recipe import load_recipe

REDUCED = (
    "data.train_limit=8",
    "data.eval_limit=4",
    "rollouts.sampling.max_new_tokens=24",
    "train.steps=2",
    "train.questions_per_step=2",
    "evaluation.samples=2",
    "evaluation.sampling.max_new_tokens=24",
    "output.save_model=false",
)
RECIPES = [
    str(Path(__file__).resolve().parents[2] / "recipes" / "embedded" / f"{name}.yaml") for name in ("sft", "grpo")
]


class Said(NullProgress):
    """Remembers the messages."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


class InProcess:
    """Stands for a process; runs its command when it is started."""

    started: ClassVar[list[list[str]]] = []

    def __init__(self, job: jobs.Job, environment: dict[str, str]) -> None:
        command = job.command()[3:]
        InProcess.started.append(command)
        job.folder.parent.mkdir(parents=True, exist_ok=True)
        with job.log.open("a") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            self.returncode = cli.main(command)

    def poll(self) -> int:
        return self.returncode


@pytest.fixture(autouse=True)
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    InProcess.started = []
    monkeypatch.setattr(jobs, "_start", InProcess)
    monkeypatch.setattr(jobs, "POLL_SECONDS", 0)


def compare(out: Path, *overrides: str, recipes=RECIPES, seeds: int = 1, progress=None):
    return comparison.compare(
        recipes, [*REDUCED, *overrides], seeds=seeds, jobs=2, out=out, progress=progress or NullProgress()
    )


def test_two_recipes_and_two_seeds_give_a_table_with_intervals_and_a_second_call_computes_nothing(tmp_path) -> None:
    lines = compare(tmp_path, seeds=2)
    assert [(line.label, line.steps, len(line.results)) for line in lines] == [
        ("base", 0, 1),
        ("sft", 2, 2),
        ("grpo", 2, 2),
    ]
    assert [command[0] for command in InProcess.started] == [*["train"] * 4, "evaluate"]  # the shortest last
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert rows[0].startswith("| run | avg@2, % | maj@2, % | pass@2, % | avg against base, points | seeds |")
    assert [row.split(" | ")[0] for row in rows[1:]] == ["| base", "| sft", "| grpo"]
    assert "4 held-out problems; brackets are 95% bootstrap intervals over problems" in text
    data = json.loads((tmp_path / "table.json").read_text())
    assert data == [as_json(line) for line in lines]
    for row in data:
        assert row["avg"]["low"] <= row["avg"]["mean"] <= row["avg"]["high"]
    assert len(data[1]["per_seed_avg"]) == 2 and data[1]["against_base"]["problems"] == 4
    InProcess.started, said = [], Said()
    again = compare(tmp_path, seeds=2, progress=said)
    assert InProcess.started == []
    assert said.messages == ["5 of 5 runs are finished already"]
    assert table(again) == table(lines)


def test_the_intervals_have_the_level_that_the_recipe_asks_for(tmp_path) -> None:
    wide = compare(tmp_path / "wide", recipes=RECIPES[:1])
    narrow = compare(tmp_path / "narrow", "evaluation.level=0.5", recipes=RECIPES[:1])
    assert "brackets are 50% bootstrap intervals over problems only" in table(narrow)
    for one, other in zip(narrow, wide, strict=True):
        assert (
            one.interval("avg").high - one.interval("avg").low < other.interval("avg").high - other.interval("avg").low
        )
    assert narrow[1].against_base is not None
    assert "50% interval" in str(narrow[1].against_base)


def test_another_seed_is_added_to_what_is_there(tmp_path) -> None:
    compare(tmp_path, recipes=RECIPES[:1])
    InProcess.started = []
    lines = compare(tmp_path, recipes=RECIPES[:1], seeds=2)
    assert len(InProcess.started) == 1 and "train.seed=1" in InProcess.started[0]
    assert len(lines[1].results) == 2


def test_more_steps_go_on_from_the_finished_runs(tmp_path) -> None:
    compare(tmp_path, recipes=RECIPES[:1])
    lines = compare(tmp_path, "train.steps=3", recipes=RECIPES[:1])
    assert "--resume" in InProcess.started[-1]
    assert lines[1].steps == 3
    assert len((tmp_path / "sft-seed0" / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("override", ["train.learning_rate=1e-5", "evaluation.samples=3", "data.eval_limit=3"])
def test_results_of_other_settings_are_never_taken_for_these(tmp_path, override) -> None:
    compare(tmp_path, recipes=RECIPES[:1])
    InProcess.started = []
    with pytest.raises(RecipeError) as caught:
        compare(tmp_path, override, recipes=RECIPES[:1])
    assert f"holds results of another {override.split('=')[0]} (" in str(caught.value)
    assert "choose another --out, or remove that folder" in str(caught.value)
    assert InProcess.started == []


def test_a_run_that_fails_is_named_with_its_reason_and_log_and_the_others_are_kept(tmp_path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(f"extends: {RECIPES[0]}\nname: bad\nmodel: {{lora: {{targets: [nowhere]}}}}\n")
    with pytest.raises(TrainingError) as caught:
        compare(tmp_path / "out", recipes=[RECIPES[0], str(bad)])
    said = str(caught.value)
    assert "bad seed 0 ended with exit code 1" in said
    assert "the model has no linear layer 'nowhere' to adapt" in said
    assert f"(log: {tmp_path / 'out' / 'bad-seed0.log'})" in said and "\n" not in said
    assert "no linear layer" in (tmp_path / "out" / "bad-seed0.log").read_text()
    assert (tmp_path / "out" / "sft-seed0" / "result.json").exists()
    bad.write_text(f"extends: {RECIPES[0]}\nname: bad\n")
    InProcess.started = []
    compare(tmp_path / "out", recipes=[RECIPES[0], str(bad)])
    assert [command[0] for command in InProcess.started] == ["train", "evaluate"]  # the base was still to come


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("data: {eval_limit: 3}", "data.eval_limit (4, now 3)"),
        ("evaluation: {samples: 3}", "evaluation.samples (2, now 3)"),
    ],
)
def test_recipes_that_are_evaluated_differently_are_refused(tmp_path, change, named) -> None:
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text("method: sft\ndata: {eval_limit: 4}\nevaluation: {samples: 2}\n")
    two.write_text(f"extends: one.yaml\n{change}\n")
    with pytest.raises(RecipeError) as caught:
        comparison.compare([str(one), str(two)], [], seeds=1, jobs=1, out=tmp_path / "out", progress=NullProgress())
    assert f"cannot be compared, because they differ in {named}" in str(caught.value)
    assert InProcess.started == []


def test_two_recipes_of_one_name_are_refused(tmp_path) -> None:
    copy = tmp_path / "sft.yaml"
    copy.write_text(f"extends: {RECIPES[0]}\n")
    with pytest.raises(RecipeError, match="are both named 'sft'; give one another `name:`"):
        compare(tmp_path, recipes=[RECIPES[0], str(copy)])


@pytest.mark.parametrize("override", ["train.seed=3", "output.folder=x"])
def test_settings_that_a_comparison_makes_itself_are_refused(tmp_path, override) -> None:
    with pytest.raises(RecipeError, match="has no effect in a comparison, which sets"):
        compare(tmp_path, override)


def test_folders_with_odd_names_reach_the_runs_unharmed(tmp_path) -> None:
    out = tmp_path / "a #b: 1e5"
    compare(out, recipes=RECIPES[:1])
    assert (out / "sft-seed0" / "result.json").exists()


def test_an_interrupted_comparison_asks_its_runs_to_stop_and_waits_for_them(tmp_path, monkeypatch) -> None:
    asked = []

    class Endless:
        returncode = None

        def __init__(self, job: jobs.Job, environment: dict[str, str]) -> None:
            pass

        def poll(self) -> None:
            signal.raise_signal(signal.SIGTERM)

        def terminate(self) -> None:
            asked.append("stop")

        def wait(self) -> None:
            asked.append("waited")

    monkeypatch.setattr(jobs, "_start", Endless)
    before, said = signal.getsignal(signal.SIGTERM), Said()
    with pytest.raises(KeyboardInterrupt):
        compare(tmp_path, progress=said)
    assert asked == ["stop", "stop", "waited", "waited"]
    stopped = "stopping after the current step: sft seed 0, grpo seed 0; the same command goes on from there"
    assert said.messages[-1] == stopped
    assert signal.getsignal(signal.SIGTERM) is before


def test_cores_are_shared_out_unless_the_user_has_decided(monkeypatch) -> None:
    monkeypatch.setattr(jobs, "available_cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [jobs._environment(count)["OMP_NUM_THREADS"] for count in (1, 3, 16)] == ["8", "2", "1"]
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert jobs._environment(3)["OMP_NUM_THREADS"] == "5"


def job(label: str, *overrides: str) -> jobs.Job:
    return jobs.Job(label, Path(label), RECIPES[1], overrides, load_recipe(RECIPES[1], overrides), steps=2)


def test_runs_that_share_a_server_take_turns() -> None:
    served = ("rollouts.engine=vllm_server", "rollouts.server.urls=[http://a:1, http://b:2]")
    other = ("rollouts.engine=vllm_server", "rollouts.server.urls=http://c:3")
    first, second, third, free = job("1", *served), job("2", *served[:1], other[1]), job("3", *served), job("4")
    assert jobs.next_job([third, free], [first]) is free
    assert jobs.next_job([third, second], [first]) is second
    assert jobs.next_job([third], [first]) is None
    assert jobs.next_job([third], []) is third
    assert jobs.next_job([job("5", "rollouts.engine=vllm")], [job("6", "rollouts.engine=vllm")]) is None
