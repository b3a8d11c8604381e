"""A run that ends with a number of sampled tokens: what counts, where it ends, and how it goes on."""

from __future__ import annotations

import json
from typing import Any

import pytest

from selfdistill.checkpoints import CheckpointFolder, read_checkpoint
from selfdistill.errors import RecipeError, RolloutError, TrainingError
from selfdistill.training.run import train
from selfdistill.training.run_folder import RunFolder

SMALL = ("data.eval_limit=1", "evaluation.samples=1", "rollouts.sampling.max_new_tokens=12")
SDPO = ("sdpo", "method.source.group_size=4", "train.steps=4", *SMALL)


def rows_of(recipe) -> list[dict[str, Any]]:
    return [json.loads(line) for line in RunFolder(recipe.folder).metrics.read_text().splitlines()]


def totals_of(recipe) -> list[int]:
    return [row["rollout_tokens"] for row in rows_of(recipe)]


def summary_of(recipe) -> dict[str, Any]:
    return json.loads(RunFolder(recipe.folder).result.read_text())


def final_weights(recipe) -> bytes:
    return (RunFolder(recipe.folder).final / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    """What has been made already."""
    return {}


@pytest.fixture
def unlimited(made, make_recipe, tmp_path_factory):
    """Four steps without a budget; the first test that asks for them pays for them."""
    if not made:
        folder = tmp_path_factory.mktemp("unlimited") / "run"
        made["unlimited"] = make_recipe(*SDPO, f"output.folder={folder}")
        train(made["unlimited"])
    return made["unlimited"]


def test_every_step_logs_the_tokens_sampled_so_far(unlimited) -> None:
    rows = rows_of(unlimited)
    sampled = [row["rollouts"] * row["response_length"] for row in rows]
    assert totals_of(unlimited) == pytest.approx([sum(sampled[: step + 1]) for step in range(4)])
    assert all(isinstance(total, int) for total in totals_of(unlimited))
    summary = summary_of(unlimited)
    assert (summary["finished"], summary["step"]) == (True, 4)
    assert summary["rollout_tokens"] == totals_of(unlimited)[-1]


@pytest.mark.parametrize(("more", "step"), [(0, 2), (1, 3), (-1, 2)])
def test_a_run_ends_with_the_step_that_reaches_its_budget(make_recipe, unlimited, more, step) -> None:
    totals = totals_of(unlimited)
    recipe = make_recipe(*SDPO, f"train.rollout_tokens={totals[1] + more}")
    result = train(recipe)
    assert (result.step, result.finished) == (step, True)
    assert totals_of(recipe) == totals[:step]
    summary = summary_of(recipe)
    assert (summary["finished"], summary["step"], summary["rollout_tokens"]) == (True, step, totals[step - 1])
    assert set(result.evaluations) == {0, step}
    by_steps = make_recipe(*SDPO, f"train.steps={step}", folder="by steps")
    train(by_steps)
    assert final_weights(recipe) == final_weights(by_steps)


def test_the_number_of_steps_stays_the_upper_limit(make_recipe) -> None:
    recipe = make_recipe(*SDPO, "train.rollout_tokens=1000000")
    assert train(recipe).step == 4


def test_resuming_a_run_that_has_spent_its_budget_changes_nothing(make_recipe, unlimited) -> None:
    recipe = make_recipe(*SDPO, f"train.rollout_tokens={totals_of(unlimited)[1]}")
    train(recipe)
    before = final_weights(recipe), rows_of(recipe), summary_of(recipe)
    again = train(recipe, resume=True)
    assert (again.step, again.finished) == (2, True)
    assert (final_weights(recipe), rows_of(recipe), summary_of(recipe)) == before


@pytest.mark.parametrize("stop", [1, 2])
def test_the_total_survives_a_stop(make_recipe, unlimited, stop) -> None:
    totals = totals_of(unlimited)
    recipe = make_recipe(*SDPO, f"train.rollout_tokens={totals[2]}")
    stopped = train(recipe, stop_after=stop)
    assert (stopped.step, stopped.finished) == (stop, False)
    saved = read_checkpoint(CheckpointFolder(RunFolder(recipe.folder).checkpoints).newest)
    assert saved.manifest.rollout_tokens == totals[stop - 1]
    assert train(recipe, resume=True).step == 3
    assert totals_of(recipe) == totals[:3]


def test_what_is_drawn_again_after_a_fault_and_what_is_not_counts_once(engines, make_recipe) -> None:
    undisturbed, recipe = make_recipe(*SDPO, folder="undisturbed"), make_recipe(*SDPO)
    train(undisturbed)
    _, made_with = engines
    made_with["faults"] = {2: 5}  # the evaluation, the first step, the second
    with pytest.raises(RolloutError):
        train(recipe)
    train(recipe, resume=True)
    assert totals_of(recipe) == totals_of(undisturbed)


def test_nothing_is_sampled_ahead_for_a_step_that_will_not_be(engines, make_recipe) -> None:
    made, _ = engines
    ahead = (*SDPO, "rollouts.engine=vllm_server", "rollouts.ahead=1", "method.distillation.ratio_cap=2")
    free = make_recipe(*ahead, folder="free")
    train(free)
    recipe = make_recipe(*ahead, f"train.rollout_tokens={totals_of(free)[1]}")
    assert train(recipe).step == 2
    assert made[1].asked == [1, 8, 8, 1]  # an evaluation, two steps, an evaluation


def test_a_budget_can_be_raised_and_given_up_but_not_lowered(make_recipe, unlimited) -> None:
    totals = totals_of(unlimited)
    train(make_recipe(*SDPO, f"train.rollout_tokens={totals[1]}"))
    with pytest.raises(TrainingError, match=rf"train.rollout_tokens \({totals[1]}, now {totals[0]}\)"):
        train(make_recipe(*SDPO, f"train.rollout_tokens={totals[0]}"), resume=True)
    assert train(make_recipe(*SDPO, f"train.rollout_tokens={totals[2]}"), resume=True).step == 3
    recipe = make_recipe(*SDPO)
    assert train(recipe, resume=True).step == 4
    assert final_weights(recipe) == final_weights(unlimited)
    with pytest.raises(TrainingError, match=r"train.rollout_tokens \(null, now 5000\)"):
        train(make_recipe(*SDPO, "train.rollout_tokens=5000"), resume=True)


PACED = ("paced", "method.source.group_size=4", "method.weighting.rollouts=2", "train.seed=1", *SMALL)


def test_the_pass_before_training_counts(make_recipe) -> None:
    recipe = make_recipe(*PACED)
    train(recipe)
    first = rows_of(recipe)[0]
    passed = json.loads(RunFolder(recipe.folder).prior.read_text())["tokens"]
    assert passed > 8 * 2
    assert first["rollout_tokens"] == passed + round(first["rollouts"] * first["response_length"])
    limited = make_recipe(*PACED, f"train.rollout_tokens={first['rollout_tokens']}", folder="limited")
    train(limited, stop_after=1)
    assert train(limited, resume=True).step == 1
    assert summary_of(limited)["rollout_tokens"] == first["rollout_tokens"]


def test_a_budget_that_the_pass_before_training_uses_up_is_refused_and_the_pass_is_kept(engines, make_recipe) -> None:
    made, _ = engines
    recipe = make_recipe(*PACED, "train.rollout_tokens=20")
    with pytest.raises(TrainingError, match=r"is 20, but the pass before training alone has sampled \d+ tokens; set"):
        train(recipe)
    assert made[0].closed == 1
    assert train(make_recipe(*PACED, "train.rollout_tokens=null"), resume=True).finished
    assert made[1].asked == [1, 8, 8, 1]  # an evaluation, two steps, an evaluation: no second pass


def test_pass_rates_that_are_no_pass_rates_are_named(make_recipe) -> None:
    recipe = make_recipe(*PACED)
    train(recipe, stop_after=1)
    RunFolder(recipe.folder).prior.write_text('{"q1": 0.5}')
    with pytest.raises(TrainingError, match=r"prior_pass_rates.json' does not hold the pass rates .* remove it"):
        train(recipe, resume=True)


def test_supervised_training_samples_nothing_and_takes_no_budget(make_recipe) -> None:
    with pytest.raises(RecipeError, match=r"train.rollout_tokens is 500, but method 'sft' samples nothing; set train"):
        make_recipe("sft", "train.rollout_tokens=500")
    recipe = make_recipe("sft")
    train(recipe)
    assert totals_of(recipe) == [0, 0] and summary_of(recipe)["rollout_tokens"] == 0


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.schedule=cosine", r"train.schedule=cosine the number of steps decides the learning rate"),
        ("train.rollout_tokens=0", r"train.rollout_tokens"),
        ("train.rollout_tokens=2.5", r"train.rollout_tokens"),
    ],
)
def test_a_budget_that_cannot_be_kept_is_refused(make_recipe, setting, message) -> None:
    with pytest.raises(RecipeError, match=message):
        make_recipe("sdpo", "train.rollout_tokens=500", setting)


def test_several_runs_with_budgets_are_counted_in_tokens(unlimited, make_recipe, tmp_path) -> None:
    """By steps they would seem to be at their beginning until the budget ends them."""
    from selfdistill.training.jobs import Job, _work

    total = totals_of(unlimited)[-1]
    recipe = make_recipe(*SDPO, f"train.rollout_tokens={total + 100}", f"output.folder={tmp_path / 'other'}")
    begun, fresh = (Job("job", folder, "", (), recipe, steps=4) for folder in (unlimited.folder, tmp_path / "other"))
    base = Job("base", tmp_path / "base", "", (), recipe, steps=0)
    work = _work([base, begun, fresh])
    assert (work.unit, work.total) == ("rollout tokens", 2 * (total + 100))
    assert [work.done(job) for job in (base, begun, fresh)] == [0, total, 0]
    by_steps = _work([base, Job("job", unlimited.folder, "", (), unlimited, steps=4)])
    assert (by_steps.unit, by_steps.total) == ("steps", 4)
