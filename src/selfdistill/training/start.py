"""Before the first step: load, check, divide and restore; from a recipe to a :class:`Run` that is ready to go on.

Cheapest mistakes first, and what fails on one process fails on all.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from selfdistill.checkpoints import CheckpointFolder, Saver, TrainState
from selfdistill.contexts.rendering import PromptFrame
from selfdistill.contexts.success_buffer import start_buffer
from selfdistill.errors import DataError, RolloutError, TrainingError
from selfdistill.evaluation.result import EvaluationResult
from selfdistill.models.loading import Policy, load_policy
from selfdistill.parallel.sharding import shard
from selfdistill.parallel.watchdog import Watchdog
from selfdistill.parallel.world import ALONE, World, local_device
from selfdistill.questions import LoadedData, load_data
from selfdistill.rollouts.journal import Journals
from selfdistill.scoring import check_packing
from selfdistill.teachers import start_teacher
from selfdistill.training.alarms import Alarm, Alarms
from selfdistill.training.budget import Budget
from selfdistill.training.engines import make_engine
from selfdistill.training.interruption import StopFlag
from selfdistill.training.lock import RunLock
from selfdistill.training.loop import Trainer
from selfdistill.training.optimizer import make_optimizer
from selfdistill.training.preflight import check_model, check_questions, data_digest, ignored_settings
from selfdistill.training.prior import Prior, measure
from selfdistill.training.progress import Progress
from selfdistill.training.recipe import Recipe, describe_changes, parse_recipe, resume_conflicts
from selfdistill.training.recipe_file import read_yaml
from selfdistill.training.run_folder import TEACHER, RunFolder
from selfdistill.training.teacher_accuracy import read_evidence
from selfdistill.training.trackers import Trackers, check_trackers, start_trackers

LOCK_SECONDS = 60.0
"""How long a resumed run waits for the one before to let go of the folder: it may still be on its way out."""


@dataclass(slots=True)
class Run:
    """A run under way. Leaving its ``with`` block gives up what is being sampled ahead and closes the engine."""

    folder: RunFolder
    trainer: Trainer
    state: TrainState
    data: LoadedData
    saver: Saver
    alarms: Alarms
    """The warnings; only the main process's observe anything."""
    early: Alarm | None = None
    """The warning that ends the run before its last step."""
    evaluations: dict[int, EvaluationResult] = field(default_factory=dict)
    """By number of steps done."""
    stop: StopFlag = field(default_factory=StopFlag)
    trackers: Trackers = field(default_factory=lambda: Trackers({}, {}, print))
    resources: ExitStack = field(default_factory=ExitStack)
    """What is closed at the end, the last first: trackers, checkpoints, engine, watchdog, lock."""

    @property
    def world(self) -> World:
        """The processes of the run."""
        return self.trainer.world

    @property
    def recipe(self) -> Recipe:
        """What is being run."""
        return self.trainer.recipe

    @property
    def ended(self) -> bool:
        """Whether there is no step left to take: all are done, the tokens are used up, or a warning ends the run."""
        return self.early is not None or self.complete

    @property
    def complete(self) -> bool:
        """Whether all steps are done, or the budget of sampled tokens is reached."""
        return self.recipe.train.ends_after(self.state.step, self.state.rollout_tokens)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.trainer.pending.cancel()
        finally:
            self.resources.__exit__(kind, error, trace)


def start(recipe: Recipe, *, resume: bool, progress: Progress, world: World = ALONE) -> Run:
    """Load and check everything, cheapest mistakes first; restore the newest checkpoint if resuming.

    All processes of the run call this; what fails on one of them fails on all.

    Returns:
        The run, whose engine is open: use it in a ``with`` block.

    Raises:
        SelfDistillError: naming what is wrong and the remedy.
        StopRequested: a signal came in PACED's pass before training; what had finished is kept.
    """
    folder, stop = RunFolder(recipe.folder), StopFlag()
    check_trackers(recipe.output.trackers)
    with ExitStack() as stack:
        world.main(lambda: _lock(folder, resume, stack))
        if world.size > 1:
            stack.enter_context(Watchdog(folder.path, world.rank, world.size))
        ready: list[_Ready] = []
        world.each(lambda: ready.append(_get_ready(recipe, folder, resume, progress, world)))
        data, frame = ready[0].data, ready[0].frame
        _check_same_data(data, world)
        world.main(lambda: folder.create(recipe.to_yaml(), data_digest(data)))
        policy = shard(ready.pop().policy, world, recipe.parallel, local_device(recipe.model.device, world))
        engine = make_engine(policy, recipe, folder.path, world)
        stack.callback(engine.close)
        trainer = Trainer(
            recipe,
            policy,
            engine,
            data.verifier,
            data.train,
            frame,
            progress,
            journals=Journals(folder.path, world.rank),
            world=world,
            budget=Budget(recipe.train.micro_batch_tokens, _memory_file(folder, world), progress.message),
            check=stop.check,
        )
        prior = _measure_prior(trainer, folder, stop)
        if prior is not None:
            trainer = replace(trainer, prior={question.id: prior.pass_rates[question.id] for question in data.train})
        saver = Saver(
            folder.checkpoints,
            world,
            keep=recipe.train.keep_checkpoints,
            asynchronous=recipe.train.save_asynchronously,
            warn=progress.message,
            timeout_seconds=recipe.parallel.timeout_seconds,
        )
        stack.callback(saver.close)
        run = Run(folder, trainer, _first_state(recipe, policy, prior), data, saver, Alarms.of(recipe), stop=stop)
        if resume:
            _restore(run)
        _track(run, stack)
        run.resources = stack.pop_all()
    return run


def _lock(folder: RunFolder, resume: bool, stack: ExitStack) -> None:
    lock = RunLock(folder.path, wait_seconds=LOCK_SECONDS if resume else 0.0)
    lock.acquire()
    stack.callback(lock.release)


def _memory_file(folder: RunFolder, world: World) -> Path:
    """Return where this process remembers what it has found out about its device's memory."""
    return folder.memory if world.is_main else folder.memory.with_suffix(f".rank-{world.rank:05d}.json")


def _track(run: Run, stack: ExitStack) -> None:
    """Start the trackers on the main process, or go on with those of a resumed run."""
    recipe, state = run.recipe, run.state
    if run.world.is_main:
        run.trackers = start_trackers(
            recipe.output.trackers,
            run.folder.path,
            recipe.folder.name,
            recipe.model_dump(mode="json"),
            state.run_ids,
            step=state.step,
            warn=run.trainer.progress.message,
        )
        stack.callback(run.trackers.close)
    state.run_ids = run.world.main(run.trackers.run_ids)


def _first_state(recipe: Recipe, policy: Policy, prior: Prior | None) -> TrainState:
    """Return the state before the first step."""
    return TrainState(
        policy.model,
        make_optimizer(policy.model, recipe.train),
        start_teacher(recipe.method.teacher, policy.model),
        rollout_tokens=prior.tokens if prior else 0,
        successes=start_buffer(recipe.method.context),
        pass_rates=dict(prior.pass_rates) if prior else {},
        prior_tokens=prior.tokens if prior else 0,
    )


@dataclass(frozen=True, slots=True)
class _Ready:
    """What one process has loaded and checked."""

    data: LoadedData
    policy: Policy
    frame: PromptFrame


def _get_ready(recipe: Recipe, folder: RunFolder, resume: bool, progress: Progress, world: World) -> _Ready:
    """Load data and model on this process, and refuse what would otherwise fail hours later."""
    _check_folder(folder, recipe, resume)
    data = load_data(recipe.data)
    for note in data.notes:
        progress.message(note)
    if not data.eval:
        progress.message("there are no held-out questions (data.eval, data.eval_questions): nothing will be evaluated")
    check_questions(recipe.method, data)
    # What is going to be divided is never whole on a device.
    own = recipe.model if world.size == 1 else recipe.model.model_copy(update={"device": "cpu"})
    policy = load_policy(own, recipe.train.seed)
    frame = check_model(policy, recipe, data)
    if recipe.scoring.padding_free and world.size > 1:
        check_packing(policy.model)
    for note in ignored_settings(policy, recipe):
        progress.message(note)
    _check_steps(folder, recipe)
    return _Ready(data, policy, frame)


def _check_same_data(data: LoadedData, world: World) -> None:
    """Refuse processes that have read different questions: their files differ from node to node."""
    digests = world.gather(data_digest(data)["digest"])
    for rank, digest in enumerate(digests):
        if digest != digests[0]:
            raise DataError(
                f"process {rank} has read other questions than process 0; give all nodes the same data files"
            )


def _check_folder(folder: RunFolder, recipe: Recipe, resume: bool) -> None:
    there, elsewhere = repr(str(folder.path)), "set output.folder to another place"
    if not folder.recipe.exists():
        if resume:
            raise TrainingError(
                f"there is no run to resume in {there}; leave out --resume, or set output.folder to the run's folder"
            )
        return
    if not resume:
        raise TrainingError(f"{there} already holds a run; add --resume to go on with it, or {elsewhere}")
    changed = resume_conflicts(parse_recipe(read_yaml(folder.recipe), str(folder.recipe)), recipe)
    if changed:
        raise TrainingError(
            f"the run in {there} was started with another {describe_changes(changed)}; "
            f"resume it with the settings that it had, or {elsewhere}"
        )


def _check_steps(folder: RunFolder, recipe: Recipe) -> None:
    done = max(CheckpointFolder(folder.checkpoints).steps(), default=0)
    if done > recipe.train.steps:
        raise TrainingError(
            f"the run in {str(folder.path)!r} has already done {done} steps; set train.steps to {done} or more"
        )


def _measure_prior(trainer: Trainer, folder: RunFolder, stop: StopFlag) -> Prior | None:
    """PACED's pass before training, which a signal stops as it would stop a run.

    Raises:
        TrainingError: it alone has used up the budget of sampled tokens.
    """
    budget = trainer.recipe.train.rollout_tokens
    try:
        with stop.on_signals():
            prior = measure(trainer, folder.prior, stop.check)
    except RolloutError as error:
        raise RolloutError(
            f"{str(error).rstrip('.')}; the run has stopped before its first step: the finished responses are kept in "
            f"{str(folder.path)!r}, go on with --resume"
        ) from error
    if prior is not None and budget is not None and prior.tokens >= budget:
        raise TrainingError(
            f"train.rollout_tokens is {budget}, but the pass before training alone has sampled {prior.tokens} tokens; "
            "set it to more, and go on with --resume"
        )
    return prior


def _restore(run: Run) -> None:
    run.saver.load_newest(run.state)
    done = run.state.step
    run.world.main(lambda: run.folder.truncate_after(done))
    run.trainer.journals.keep_only_step(done)
    run.evaluations.update(run.folder.read_evaluations())
    run.early = run.world.main(lambda: _catch_up(run))
    for step, result in sorted(run.evaluations.items()):
        run.trainer.progress.evaluation(step, result.avg.mean)
    if run.recipe.train.keep_best and done in run.evaluations and done:  # it may have ended in between
        run.saver.keep_best(run.state, run.evaluations[done].avg.mean)
    steps = run.recipe.train.steps
    run.trainer.progress.message(f"resuming after step {done} of {steps}" if done else "starting from the beginning")


def _catch_up(run: Run) -> Alarm | None:
    """Let the warnings see what was done so far; return the one that has ended the run already, if one has."""
    files = {step: run.folder.evaluation(step) / TEACHER for step in run.evaluations}
    teachers = {step: found for step, file in files.items() if (found := read_evidence(file)) is not None}
    due = run.alarms.catch_up(run.folder.read_metrics(), run.evaluations, teachers)
    known = list(run.folder.read_warnings())
    # A kill may have come between an evaluation and the warning about it.
    rows = [alarm.to_json() for alarm in due if alarm.step == run.state.step]
    if missing := [row for row in rows if row not in known]:
        run.folder.append(run.folder.warnings, missing)
    return run.alarms.stop
