"""Runs that show successes of earlier steps to groups without one."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest
import torch

from selfdistill.checkpoints import CheckpointFolder, read_checkpoint
from selfdistill.training.progress import NullProgress
from selfdistill.training.run import start, take_step, train
from selfdistill.training.run_folder import RunFolder
from selfdistill.verifiers.verdict import Verdict

TWO_QUESTIONS = ("data.train_limit=2", "method.source.group_size=4", "train.steps=4", "train.evaluate_first=false")
BUFFER = (*TWO_QUESTIONS, "method.context.buffer=2")


class OnlyAtFirst:
    """The first responses to a question are right, later ones are wrong."""

    requires = ()

    def __init__(self, count: int) -> None:
        self.count, self.seen = count, Counter()

    def verify(self, questions, responses):
        verdicts = []
        for question in questions:
            self.seen[question.id] += 1
            right = self.seen[question.id] <= self.count
            verdicts.append(Verdict(float(right), right, answer="1"))
        return verdicts


def begun(make_recipe, method: str, *overrides: str, count: int = 1, folder: str = "run"):
    run = start(make_recipe(method, *overrides, folder=folder), resume=False, progress=NullProgress())
    return replace(run, trainer=replace(run.trainer, verifier=OnlyAtFirst(count)))


@pytest.mark.parametrize("method", ["sdpo", "srpo", "paced"])
def test_a_group_without_a_success_learns_from_an_earlier_one(make_recipe, method) -> None:
    run = begun(make_recipe, method, *BUFFER, *(["train.seed=1"] if method == "paced" else []))
    first, second = take_step(run), take_step(run)
    assert (first["buffered_share"], first["buffer_successes"]) == (0, 0)
    assert (second["buffered_share"], second["reprompted_share"], second["pass_rate"]) == (1, 1, 0)
    assert second["buffer_successes"] == 2 and second["buffer_characters"] > 0
    assert second["forwarded_share"] > 0 and second["grad_norm"] > 0
    rows = [json.loads(line) for line in run.folder.rollouts.read_text().splitlines()]
    shown = {row["question"]: row["shown"] for row in rows if row["step"] == 2}
    right = {row["question"]: row["response"] for row in rows if row["success"]}
    assert shown == {name: text.strip() for name, text in right.items()}


def test_without_a_buffer_it_gets_nothing_and_nothing_is_logged(make_recipe) -> None:
    run = begun(make_recipe, "sdpo", *TWO_QUESTIONS)
    take_step(run)
    metrics = take_step(run)
    assert (metrics["reprompted_share"], metrics["forwarded_share"]) == (0, 0)
    assert not any(name.startswith("buffer") for name in metrics)


def test_weights_by_pass_rate_leave_such_a_group_out_all_the_same(make_recipe) -> None:
    run = begun(make_recipe, "sc_sdpo", *BUFFER)
    take_step(run)
    metrics = take_step(run)
    assert (metrics["buffered_share"], metrics["forwarded_share"], metrics["grad_norm"]) == (1, 0, 0)


def test_a_question_that_comes_twice_in_a_step_does_not_show_itself_what_the_other_copy_found(make_recipe) -> None:
    run = begun(make_recipe, "sdpo", *BUFFER, "data.train_limit=1")  # both groups of a step ask the same question
    assert take_step(run)["buffered_share"] == 0
    assert take_step(run)["buffered_share"] == 1


def test_a_stopped_and_resumed_run_shows_what_an_undisturbed_one_shows(make_recipe, read_lines) -> None:
    overrides = (*TWO_QUESTIONS, "method.context.buffer=3", "method.source.group_size=2", "output.save_rollouts=all")
    recipes = [make_recipe("sdpo", *overrides, "train.steps=6", folder=name) for name in ("undisturbed", "run")]
    train(recipes[0])
    for step in (1, 3):
        train(recipes[1], resume=step > 1, stop_after=step)
    saved = read_checkpoint(CheckpointFolder(RunFolder(recipes[1].folder).checkpoints).newest)
    assert len(saved.manifest.successes) > 0
    train(recipes[1], resume=True)
    whole, resumed = (RunFolder(recipe.folder) for recipe in recipes)
    assert whole.rollouts.read_bytes() == resumed.rollouts.read_bytes()
    states = [read_checkpoint(CheckpointFolder(one.checkpoints).newest) for one in (whole, resumed)]
    assert states[0].manifest.successes == states[1].manifest.successes
    assert all(torch.equal(states[0].weights[name], value) for name, value in states[1].weights.items())
    assert any(row["buffered_share"] > 0 for row in read_lines(resumed.metrics))
