"""What is looked at: a model with its method, data and optimizer, as it was at some step, with nothing written.

In: a recipe (then it is the model before training) or a run folder and a checkpoint. Out: a :class:`Subject`. The run
itself may go on meanwhile: its folder is only read.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from selfdistill.checkpoints import CheckpointFolder, TrainState
from selfdistill.checkpoints.reading import load_state
from selfdistill.contexts.success_buffer import start_buffer
from selfdistill.errors import DataError, TrainingError
from selfdistill.methods.sources import OwnRollouts
from selfdistill.models.loading import load_policy
from selfdistill.questions import LoadedData, Question, load_data
from selfdistill.rollouts.collect import reference_rollouts, stream_siblings
from selfdistill.rollouts.journal import Journals
from selfdistill.rollouts.rollout import Rollout
from selfdistill.rollouts.transformers_sampler import TransformersSampler
from selfdistill.teachers import start_teacher
from selfdistill.training.exporting import chosen_step
from selfdistill.training.loop import Trainer
from selfdistill.training.optimizer import make_optimizer
from selfdistill.training.plan import Plan
from selfdistill.training.preflight import check_model, check_questions
from selfdistill.training.progress import NullProgress, Progress
from selfdistill.training.recipe import Recipe, load_recipe
from selfdistill.training.run_folder import RunFolder
from selfdistill.training.update import Scoring
from selfdistill.verifiers.verdict import Group, Verdict

INITIAL = "initial"
"""The checkpoint that every run has: its model before training."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A model with its method, ready to be looked at."""

    trainer: Trainer
    state: TrainState
    data: LoadedData
    folder: RunFolder | None
    """None: there is no run yet."""

    @property
    def recipe(self) -> Recipe:
        """What it is trained by."""
        return self.trainer.recipe

    @property
    def weights(self) -> str:
        """Which weights these are, for people."""
        return f"checkpoint after step {self.state.step}" if self.state.step else "before training"

    def question(self, named: str | None) -> Question:
        """Return a question by its id or its number among the training questions; by default the next in training.

        Raises:
            DataError: there is no such question.
        """
        if named is None:
            return self.trainer.batch(self.state.step)[0]
        for question in (*self.data.train, *self.data.eval):
            if question.id == named:
                return question
        if named.isdigit() and int(named) < len(self.data.train):
            return self.data.train[int(named)]
        raise DataError(
            f"--question: there is no question {named!r}; give an id (for example {self.data.train[0].id!r}) or a "
            f"number below {len(self.data.train)}"
        )

    def draw(self, questions: Sequence[Question], siblings: int, stream: Sequence[object] | None = None) -> list[Group]:
        """Draw and verify rollouts of some questions.

        With the default ``stream`` they are those that training would draw at this step.
        """
        trainer, recipe = self.trainer, self.recipe
        chat, thinking = trainer.policy.chat, recipe.rollouts.thinking
        if not self.samples:
            return [
                Group(one.question, (one,), (Verdict(1.0, True),))
                for one in reference_rollouts(questions, chat, thinking=thinking)
            ]
        drawn: dict[tuple[int, int], Rollout] = {}
        expected = len(questions) * siblings * recipe.rollouts.sampling.max_new_tokens
        with trainer.progress.phase("sampling", expected):
            for place, rollout in stream_siblings(
                [(question, range(siblings)) for question in questions],
                trainer.sampler,
                chat,
                sampling=recipe.rollouts.sampling,
                seed=recipe.train.seed,
                stream=("train", self.state.step) if stream is None else stream,
                thinking=thinking,
                max_prompt_tokens=recipe.rollouts.max_prompt_tokens,
                on_tokens=trainer.progress.advance,
            ):
                drawn[place] = rollout
        return [
            self.verified(question, [drawn[index, sibling] for sibling in range(siblings)])
            for index, question in enumerate(questions)
        ]

    def verified(self, question: Question, rollouts: Sequence[Rollout]) -> Group:
        """Return rollouts of one question with their verdicts."""
        verdicts = self.trainer.verifier.verify([question] * len(rollouts), [one.text for one in rollouts])
        return Group(question, tuple(rollouts), tuple(verdicts))

    @property
    def samples(self) -> bool:
        """Whether the method draws rollouts at all (not SFT)."""
        return isinstance(self.recipe.method.source, OwnRollouts)

    def plan(self, groups: Sequence[Group]) -> Plan:
        """Contextualise and weigh groups as one batch.

        PACED's weights want pass rates from before training: where the run has none, those of the groups stand in.
        """
        rates = {group.question.id: group.pass_rate for group in groups}
        trainer = replace(self.trainer, prior=rates | self.state.pass_rates)
        return trainer.plan(groups, self.state.step, self.state.successes)

    def scoring(self) -> Scoring:
        """Return how tokens are scored."""
        recipe = self.recipe
        return Scoring(recipe.rollouts.sampling.temperature, recipe.train.micro_batch_tokens, recipe.scoring)


@contextmanager
def open_subject(
    target: str, overrides: Sequence[str] = (), checkpoint: str = "last", progress: Progress | None = None
) -> Iterator[Subject]:
    """Load what ``target`` names: a recipe file, or a run folder at a checkpoint.

    Responses are drawn in this process, whatever engine the recipe names.

    Args:
        target: a YAML file, or the folder of a run.
        overrides: settings, for example ``model.device=cpu``.
        checkpoint: of a run: ``last``, ``best``, ``initial`` or a step.
        progress: where to show what goes on.

    Raises:
        SelfDistillError: recipe, data, model or checkpoint are missing or do not go together.
    """
    path = Path(target)
    folder = RunFolder(path) if path.is_dir() else None
    if folder is not None and not folder.recipe.exists():
        raise TrainingError(f"{target!r} is no run folder: it has no recipe.yaml; give a run's folder, or a recipe")
    if folder is None and checkpoint not in ("last", INITIAL):
        raise TrainingError(f"--checkpoint is {checkpoint!r}, but {target!r} is no run; give the folder of a run")
    recipe = load_recipe(path if folder is None else folder.recipe, overrides)
    data = load_data(recipe.data)
    check_questions(recipe.method, data)
    policy = load_policy(recipe.model, recipe.train.seed)
    rollouts = recipe.rollouts
    with ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="selfdistill-"))
        trainer = Trainer(
            recipe,
            policy,
            TransformersSampler(
                policy.model, policy.chat, batch_tokens=rollouts.batch_tokens, max_rows=rollouts.max_rows
            ),
            data.verifier,
            data.train,
            check_model(policy, recipe, data),
            progress or NullProgress(),
            journals=Journals(Path(scratch)),
        )
        state = TrainState(
            policy.model,
            make_optimizer(policy.model, recipe.train),
            start_teacher(recipe.method.teacher, policy.model),
            successes=start_buffer(recipe.method.context),
        )
        if folder is not None and checkpoint != INITIAL:
            checkpoints = CheckpointFolder(folder.checkpoints)
            load_state(state, checkpoints.of(chosen_step(checkpoints, checkpoint)))
        policy.model.eval()
        yield Subject(trainer, state, data, folder)
