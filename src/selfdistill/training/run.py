"""A whole run: from a recipe to a run folder with metrics, evaluations, checkpoints and the final model; resumable after any step."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from selfdistill.contexts.rendering import PromptFrame
from selfdistill.errors import DataError, TrainingError
from selfdistill.evaluation.result import EvaluationResult
from selfdistill.evaluation.run import evaluate
from selfdistill.methods.method import Method
from selfdistill.models.head import check_projection, projection_of
from selfdistill.models.loading import Policy, load_policy, save_pretrained
from selfdistill.questions import LoadedData, load_data, require
from selfdistill.questions.question import Question
from selfdistill.rollouts.collect import collect, verify_groups
from selfdistill.rollouts.transformers_sampler import TransformersSampler
from selfdistill.teachers import start_teacher
from selfdistill.training.card import model_card
from selfdistill.training.checkpoint import TrainState, checkpoints, load_checkpoint, save_checkpoint
from selfdistill.training.loop import Trainer
from selfdistill.training.metrics import Metrics, finite
from selfdistill.training.optimizer import make_optimizer
from selfdistill.training.plan import Plan
from selfdistill.training.progress import NullProgress, Progress
from selfdistill.training.recipe import Recipe, parse_recipe, read_yaml, same_run
from selfdistill.training.run_folder import RunFolder, write_json

MAY_CHANGE = ("train.steps", "train.evaluate_every", "train.save_every", "train.keep_checkpoints", "train.evaluate_first")
"""Settings that a resumed run may have changed: they do not alter the steps that are already done (with a constant schedule)."""


@dataclass(slots=True)
class Run:
    """A run under way."""

    folder: RunFolder
    trainer: Trainer
    state: TrainState
    data: LoadedData
    evaluations: dict[int, EvaluationResult] = field(default_factory=dict)

    @property
    def recipe(self) -> Recipe:
        """What is being run."""
        return self.trainer.recipe


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a call of :func:`train` ended."""

    folder: Path
    step: int
    finished: bool
    """False: stopped on request; resume it."""
    evaluations: Mapping[int, EvaluationResult]
    """By number of steps done."""


def train(
    recipe: Recipe, *, resume: bool = False, progress: Progress | None = None, stop_after: int | None = None
) -> RunResult:
    """Run a recipe.

    Args:
        recipe: what to run; its ``folder`` must be new unless ``resume``.
        resume: continue from the newest checkpoint in the folder (from the beginning when there is none).
        progress: where to show it; nowhere by default.
        stop_after: stop cleanly, with a checkpoint, once this many steps are done.

    Raises:
        SelfDistillError: for everything that is wrong with recipe, data or model (before anything is trained), or when the run has to be given up.
    """
    run = start(recipe, resume=resume, progress=progress or NullProgress())
    with _stop_signals() as stop_requested:
        if run.state.step == 0 and recipe.train.evaluate_first:
            evaluate_now(run)
        while run.state.step < recipe.train.steps:
            take_step(run)
            if stop_requested() or run.state.step == stop_after:
                save_checkpoint(run.state, run.folder.checkpoints, recipe.train.keep_checkpoints)
                return RunResult(run.folder.path, run.state.step, False, run.evaluations)
    return finish(run)


def start(recipe: Recipe, *, resume: bool, progress: Progress) -> Run:
    """Load and check everything, in the order in which mistakes are cheapest to find, and restore the newest checkpoint if resuming."""
    folder = RunFolder(recipe.folder)
    _check_folder(folder, recipe, resume)
    data = load_data(recipe.data)
    for note in data.notes:
        progress.message(note)
    _check_questions(recipe.method, data)
    policy = load_policy(recipe.model, recipe.train.seed)
    check_projection(policy.model, projection_of(policy.model))
    longest_prompt = _longest_prompt(policy, recipe)
    _check_prompts(policy, recipe, data.train, longest_prompt)
    folder.create(recipe.to_yaml())
    sampler = TransformersSampler(
        policy.model, policy.chat, batch_tokens=recipe.rollouts.batch_tokens, max_rows=recipe.rollouts.max_rows
    )
    frame = PromptFrame(
        chat=policy.chat,
        max_tokens=recipe.train.max_teacher_prompt_tokens or longest_prompt,
        thinking=recipe.rollouts.thinking,
    )
    trainer = Trainer(recipe, policy, sampler, data.verifier, data.train, frame, progress)
    teacher = start_teacher(recipe.method.teacher, policy.model)
    state = TrainState(policy.model, make_optimizer(policy.model, recipe.train), teacher)
    prior = _prior_pass_rates(trainer, folder)
    run = Run(folder, Trainer(recipe, policy, sampler, data.verifier, data.train, frame, progress, prior), state, data)
    if resume:
        _restore(run)
    return run


def take_step(run: Run) -> Metrics:
    """Take one step, write what it did, and save and evaluate when it is time.

    Raises:
        TrainingError: after ``train.max_bad_steps`` steps in a row without a finite loss and gradient.
    """
    train_config, state = run.recipe.train, run.state
    metrics, plan = run.trainer.step(state)
    run.folder.append(run.folder.metrics, [finite(metrics)])
    _save_rollouts(run, plan)
    run.trainer.progress.step_line(metrics, train_config.steps)
    if state.bad_steps >= train_config.max_bad_steps:
        raise TrainingError(
            f"loss or gradient was not finite for {state.bad_steps} steps in a row (last loss {metrics['loss']}, gradient norm {metrics['grad_norm']}); "
            f"the weights are those of step {state.step - state.bad_steps}. Lower train.learning_rate (now {train_config.learning_rate}) or use model.dtype=float32"
        )
    if state.step < train_config.steps:
        if train_config.evaluate_every and state.step % train_config.evaluate_every == 0:
            evaluate_now(run)
        if train_config.save_every and state.step % train_config.save_every == 0:
            save_checkpoint(state, run.folder.checkpoints, train_config.keep_checkpoints)
    return metrics


def evaluate_now(run: Run) -> EvaluationResult | None:
    """Evaluate the current weights on the held-out questions, continuing an interrupted evaluation of the same step; None without held-out questions."""
    if not run.data.eval:
        return None
    folder, trainer, recipe = run.folder.evaluation(run.state.step), run.trainer, run.recipe
    folder.mkdir(parents=True, exist_ok=True)
    asked = len(run.data.eval[: recipe.evaluation.questions]) * recipe.evaluation.samples
    with trainer.progress.phase("evaluating", asked * recipe.evaluation.sampling.max_new_tokens):
        result = evaluate(
            run.data.eval,
            trainer.sampler,
            trainer.policy.chat,
            run.data.verifier,
            recipe.evaluation,
            seed=recipe.data.seed,
            generations_path=folder / "generations.jsonl",
            label=f"{recipe.name} step {run.state.step}",
            on_tokens=trainer.progress.advance,
        )
    write_json(folder / "result.json", result.to_json())
    run.evaluations[run.state.step] = result
    trainer.progress.message(f"step {run.state.step}: {result}")
    return result


def finish(run: Run) -> RunResult:
    """Evaluate and save the final weights, and mark the run as finished."""
    recipe, state = run.recipe, run.state
    save_checkpoint(state, run.folder.checkpoints, recipe.train.keep_checkpoints)
    evaluate_now(run)
    if recipe.output.save_model:
        save_pretrained(run.trainer.policy, run.folder.final, model_card(recipe, state.step, run.evaluations))
    summary = {
        "step": state.step,
        "skipped_updates": state.skipped_steps,
        "evaluations": {str(step): result.to_json() for step, result in run.evaluations.items()},
    }
    write_json(run.folder.result, summary)
    return RunResult(run.folder.path, state.step, True, run.evaluations)


def _check_folder(folder: RunFolder, recipe: Recipe, resume: bool) -> None:
    if not folder.recipe.exists():
        if resume:
            raise TrainingError(f"there is no run to resume in {str(folder.path)!r}; run without --resume, or set output.folder to the run's folder")
        return
    if not resume:
        raise TrainingError(f"{str(folder.path)!r} already holds a run; add --resume to go on with it, or set output.folder to another place")
    changed = [name for name in same_run(parse_recipe(read_yaml(folder.recipe)), recipe) if name not in MAY_CHANGE]
    if changed:
        raise TrainingError(
            f"the run in {str(folder.path)!r} was started with another {', '.join(changed[:5])}; resume it with the same settings, or set output.folder to another place"
        )


def _check_questions(method: Method, data: LoadedData) -> None:
    if not data.train:
        raise DataError("there are no training questions; set data.train, or check data.train_limit")
    require(data.train, method.requires, f"method {method.name!r}")


def _longest_prompt(policy: Policy, recipe: Recipe) -> int:
    """Tokens that the model's context leaves for a prompt beside a full response."""
    context = getattr(policy.model.config.get_text_config(), "max_position_embeddings", None) or 1_000_000
    room = int(context) - recipe.rollouts.sampling.max_new_tokens
    if room < 1:
        raise DataError(
            f"rollouts.sampling.max_new_tokens is {recipe.rollouts.sampling.max_new_tokens}, but the model's context has {context} tokens; lower it"
        )
    return room


def _check_prompts(policy: Policy, recipe: Recipe, questions: Sequence[Question], room: int) -> None:
    """Render every training prompt once, so that one that is too long is found before hours of training."""
    limit = min(room, recipe.rollouts.max_prompt_tokens or room)
    for question in questions:
        length = len(policy.chat.render(question.messages, thinking=recipe.rollouts.thinking))
        if length > limit:
            raise DataError(
                f"the prompt of question {question.id!r} has {length} tokens, but only {limit} fit beside a response of "
                f"rollouts.sampling.max_new_tokens={recipe.rollouts.sampling.max_new_tokens} (rollouts.max_prompt_tokens, the model's context); "
                "shorten or drop the question, or change those settings"
            )


def _prior_pass_rates(trainer: Trainer, folder: RunFolder) -> Mapping[str, float] | None:
    """PACED: pass rates of the untrained model on the whole training set, measured once and kept in the run folder."""
    weighting = trainer.recipe.method.weighting
    if not getattr(weighting, "offline", False):
        return None
    if folder.prior.exists():
        rates: dict[str, float] = json.loads(folder.prior.read_text(encoding="utf-8"))
        return rates
    recipe, progress = trainer.recipe, trainer.progress
    count = len(trainer.questions) * weighting.rollouts
    with progress.phase("measuring pass rates before training", count * recipe.rollouts.sampling.max_new_tokens):
        rollouts = collect(
            trainer.questions,
            trainer.sampler,
            trainer.policy.chat,
            group_size=weighting.rollouts,
            sampling=recipe.rollouts.sampling,
            seed=recipe.train.seed,
            stream=("prior",),
            thinking=recipe.rollouts.thinking,
            on_tokens=progress.advance,
        )
    rates = {group.question.id: group.pass_rate for group in verify_groups(rollouts, trainer.verifier)}
    write_json(folder.prior, rates)
    return rates


def _restore(run: Run) -> None:
    saved = checkpoints(run.folder.checkpoints)
    if saved:
        load_checkpoint(run.state, saved[-1])
    run.folder.truncate_after(run.state.step)
    for file in sorted(run.folder.path.glob("evaluations/step-*/result.json")):
        step = int(file.parent.name.removeprefix("step-"))
        if step <= run.state.step:
            run.evaluations[step] = EvaluationResult.from_json(json.loads(file.read_text(encoding="utf-8")))
    run.trainer.progress.message(f"resuming after step {run.state.step}")


def _save_rollouts(run: Run, plan: Plan) -> None:
    kept = {"none": 0, "sampled": 2, "all": len(plan.groups)}[run.recipe.output.save_rollouts]
    shown = {(row.rollout.question.id, row.rollout.sibling): row.prompt.shown for row in plan.rows if row.prompt}
    run.folder.append_rollouts(run.state.step, plan.groups[:kept], shown)


@contextmanager
def _stop_signals() -> Iterator[_StopFlag]:
    """Turn the first SIGINT or SIGTERM into a request to stop after the current step; a second one interrupts at once."""
    flag = _StopFlag()
    previous = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, flag.handle)
    except ValueError:  # not in the main thread: whoever embeds us handles signals
        pass
    try:
        yield flag
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class _StopFlag:
    def __init__(self) -> None:
        self._requested = False

    def __call__(self) -> bool:
        return self._requested

    def handle(self, number: int, frame: FrameType | None) -> None:
        if self._requested:
            raise KeyboardInterrupt
        self._requested = True
