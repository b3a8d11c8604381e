"""The loop: which questions, which seeds, and what one step does to the weights."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from selfdistill.teachers.self_teacher import MovingAverageTeacher
from selfdistill.teachers.weights import snapshot
from selfdistill.training.progress import NullProgress
from selfdistill.training.run import Run, start, take_step

MORE_QUESTIONS = ("train.questions_per_step=4", "data.train_limit=10", "train.steps=5")


@pytest.fixture
def started(make_recipe):
    """Return a function that starts a run without taking a step."""

    def started(method: str = "paint", *overrides: str, folder: str = "run") -> Run:
        return start(make_recipe(method, *overrides, folder=folder), resume=False, progress=NullProgress())

    return started


class SeedsOnly:
    """A sampler that remembers the seeds that it was asked for."""

    def __init__(self, sampler: Any) -> None:
        self.sampler, self.seeds = sampler, []

    def stream(self, prompts, seeds, sampling, *, logprobs=True, on_tokens=None):
        self.seeds += [seed for own in seeds for seed in own]
        return self.sampler.stream(prompts, seeds, sampling, on_tokens=on_tokens)

    def sync(self, version):
        return None


def rollouts_of(run: Run, steps: int = 1) -> list[tuple[str, tuple[int, ...]]]:
    plans = [run.trainer.step(run.state)[1] for _ in range(steps)]
    return [(row.rollout.question.id, row.rollout.response_ids) for plan in plans for row in plan.rows]


def weights(run: Run) -> dict[str, torch.Tensor]:
    return snapshot(run.state.model)


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_every_question_comes_once_per_epoch_and_every_epoch_has_its_own_order(started) -> None:
    trainer = started("paint", *MORE_QUESTIONS).trainer
    asked = [question.id for step in range(5) for question in trainer.batch(step)]  # two epochs of ten
    first, second = asked[:10], asked[10:]
    assert set(first) == set(second) == {question.id for question in trainer.questions}
    assert first != second


def test_the_order_depends_on_the_seed_and_on_nothing_that_was_drawn(started) -> None:
    trainer = started("paint", *MORE_QUESTIONS).trainer
    before = [[question.id for question in trainer.batch(step)] for step in range(5)]
    torch.rand(100)
    batch = trainer.sample(3, _clock())
    assert [group.question.id for group in batch.groups] == before[3]
    assert [[question.id for question in trainer.batch(step)] for step in reversed(range(5))] == before[::-1]
    other = replace(trainer, recipe=_with_seed(trainer.recipe, 1))
    assert [[question.id for question in other.batch(step)] for step in range(5)] != before


def test_a_step_may_have_more_questions_than_the_data(started) -> None:
    run = started("sdpo", "train.questions_per_step=5", "data.train_limit=2", "method.source.group_size=2")
    metrics, plan = run.trainer.step(run.state)
    assert metrics["rollouts"] == 10
    copies = Counter(group.question.id for group in plan.groups)
    assert sorted(copies.values()) in ([2, 3],)
    seeds = SeedsOnly(run.trainer.sampler)
    replace(run.trainer, sampler=seeds).sample(0, _clock())
    assert len(set(seeds.seeds)) == 10


def test_no_two_siblings_groups_or_steps_share_a_seed(started) -> None:
    run = started("sdpo", *MORE_QUESTIONS)
    sampler = SeedsOnly(run.trainer.sampler)
    trainer = replace(run.trainer, sampler=sampler)
    for step in range(5):
        trainer.sample(step, _clock())
    assert len(sampler.seeds) == 5 * 4 * 8
    assert len(set(sampler.seeds)) == len(sampler.seeds)


def test_the_same_seed_gives_the_same_rollouts_and_weights_and_another_seed_others(started) -> None:
    runs = [started("sc_sdpo", f"train.seed={seed}", folder=str(index)) for index, seed in enumerate((3, 3, 4))]
    first, again, other = (rollouts_of(run, 2) for run in runs)
    assert first == again
    assert first != other
    assert equal(weights(runs[0]), weights(runs[1]))
    assert not equal(weights(runs[0]), weights(runs[2]))


def test_drawing_from_the_global_generators_changes_nothing(started) -> None:
    quiet, noisy = started(folder="a"), started(folder="b")
    torch.manual_seed(1)
    rollouts_of(quiet, 2)
    torch.manual_seed(2)
    rollouts_of(noisy, 1)
    torch.rand(7)
    rollouts_of(noisy, 1)
    assert equal(weights(quiet), weights(noisy))


def test_a_step_leaves_the_global_generators_and_the_mode_as_they_were(started) -> None:
    run = started("paint", "model.lora={r: 2, dropout: 0.5}")
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    take_step(run)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not run.state.model.training


def test_every_step_is_taken_at_the_scheduled_rate(started) -> None:
    run = started("sft", "train.steps=4", "train.warmup_steps=2", "train.schedule=cosine")
    rates = [run.trainer.step(run.state)[0]["learning_rate"] for _ in range(4)]
    assert rates == pytest.approx([5e-4, 1e-3, 1e-3, 5e-4])
    assert {group["lr"] for group in run.state.optimizer.param_groups} == {rates[-1]}


def test_gradient_checkpointing_gives_the_same_weights(started) -> None:
    for lora in ("model.lora=null", "model.lora={r: 2}"):
        plain = started("paint", lora, folder=f"{lora} plain")
        saving = started("paint", lora, "model.gradient_checkpointing=true", folder=f"{lora} saving")
        assert rollouts_of(plain, 2) == rollouts_of(saving, 2)
        assert equal(weights(plain), weights(saving))


def test_a_tighter_clip_changes_the_step_and_the_reported_norm_is_the_one_before_clipping(started) -> None:
    wide, tight = started("sft", "train.grad_clip=null", folder="a"), started("sft", "train.grad_clip=1e-3", folder="b")
    norms = [run.trainer.step(run.state)[0]["grad_norm"] for run in (wide, tight)]
    assert norms[0] == pytest.approx(norms[1])
    assert norms[0] > 1e-3


def test_bf16_weights_are_trained_and_their_average_is_float32(started) -> None:
    run = started("sdpo", "model.dtype=bfloat16", "train.learning_rate=1e-5")
    before = weights(run)
    for _ in range(2):
        metrics = take_step(run)
    assert torch.isfinite(torch.tensor(metrics["loss"]))
    assert {value.dtype for value in weights(run).values()} == {torch.bfloat16}
    assert run.state.teacher is not None
    average = run.state.teacher.state_dict()
    assert {value.dtype for value in average.values()} == {torch.float32}
    assert any(not torch.equal(average[name], value.float()) for name, value in before.items())


def test_several_updates_per_batch_are_several_optimiser_steps_on_whole_groups(started) -> None:
    once, twice = started("sft", folder="a"), started("sft", "train.updates_per_batch=2", folder="b")
    for run, updates in ((once, 1), (twice, 2)):
        take_step(run)
        taken = {int(state["step"]) for state in run.state.optimizer.state_dict()["state"].values()}
        assert taken == {updates}
    assert not equal(weights(once), weights(twice))


@pytest.mark.parametrize(("every", "follows"), [("batch", 1), ("step", 2)])
def test_the_average_follows_once_per_batch_or_once_per_update(started, monkeypatch, every, follows) -> None:
    calls = []
    monkeypatch.setattr(MovingAverageTeacher, "_follow", lambda self: calls.append(1))
    run = started("sdpo", "train.updates_per_batch=2", f"method.teacher.every={every}")
    take_step(run)
    assert len(calls) == follows


def test_a_batch_without_signal_costs_no_update_and_is_no_error(started) -> None:
    run = started("sc_sdpo", "method.source.group_size=2", "rollouts.sampling.max_new_tokens=1")  # nobody can be right
    before = weights(run)
    metrics = take_step(run)
    assert metrics["forwarded_share"] == 0
    assert (metrics["loss"], metrics["grad_norm"], metrics["skipped_updates"]) == (0, 0, 0)
    assert equal(weights(run), before)


def _clock():
    from selfdistill.training.loop import Clock

    return Clock(NullProgress())


def _with_seed(recipe, seed: int):
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"seed": seed})})
