"""Steps whose loss or gradient is not finite: skipped, counted, and after a few in a row the end of the run."""

from __future__ import annotations

import math

import pytest
import torch

from selfdistill.checkpoints import CheckpointFolder
from selfdistill.errors import TrainingError
from selfdistill.teachers.weights import snapshot
from selfdistill.training import loop
from selfdistill.training.progress import NullProgress
from selfdistill.training.run import start, take_step, train
from selfdistill.training.run_folder import RunFolder


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch):
    """Return a function that makes the loss, or the gradient, of the given updates (counted from 1) not finite."""

    def spoil(updates: set[int], what: str = "loss") -> None:
        accumulate, count = loop.accumulate_gradients, [0]

        def spoiled(rows, method, policy, *rest):
            loss = accumulate(rows, method, policy, *rest)
            count[0] += 1
            if count[0] in updates:
                if what == "gradient":
                    next(p for p in policy.model.parameters() if p.grad is not None).grad.view(-1)[0] = math.inf
                return math.nan if what == "loss" else loss
            return loss

        monkeypatch.setattr(loop, "accumulate_gradients", spoiled)

    return spoil


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_such_a_step_changes_neither_weights_nor_optimiser_nor_teacher_and_is_counted(make_recipe, spoil, what) -> None:
    spoil({2}, what)
    recipe = make_recipe("sdpo", "train.steps=3", "method.teacher.rate=0.5")
    run = start(recipe, resume=False, progress=NullProgress())
    take_step(run)
    state = run.state
    weights, teacher = (
        snapshot(state.model),
        {name: value.clone() for name, value in state.teacher.state_dict().items()},
    )
    moments = [value["exp_avg"].clone() for value in state.optimizer.state_dict()["state"].values()]
    metrics = take_step(run)
    assert (metrics["skipped_updates"], state.bad_steps) == (1, 1)
    assert all(torch.equal(value, weights[name]) for name, value in snapshot(state.model).items())
    assert all(torch.equal(value, teacher[name]) for name, value in state.teacher.state_dict().items())
    after = [value["exp_avg"] for value in state.optimizer.state_dict()["state"].values()]
    assert all(torch.equal(one, two) for one, two in zip(moments, after, strict=True))
    metrics = take_step(run)
    assert (metrics["skipped_updates"], state.bad_steps) == (1, 0)
    assert any(not torch.equal(value, weights[name]) for name, value in snapshot(state.model).items())


def test_what_json_cannot_hold_is_null_in_the_metrics(make_recipe, spoil, read_lines) -> None:
    spoil({1})
    recipe = make_recipe("sft")
    train(recipe)
    rows = read_lines(RunFolder(recipe.folder).metrics)
    assert [row["loss"] is None for row in rows] == [True, False]
    assert [row["skipped_updates"] for row in rows] == [1, 1]


def test_one_bad_update_of_several_is_left_out_alone(make_recipe, spoil) -> None:
    spoil({1})
    run = start(make_recipe("sft", "train.updates_per_batch=2"), resume=False, progress=NullProgress())
    take_step(run)
    assert (run.state.skipped_updates, run.state.bad_steps) == (1, 1)
    assert {int(one["step"]) for one in run.state.optimizer.state_dict()["state"].values()} == {1}


def test_several_in_a_row_end_the_run_with_the_reason_and_it_can_be_resumed(make_recipe, spoil, monkeypatch) -> None:
    spoil({2, 3, 4})
    overrides = ("sft", "train.steps=6", "train.max_bad_steps=3")
    recipe = make_recipe(*overrides)
    with pytest.raises(TrainingError) as caught:
        train(recipe)
    said = str(caught.value)
    assert "loss or gradient was not finite for 3 steps in a row (last loss nan" in said
    assert "lower train.learning_rate (now 0.001)" in said and "\n" not in said
    folder = RunFolder(recipe.folder)
    assert CheckpointFolder(folder.checkpoints).steps() == [4]
    monkeypatch.undo()
    result = train(make_recipe(*overrides, "train.max_bad_steps=9"), resume=True)
    assert (result.step, result.finished) == (6, True)


def test_the_count_of_bad_steps_survives_a_restart(make_recipe, spoil) -> None:
    spoil({1, 2, 3})
    recipe = make_recipe("sft", "train.steps=6", "train.max_bad_steps=3")
    train(recipe, stop_after=2)
    with pytest.raises(TrainingError, match="for 3 steps in a row"):
        train(recipe, resume=True)


def test_bad_steps_that_are_not_in_a_row_do_not_end_the_run(make_recipe, spoil) -> None:
    spoil({1, 3})
    assert train(make_recipe("sft", "train.steps=4", "train.max_bad_steps=2")).finished
