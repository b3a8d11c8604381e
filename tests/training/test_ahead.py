"""Sampling one step ahead: which weights draw what, and what a stop or a fault leaves.

The engine here is the transformers one on a copy of the model that follows at every sync, as a server would.
"""

from __future__ import annotations

import json
import threading
from itertools import pairwise
from typing import Any

import pytest
import torch

from selfdistill.checkpoints import CheckpointFolder, read_checkpoint
from selfdistill.errors import RolloutError, TrainingError
from selfdistill.rollouts import Completion
from selfdistill.training import ahead as ahead_module
from selfdistill.training import run as run_module
from selfdistill.training.evaluating import fingerprint
from selfdistill.training.progress import NullProgress
from selfdistill.training.run import start, take_step, train
from selfdistill.training.run_folder import RunFolder

LIMIT = 30.0
"""Seconds; only a test that fails waits for so long."""
SDPO = ("sdpo", "method.source.group_size=4")
AHEAD = (*SDPO, "rollouts.engine=vllm_server", "rollouts.ahead=1", "method.distillation.ratio_cap=2", "train.steps=4")


def journals(recipe) -> list[str]:
    return sorted(path.name for path in recipe.folder.glob("pending-*"))


def metrics_of(recipe) -> list[dict[str, Any]]:
    return [json.loads(line) for line in RunFolder(recipe.folder).metrics.read_text().splitlines()]


def weights_of(recipe) -> dict[str, torch.Tensor]:
    return read_checkpoint(CheckpointFolder(RunFolder(recipe.folder).checkpoints).newest).weights


def assert_same_weights(first, second) -> None:
    one, two = weights_of(first), weights_of(second)
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_the_next_batch_is_drawn_from_the_weights_before_the_update(engines, make_recipe) -> None:
    made, _ = engines
    recipe = make_recipe(*AHEAD)
    run = start(recipe, resume=False, progress=NullProgress())
    with run:
        prints = []
        for _ in range(4):
            prints.append(fingerprint(run.state.model))
            take_step(run)
    drawn = [what for kind, what in made[0].events if kind == "draw"]
    assert drawn == [prints[0], prints[0], prints[1], prints[2]]  # none after the last step
    assert made[0].versions == [f"step-{step:06d}" for step in range(3)]
    rows = metrics_of(recipe)
    assert [row["rollout_age"] for row in rows] == [0, 1, 1, 1]
    assert "sampler_mismatch" in rows[0] and "policy_moved" not in rows[0]
    for row in rows[1:]:
        assert row["policy_moved"] > 1e-4 and "sampler_mismatch" not in row
        assert row["seconds/sampling_ahead"] > 0
        assert row["ratio"] != pytest.approx(1.0, abs=1e-6)


def test_the_batch_is_really_drawn_while_the_other_trains(engines, make_recipe, monkeypatch) -> None:
    """The engine waits in the second batch until the first one's update has been made."""
    _, made_with = engines
    updated, threads = threading.Event(), []

    def before(call: int) -> None:
        threads.append(threading.current_thread())
        if call == 1:
            assert updated.wait(LIMIT)

    made_with["then"] = lambda engine: setattr(engine, "before", before)
    recipe = make_recipe(*AHEAD, "train.steps=2")
    run = start(recipe, resume=False, progress=NullProgress())
    with run:
        take_step(run)
        updated.set()
        take_step(run)
    assert threads[0] is threading.main_thread() and threads[1] is not threading.main_thread()
    assert metrics_of(recipe)[1]["rollout_age"] == 1


def test_an_evaluation_waits_for_the_batch_that_is_being_drawn(engines, make_recipe) -> None:
    made, _ = engines
    recipe = make_recipe(*AHEAD, "train.evaluate_every=1")
    train(recipe)
    kinds = [(kind, what) for kind, what in made[0].events]
    # Whatever is drawn between two syncs is drawn from one set of weights: those of the sync before.
    by_sync: list[set[str]] = []
    for kind, what in kinds:
        if kind == "sync":
            by_sync.append(set())
        else:
            by_sync[-1].add(what)
    assert all(len(prints) == 1 for prints in by_sync)
    assert all(one != two for one, two in pairwise(by_sync))
    assert [row["rollout_age"] for row in metrics_of(recipe)] == [0, 1, 1, 1]


def test_a_fault_of_the_next_batch_surfaces_at_its_own_step(engines, make_recipe) -> None:
    made, made_with = engines
    undisturbed = make_recipe(*AHEAD, folder="undisturbed")
    train(undisturbed)
    made_with["faults"] = {3: 5}  # evaluation, batches of steps 0, 1 and 2
    recipe = make_recipe(*AHEAD)
    with pytest.raises(RolloutError, match=r"has died; the run has stopped after step 2: .* go on with --resume"):
        train(recipe)
    assert len(metrics_of(recipe)) == 2 and made[1].closed == 1
    assert train(recipe, resume=True).finished
    assert made[2].asked[0] == 8 - 5  # the others were drawn from the weights before, and count as old
    assert [row["rollout_age"] for row in metrics_of(recipe)] == [0, 1, 1, 1]


def test_a_stopped_and_resumed_run_equals_an_undisturbed_one_if_its_batch_had_finished(engines, make_recipe) -> None:
    made, _ = engines
    undisturbed, recipe = make_recipe(*AHEAD, folder="undisturbed"), make_recipe(*AHEAD)
    train(undisturbed)
    run = start(recipe, resume=False, progress=NullProgress())
    with run:
        run_module.evaluate_now(run)
        take_step(run)
        take_step(run)
        run.trainer.pending.wait(lambda: None)
        run_module._stopped(run)
    assert journals(recipe) == ["pending-000002.jsonl"]
    assert train(recipe, resume=True).finished
    assert made[2].asked == [8, 8]  # the last step's batch, and the evaluation: that of step 2 was there
    assert_same_weights(recipe, undisturbed)


def test_a_stop_gives_up_the_batch_and_keeps_what_had_finished_of_it(engines, make_recipe) -> None:
    made, made_with = engines
    reached, go_on = threading.Event(), threading.Event()

    class Endless(NullProgress):
        def step_line(self, metrics, total=None) -> None:
            assert reached.wait(LIMIT)

    def slow(engine) -> None:
        plain = engine.stream

        def stream(*arguments, on_tokens, **named):
            for count, done in enumerate(plain(*arguments, on_tokens=on_tokens, **named)):
                if len(engine.asked) == 3 and count == 3:
                    reached.set()
                    while not go_on.wait(0.01):  # draws on and on
                        on_tokens(1)
                yield done

        engine.stream = stream  # type: ignore[method-assign]

    made_with["then"] = slow
    recipe = make_recipe(*AHEAD)
    stopped = train(recipe, progress=Endless(), stop_after=1)
    assert (stopped.step, made[0].closed) == (1, 1)
    assert not any(thread.name == "sampling-ahead" and thread.is_alive() for thread in threading.enumerate())
    assert train(recipe, resume=True).finished
    assert made[1].asked[0] == 8 - 3
    assert [row["rollout_age"] for row in metrics_of(recipe)] == [0, 1, 1, 1]


def test_an_engine_that_hangs_does_not_keep_a_run_from_stopping(engines, make_recipe, monkeypatch) -> None:
    """It is left behind after a while, and closed."""
    made, made_with = engines
    never = threading.Event()
    made_with["then"] = lambda engine: setattr(engine, "before", lambda call: call < 2 or never.wait(LIMIT))
    monkeypatch.setattr(ahead_module, "CANCEL_SECONDS", 0.2)
    stopped = train(make_recipe(*AHEAD), stop_after=1)
    assert (stopped.step, made[0].closed) == (1, 1)
    never.set()


def test_tokens_of_the_background_are_counted_only_while_the_run_waits_for_them(engines, make_recipe) -> None:
    class Watching(NullProgress):
        def advance(self, n: int) -> None:
            threads.add(threading.current_thread().name)

    threads: set[str] = set()
    train(make_recipe(*AHEAD), progress=Watching())
    assert threads == {threading.main_thread().name}


def test_old_rollouts_without_log_probabilities_are_refused(engines, make_recipe) -> None:
    _, made_with = engines

    def without(engine) -> None:
        plain = engine.stream

        def stream(*arguments, **named):
            for place, one in plain(*arguments, **named):
                yield place, Completion(one.ids, None, one.finish_reason)

        engine.stream = stream  # type: ignore[method-assign]

    made_with["then"] = without
    recipe = make_recipe(*AHEAD)
    with pytest.raises(TrainingError, match=r"carry no log-probabilities.*rollouts.ahead=0"):
        train(recipe)
    assert len(metrics_of(recipe)) == 1  # on-policy, the first step needs none
    assert "sampler_mismatch" not in metrics_of(recipe)[0]
