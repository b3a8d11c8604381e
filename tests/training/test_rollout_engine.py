"""A run and its engine: when it gets weights, and what a fault leaves.

The engine here is the transformers one on a copy of the model that follows at every sync, as a server would.
"""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
import torch

from selfdistill.checkpoints import CheckpointFolder, read_checkpoint
from selfdistill.errors import RolloutError
from selfdistill.training import start as start_module
from selfdistill.training.evaluating import evaluate_recipe
from selfdistill.training.progress import NullProgress
from selfdistill.training.run import train
from selfdistill.training.run_folder import RunFolder

LIMIT = 30.0
"""Seconds; only a test that fails waits for so long."""
SDPO = ("sdpo", "method.source.group_size=4")


def journals(recipe) -> list[str]:
    return sorted(path.name for path in recipe.folder.glob("pending-*"))


def metrics_of(recipe) -> list[dict[str, Any]]:
    return [json.loads(line) for line in RunFolder(recipe.folder).metrics.read_text().splitlines()]


def weights_of(recipe) -> dict[str, torch.Tensor]:
    return read_checkpoint(CheckpointFolder(RunFolder(recipe.folder).checkpoints).newest).weights


def assert_same_weights(first, second) -> None:
    one, two = weights_of(first), weights_of(second)
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_the_engine_gets_the_weights_when_they_have_changed_and_only_then(engines, make_recipe) -> None:
    made, _ = engines
    recipe = make_recipe(*SDPO, "train.steps=3", "train.evaluate_every=1")
    train(recipe)
    assert made[0].versions == [f"step-{step:06d}" for step in range(4)]
    kinds = [kind for kind, _ in made[0].events]
    assert kinds == ["sync", "draw", "draw"] * 3 + ["sync", "draw"]  # evaluation, then the step's rollouts
    drawn = [what for kind, what in made[0].events if kind == "draw"]
    assert len(set(drawn)) == 4 and drawn[0::2][:3] == drawn[1::2]
    assert made[0].closed == 1


def test_a_step_logs_the_sync_before_it(engines, make_recipe) -> None:
    recipe = make_recipe(*SDPO)
    train(recipe)
    for row in metrics_of(recipe):
        assert (row["sync/seconds"], row["sync/bytes"]) == (0.5, 1000)
        assert (row["sync/mean_difference"], row["sync/max_difference"]) == (1e-6, 2e-6)
        assert row["sampler_mismatch"] < 1e-5 and row["sampler_mismatch_max"] >= row["sampler_mismatch"]
        assert 0 <= row["sampler_kl"] < 1e-9
        assert "rollout_age" not in row and "policy_moved" not in row
    assert "seconds/syncing" in metrics_of(recipe)[1]


def test_shared_weights_log_no_sync(make_recipe) -> None:
    recipe = make_recipe(*SDPO)
    train(recipe)
    assert not any(name.startswith("sync/") for row in metrics_of(recipe) for name in row)


def test_supervised_training_syncs_for_evaluations_alone(engines, make_recipe) -> None:
    made, _ = engines
    recipe = make_recipe("sft", "train.steps=3")
    train(recipe)
    assert made[0].versions == ["step-000000", "step-000003"]
    assert not any("sync/seconds" in row for row in metrics_of(recipe)[1:])


def test_pass_rates_before_training_are_drawn_from_synced_weights(engines, make_recipe) -> None:
    made, made_with = engines
    made_with["faults"] = {0: 5}
    recipe = make_recipe("paced", "method.weighting.rollouts=4")
    with pytest.raises(RolloutError, match=r"has died; the run has stopped before its first step.* --resume"):
        train(recipe)
    assert made[0].versions == ["step-000000"] and made[0].closed == 1
    assert journals(recipe) == ["pending-prior.jsonl"]
    train(recipe, resume=True)
    assert made[1].asked[0] == 8 * 4 - 5
    assert made[1].versions == [f"step-{step:06d}" for step in range(3)]
    assert journals(recipe) == []


@pytest.mark.parametrize("drawn", [0, 5])
def test_a_dying_engine_leaves_a_checkpoint_and_all_that_had_finished(engines, make_recipe, drawn) -> None:
    made, made_with = engines
    undisturbed = make_recipe(*SDPO, "train.steps=3", folder="undisturbed")
    train(undisturbed)
    made_with["faults"] = {2: drawn}  # the first evaluation, the first step, the second
    recipe = make_recipe(*SDPO, "train.steps=3")
    with pytest.raises(RolloutError) as caught:
        train(recipe)
    assert str(caught.value) == (
        "the server http://x has died; the run has stopped after step 1: the checkpoint and the finished responses are "
        f"kept in {str(recipe.folder)!r}, go on with --resume"
    )
    assert made[1].closed == 1
    assert CheckpointFolder(RunFolder(recipe.folder).checkpoints).newest.name == "step-000001"
    assert train(recipe, resume=True).finished
    assert made[2].versions[0] == "step-000001" and made[2].asked[0] == 8 - drawn
    assert_same_weights(recipe, undisturbed)
    assert journals(recipe) == []


def test_a_kill_in_the_middle_of_a_step_loses_no_response_that_was_written(engines, make_recipe) -> None:
    """After SIGKILL there is a journal with a torn line, and no checkpoint but the last regular one."""
    made, made_with = engines
    undisturbed = make_recipe(*SDPO, "train.save_every=1", folder="undisturbed")
    train(undisturbed)
    recipe = make_recipe(*SDPO, "train.save_every=1")
    made_with["faults"] = {2: 6}
    with pytest.raises(RolloutError):
        train(recipe)
    journal = recipe.folder / "pending-000001.jsonl"
    journal.write_bytes(journal.read_bytes()[:-30])
    train(recipe, resume=True)
    assert made[2].asked[0] == 8 - 5
    assert_same_weights(recipe, undisturbed)


def test_a_journal_of_another_step_than_the_checkpoint_s_is_discarded(engines, make_recipe) -> None:
    made, made_with = engines
    recipe = make_recipe(*SDPO, "train.steps=3", "train.save_every=1")
    made_with["faults"] = {3: 6}
    with pytest.raises(RolloutError):
        train(recipe)
    shutil.rmtree(CheckpointFolder(RunFolder(recipe.folder).checkpoints).newest)
    train(recipe, resume=True)
    assert made[1].asked == [8, 8, 8]  # two steps, and the evaluation in the end
    assert journals(recipe) == []


def test_an_evaluation_that_fails_is_made_up_for(engines, make_recipe) -> None:
    made, made_with = engines
    recipe = make_recipe(*SDPO)
    made_with["faults"] = {3: 3}  # the evaluation after the last step
    with pytest.raises(RolloutError, match=r"stopped after step 2: the checkpoint and the finished responses are kept"):
        train(recipe)
    assert train(recipe, resume=True).finished
    assert made[1].asked == [4 * 2 - 3]


def test_an_engine_that_does_not_get_the_weights_stops_the_run_the_same_way(engines, make_recipe) -> None:
    made, made_with = engines
    made_with["then"] = lambda engine: setattr(engine, "sync_fails", True)
    recipe = make_recipe(*SDPO)
    with pytest.raises(RolloutError, match=r"does not have the weights; the run has stopped after step 0.* --resume"):
        train(recipe)
    assert made[0].closed == 1
    assert train(recipe, resume=True).finished


def test_pass_rates_that_cannot_even_begin_leave_a_run_that_can_be_resumed(engines, make_recipe) -> None:
    made, made_with = engines
    made_with["then"] = lambda engine: setattr(engine, "sync_fails", True)
    recipe = make_recipe("paced", "method.weighting.rollouts=2")
    with pytest.raises(RolloutError, match=r"does not have the weights; the run has stopped before its first step"):
        train(recipe)
    assert made[0].closed == 1
    assert train(recipe, resume=True).finished


def test_the_engine_is_closed_when_a_run_cannot_start(engines, make_recipe, monkeypatch) -> None:
    made, _ = engines
    monkeypatch.setattr(start_module, "start_teacher", lambda *arguments: pytest.fail("broken"))
    with pytest.raises(BaseException, match="broken"):
        train(make_recipe(*SDPO))
    assert made[0].closed == 1


def test_an_evaluation_without_training_syncs_once_closes_and_can_go_on(engines, make_recipe, tmp_path) -> None:
    made, made_with = engines
    made_with["faults"] = {0: 3}
    recipe = make_recipe(*SDPO)
    with pytest.raises(
        RolloutError, match=r"has died; the responses that had finished are kept in .* the same command"
    ):
        evaluate_recipe(recipe, tmp_path / "out", NullProgress())
    assert (made[0].versions, made[0].closed) == (["evaluated"], 1)
    evaluate_recipe(recipe, tmp_path / "out", NullProgress())
    assert (made[1].asked, made[1].closed) == ([5], 1)


def test_a_large_mismatch_is_warned_of(engines, make_recipe) -> None:
    class Listening(NullProgress):
        def warning(self, text: str) -> None:
            said.append(text)

    said: list[str] = []
    train(make_recipe(*SDPO, "rollouts.mismatch_warning=1e-12", "train.steps=3"), progress=Listening())
    assert [text.partition(":")[0] for text in said if "mismatch_warning" in text] == ["step 1"]
