"""A whole run: from a recipe to a run folder with metrics, evaluations, checkpoints and the final model.

Resumable after any step: what a stopped and resumed run computes is what an undisturbed one computes. A fault of the
engine ends it like a stop does: with a checkpoint, and with every response that had finished in the journal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfdistill.contexts.prompt import PrivilegedPrompt
from selfdistill.errors import RolloutError, TrainingError
from selfdistill.evaluation.result import EvaluationResult
from selfdistill.evaluation.run import evaluate
from selfdistill.models.loading import resolve_device, save_pretrained
from selfdistill.parallel.sharding import exporting, state_of
from selfdistill.parallel.world import joined
from selfdistill.training.alarms import Alarm
from selfdistill.training.card import model_card
from selfdistill.training.interruption import StopRequested
from selfdistill.training.loop import Clock
from selfdistill.training.metrics import Metrics, finite
from selfdistill.training.plan import Plan
from selfdistill.training.progress import NullProgress, Progress
from selfdistill.training.recipe import Recipe
from selfdistill.training.run_folder import TEACHER, write_json
from selfdistill.training.start import Run, start
from selfdistill.training.teacher_accuracy import (
    TeacherAccuracy,
    answers_per_question,
    held_out_slice,
    measure_teacher,
)


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a call of :func:`train` ended."""

    folder: Path
    step: int
    finished: bool
    """False: stopped on request; resume it."""
    evaluations: Mapping[int, EvaluationResult]
    """By number of steps done."""
    stopped_early: Alarm | None = None
    """The warning that ended it before its last step (``warnings.stop_on``)."""
    best_step: int | None = None
    """The step of the best checkpoint, by avg@k; None: none was evaluated, or ``train.keep_best`` is false."""


def train(
    recipe: Recipe, *, resume: bool = False, progress: Progress | None = None, stop_after: int | None = None
) -> RunResult:
    """Run a recipe.

    Args:
        recipe: what to run; its ``folder`` must be new unless ``resume``.
        resume: continue from the newest checkpoint in the folder (from the beginning when there is none).
        progress: where to show it; nowhere by default.
        stop_after: stop cleanly, with a checkpoint, once this many steps are done. SIGINT and SIGTERM do the same at
            once while responses are drawn, and otherwise after the micro-batch that is being made.

    Raises:
        SelfDistillError: for everything that is wrong with recipe, data or model (before anything is trained), or when
            the run has to be given up.
        RolloutError: the engine failed; what was reached is saved, and the message says how to go on.
    """
    with joined(recipe.parallel.timeout_seconds, resolve_device(recipe.model.device).type) as world:
        resume = world.main(lambda: resume)  # what each finds in a shared folder may differ for a moment
        try:
            begun = start(recipe, resume=resume, progress=progress or NullProgress(), world=world)
        except StopRequested:
            return RunResult(recipe.folder, 0, False, {})
        with begun as run, run.stop.on_signals():
            try:
                while True:
                    if _evaluation_is_due(run):
                        evaluate_now(run)
                    if run.ended:
                        return finish(run)
                    if world.any(run.stop.requested) or (stop_after is not None and run.state.step >= stop_after):
                        return _stopped(run)
                    take_step(run)
            except StopRequested:
                return _stopped(run)


def take_step(run: Run) -> Metrics:
    """Take one step, write what it did, and save when it is time.

    Raises:
        TrainingError: after ``train.max_bad_steps`` steps in a row without a finite loss and gradient.
        RolloutError: the engine failed before the update; the checkpoint is that of the steps before.
    """
    config, state = run.recipe.train, run.state
    with _keeping(run):
        metrics, plan = run.trainer.step(state)
    run.early = run.world.main(lambda: _write_step(run, metrics, plan))
    run.trackers.log(metrics, state.step)
    run.trainer.progress.step_line(metrics, config.steps)
    if state.bad_steps >= config.max_bad_steps:
        _save(run)
        raise TrainingError(
            f"loss or gradient was not finite for {state.bad_steps} steps in a row (last loss {metrics['loss']}, "
            f"gradient norm {metrics['grad_norm']}), so the run was given up; its last good weights are in "
            f"{str(run.folder.checkpoints)!r}. Start a new run with a lower train.learning_rate (now "
            f"{config.learning_rate}) or model.dtype=float32, or go on with --resume and a higher train.max_bad_steps"
        )
    if config.save_every and state.step % config.save_every == 0:
        run.saver.save(state)  # written while the next step is taken
    return metrics


def _write_step(run: Run, metrics: Metrics, plan: Plan) -> Alarm | None:
    """Write a step and the warnings about it; return the one that ends the run."""
    due = run.alarms.observe(metrics)
    metrics["warnings"] = run.alarms.count
    run.folder.append(run.folder.metrics, [finite(metrics)])
    run.folder.append(run.folder.rollouts, _rollout_records(run.recipe, run.state.step, plan))
    return say(run, due)


def say(run: Run, due: Sequence[Alarm]) -> Alarm | None:
    """Write and show warnings, on the main process; return the one that ends the run, if one does."""
    if due:
        run.folder.append(run.folder.warnings, [alarm.to_json() for alarm in due])
    for alarm in due:
        run.trainer.progress.warning(str(alarm))
    return run.alarms.stop


def evaluate_now(run: Run) -> EvaluationResult:
    """Evaluate the current weights on the held-out questions; an interrupted evaluation of the same step goes on.

    A batch that is being sampled ahead is waited for: the engine cannot get other weights while it draws.

    Raises:
        StopRequested: a stop was asked for meanwhile.
        RolloutError: the engine failed; the checkpoint and the responses that had finished are kept.
    """
    folder, trainer, recipe = run.folder.evaluation(run.state.step), run.trainer, run.recipe

    def on_tokens(count: int) -> None:
        run.stop.check()
        trainer.progress.advance(count)

    asked = len(run.data.eval[: recipe.evaluation.questions]) * recipe.evaluation.samples
    with _keeping(run):
        trainer.pending.wait(run.stop.check)
        trainer.sync(run.state.step, Clock(trainer.progress))
        tokens = asked * recipe.evaluation.sampling.max_new_tokens
        with trainer.progress.phase("evaluating", tokens), trainer.drawing():
            result = evaluate(
                run.data.eval,
                trainer.sampler,
                trainer.policy.chat,
                run.data.verifier,
                recipe.evaluation,
                seed=recipe.data.seed,
                generations_path=folder / "generations.jsonl",
                label=f"{recipe.name} step {run.state.step}",
                on_tokens=on_tokens,
                on_responses=trainer.progress.responses,
                world=run.world,
            )
        teacher = _teacher_now(run, on_tokens)
    run.early = run.world.main(lambda: _write_evaluation(run, result, teacher, folder))
    run.evaluations[run.state.step] = result
    run.trackers.log_evaluation(result, run.state.step)
    if recipe.train.keep_best and run.state.step:
        run.saver.keep_best(run.state, result.avg.mean)
    trainer.progress.evaluation(run.state.step, result.avg.mean)
    trainer.progress.message(f"step {run.state.step}: {result}")
    return result


def _teacher_now(run: Run, on_tokens: Callable[[int], None]) -> TeacherAccuracy | None:
    """Let student and self-teacher answer the same questions, if the recipe asks for it and there is a teacher."""
    method, count, teacher = run.recipe.method, run.recipe.evaluation.teacher_questions, run.state.teacher
    if not count or teacher is None:
        return None
    asked, _ = held_out_slice(method, run.data, count)
    samples = answers_per_question(method)
    expected = 2 * len(asked) * samples * run.recipe.rollouts.sampling.max_new_tokens
    with run.trainer.progress.phase("evaluating the self-teacher", expected):
        found = measure_teacher(run.trainer, teacher, asked, samples, step=run.state.step, on_tokens=on_tokens)
    run.trackers.log(found.metrics(), run.state.step)
    run.trainer.progress.message(f"step {run.state.step}: {found}")
    return found


def _write_evaluation(
    run: Run, result: EvaluationResult, teacher: TeacherAccuracy | None, folder: Path
) -> Alarm | None:
    """Write an evaluation and the warnings about it; return the one that ends the run."""
    due = []
    if teacher is not None:
        write_json(folder / TEACHER, teacher.to_json())
    write_json(folder / "result.json", result.to_json())  # last: it marks the evaluation as done
    due += run.alarms.observe_evaluation(run.state.step, result)
    if teacher is not None and teacher.covered:
        due += run.alarms.observe_teacher(run.state.step, *teacher.evidence)
    return say(run, due)


def finish(run: Run) -> RunResult:
    """Save the final weights and mark the run as finished, at its last step or before it."""
    recipe, state, early = run.recipe, run.state, None if run.complete else run.early
    best = run.saver.best.step if run.saver.best else None
    if early is not None:
        run.trainer.progress.message(f"ending after step {state.step}, by warnings.stop_on: {early.text}")
    _save(run)
    if recipe.output.save_model:
        with exporting(state.model):
            run.world.main(lambda: _save_final(run))
    summary = {
        "finished": True,
        "stopped_early": early.to_json() if early else None,
        "best_step": best,
        "step": state.step,
        "rollout_tokens": state.rollout_tokens,
        "skipped_updates": state.skipped_updates,
        "evaluations": {str(step): result.to_json() for step, result in sorted(run.evaluations.items())},
    }
    run.world.main(lambda: write_json(run.folder.result, summary))
    return RunResult(run.folder.path, state.step, True, run.evaluations, early, best)


def _save_final(run: Run) -> None:
    policy, step = run.trainer.policy, run.state.step
    card = model_card(run.recipe, step, run.evaluations)
    save_pretrained(policy, run.folder.final, card, state_of(policy.model) if run.world.size > 1 else None)


def _evaluation_is_due(run: Run) -> bool:
    """Say whether the weights as they are now have yet to be evaluated."""
    step, config = run.state.step, run.recipe.train
    if not run.data.eval or step in run.evaluations:
        return False
    if step == 0:
        return config.evaluate_first
    return run.ended or bool(config.evaluate_every and step % config.evaluate_every == 0)


@contextmanager
def _keeping(run: Run) -> Iterator[None]:
    """Let a fault of the engine end the run as a stop would: with a checkpoint, and a message that says so."""
    try:
        yield
    except RolloutError as error:
        _save(run)
        raise RolloutError(
            f"{str(error).rstrip('.')}; the run has stopped after step {run.state.step}: the checkpoint and the "
            f"finished responses are kept in {str(run.folder.path)!r}, go on with --resume"
        ) from error


def _stopped(run: Run) -> RunResult:
    _save(run)
    return RunResult(run.folder.path, run.state.step, False, run.evaluations)


def _save(run: Run) -> None:
    """Have the state as it is now on disk, waiting until it is."""
    if run.saver.newest != run.state.step:
        run.saver.save(run.state)
    run.saver.wait()


def _rollout_records(recipe: Recipe, step: int, plan: Plan) -> Iterator[dict[str, Any]]:
    """Yield what rollouts.jsonl keeps of a step: of the first two groups, of all, or nothing."""
    kept = {"none": 0, "sampled": 2, "all": len(plan.groups)}[recipe.output.save_rollouts]
    verdicts = [verdict for group in plan.groups[:kept] for verdict in group.verdicts]
    for row, verdict in zip(plan.rows, verdicts, strict=False):  # the rows of the first groups come first
        rollout = row.rollout
        yield {
            "step": step,
            "question": rollout.question.id,
            "sibling": rollout.sibling,
            "prompt": rollout.question.messages[-1]["content"],
            "response": rollout.text,
            "response_ids": list(rollout.response_ids),
            "finish_reason": rollout.finish_reason,
            "reward": verdict.reward,
            "success": verdict.success,
            "answer": verdict.answer,
            **_shown(row.prompt),
            "weight": row.weight,
            "objective": row.objective,
        }


def _shown(prompt: PrivilegedPrompt | None) -> dict[str, Any]:
    """Return what is kept of the teacher's prompt."""
    names = ("shown", "source", "overlap", "hidden_ratio", "demonstrator")
    return {name: getattr(prompt, name, None) for name in names}
