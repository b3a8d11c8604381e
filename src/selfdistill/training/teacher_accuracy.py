"""Does the self-teacher know more than the student? Let it answer from its privileged prompts, and verify that.

In: questions, a trainer, and the teacher. For each question the student answers, each answer gets its privileged prompt
as in training, and the teacher's weights answer that prompt once. Out: both accuracies on the same questions, with
intervals. A teacher that is no better has nothing to teach: no method here can gain from it (METHODS 3 and 5).

A question for which no answer gets a context (no sibling succeeded, no feedback) is counted, and left out of the
comparison. On the others the student's own accuracy is higher too, which is why both sides are about the same ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from selfdistill.contexts.leaks import mentions_reference
from selfdistill.errors import RecipeError, TrainingError
from selfdistill.evaluation.bootstrap import Interval, mean_interval, paired_difference
from selfdistill.methods.method import Method
from selfdistill.parallel.sharding import drawing
from selfdistill.questions import LoadedData, Question
from selfdistill.randomness import derive
from selfdistill.rollouts.collect import sibling_seed, stream_siblings
from selfdistill.rollouts.rollout import Rollout
from selfdistill.rollouts.sampler import Sampler, draws_from_policy
from selfdistill.rollouts.transformers_sampler import TransformersSampler
from selfdistill.teachers import SelfTeacher
from selfdistill.training.loop import Trainer
from selfdistill.verifiers.verdict import Group, Verdict

Evidence = tuple[float, float, float, float]
"""Student, teacher, and the ends of the gap's interval, as shares."""


@dataclass(frozen=True, slots=True)
class TeacherAccuracy:
    """Student and self-teacher on the same questions; shares in [0, 1], intervals over questions."""

    questions: int
    """Asked."""
    covered: int
    """Of these, those with a privileged prompt; student, teacher and gap are about them."""
    samples: int
    """Answers of the student per question, and of the teacher at most."""
    student: Interval
    teacher: Interval
    gap: Interval
    """Teacher minus student, paired by question."""
    student_on_all: Interval
    """On all questions that were asked."""
    informative: float
    """Share of the questions that the student answered neither always right nor always wrong."""
    student_truncated: float
    teacher_truncated: float
    """Shares of the answers that the budget cut: what they would have come to is not known."""
    teacher_leak_rate: float
    """Share of the teacher's answers that mention what only it can see."""

    def to_json(self) -> dict[str, Any]:
        """Return it as values that :func:`json.dumps` takes."""
        return asdict(self)

    @property
    def evidence(self) -> Evidence:
        """What a warning about the teacher looks at."""
        return self.student.mean, self.teacher.mean, self.gap.low, self.gap.high

    def metrics(self) -> dict[str, float]:
        """Return what trackers show."""
        means = {"teacher_accuracy": self.teacher.mean, "student_accuracy": self.student.mean}
        return {f"evaluation/{name}": value for name, value in means.items()}

    def __str__(self) -> str:
        return (
            f"self-teacher {100 * self.teacher.mean:.1f}%, student {100 * self.student.mean:.1f}% on {self.covered} "
            f"questions: gap {100 * self.gap.mean:+.1f} points "
            f"[{100 * self.gap.low:+.1f}, {100 * self.gap.high:+.1f}]"
        )


@dataclass(frozen=True, slots=True)
class Answered:
    """What one question came to."""

    student: tuple[bool, ...]
    teacher: tuple[bool, ...]
    """Of the answers that had a privileged prompt."""
    cut: tuple[int, int]
    """Answers that the budget ended: the student's, the teacher's."""
    leaks: int
    """Answers of the teacher that mention the reference."""


def held_out_slice(method: Method, data: LoadedData, count: int) -> tuple[Sequence[Question], str]:
    """Return the questions to ask: held-out ones if they have what the context needs, else of the training data.

    Raises:
        RecipeError: the method has no teacher.
    """
    if method.distillation is None:
        raise RecipeError(
            f"method {method.name!r} has no self-teacher, so there is nothing to compare; choose one that distils"
        )
    lacking = [name for name in method.requires if any(getattr(one, name) is None for one in data.eval)]
    if data.eval and not lacking:
        return data.eval[:count], "held-out"
    return data.train[:count], "training"


def answers_per_question(method: Method) -> int:
    """Return as many as the method trains on, which its contexts are made of, and enough to tell rates apart."""
    return max(4, method.source.group_size)


def read_evidence(file: Path) -> Evidence | None:
    """Return what a run has found out at an evaluation; None: nothing, or nothing with a privileged context.

    Raises:
        TrainingError: the file is not what a run writes.
    """
    if not file.exists():
        return None
    try:
        row = json.loads(file.read_text(encoding="utf-8"))
        known = (row["student"]["mean"], row["teacher"]["mean"], row["gap"]["low"], row["gap"]["high"])
        return known if row["covered"] else None
    except (ValueError, KeyError, TypeError):
        raise TrainingError(f"{str(file)!r} is damaged; remove it, then resume") from None


def measure_teacher(
    trainer: Trainer,
    teacher: SelfTeacher,
    questions: Sequence[Question],
    samples: int,
    *,
    step: int = 0,
    on_tokens: Callable[[int], None] = lambda tokens: None,
) -> TeacherAccuracy:
    """Return how well student and teacher answer.

    Both draw as rollouts are drawn in training, with the same budget. The engine that draws for the student draws for
    the teacher where it can have the teacher's weights, which is in this process.

    Args:
        trainer: of the run; with several processes all of them call this, and each does its share.
        teacher: as it is now.
        questions: to ask.
        samples: answers of the student per question.
        step: steps done; other answers at another step.
        on_tokens: told of the tokens that are drawn; may raise, to stop.
    """
    own = questions[trainer.world.rank :: trainer.world.size]
    sampler, model = _in_process(trainer), trainer.policy.model

    def answered() -> list[Answered]:
        with drawing(model):
            groups = _ask(trainer, sampler, own, samples, step, on_tokens)
        with teacher.view(), drawing(model):
            return _answer(trainer, sampler, groups, step, on_tokens)

    found = [one for part in trainer.world.each(answered) for one in part]
    return summarise(found, samples, trainer.recipe.evaluation.level)


def summarise(found: Sequence[Answered], samples: int, level: float) -> TeacherAccuracy:
    """Return the accuracies of what the questions came to."""
    covered = [one for one in found if one.teacher]
    student = [_mean(one.student) for one in covered]
    teacher = [_mean(one.teacher) for one in covered]
    unknown = Interval(0.0, 0.0, 0.0)
    answers = sum(len(one.student) for one in found), sum(len(one.teacher) for one in found)
    return TeacherAccuracy(
        questions=len(found),
        covered=len(covered),
        samples=samples,
        student=mean_interval(student, level=level) if covered else unknown,
        teacher=mean_interval(teacher, level=level) if covered else unknown,
        gap=paired_difference(teacher, student, level=level) if covered else unknown,
        student_on_all=mean_interval([_mean(one.student) for one in found], level=level),
        informative=_mean([0 < _mean(one.student) < 1 for one in found]),
        student_truncated=sum(one.cut[0] for one in found) / max(1, answers[0]),
        teacher_truncated=sum(one.cut[1] for one in found) / max(1, answers[1]),
        teacher_leak_rate=sum(one.leaks for one in found) / max(1, answers[1]),
    )


def _in_process(trainer: Trainer) -> Sampler:
    """Return a sampler that draws from the policy's own parameters, whatever they are at the time."""
    if draws_from_policy(trainer.sampler):
        return trainer.sampler
    policy, rollouts = trainer.policy, trainer.recipe.rollouts
    return TransformersSampler(
        policy.model, policy.chat, batch_tokens=rollouts.batch_tokens, max_rows=rollouts.max_rows
    )


def _ask(
    trainer: Trainer,
    sampler: Sampler,
    questions: Sequence[Question],
    samples: int,
    step: int,
    on_tokens: Callable[[int], None],
) -> list[Group]:
    """Return the student's verified answers."""
    recipe = trainer.recipe
    drawn: dict[tuple[int, int], Rollout] = dict(
        stream_siblings(
            [(question, range(samples)) for question in questions],
            sampler,
            trainer.policy.chat,
            sampling=recipe.rollouts.sampling,
            seed=recipe.train.seed,
            stream=("teacher accuracy", step),
            thinking=recipe.rollouts.thinking,
            logprobs=False,
            on_tokens=on_tokens,
        )
    )
    rollouts = [tuple(drawn[index, sibling] for sibling in range(samples)) for index in range(len(questions))]
    asked = [(question, one.text) for question, own in zip(questions, rollouts, strict=True) for one in own]
    verdicts = iter(_verdicts(trainer, asked))
    return [
        Group(question, own, tuple(next(verdicts) for _ in own))
        for question, own in zip(questions, rollouts, strict=True)
    ]


def _answer(
    trainer: Trainer, sampler: Sampler, groups: Sequence[Group], step: int, on_tokens: Callable[[int], None]
) -> list[Answered]:
    """Have the teacher, whose weights are in place, answer each privileged prompt of the groups once."""
    recipe, chat = trainer.recipe, trainer.policy.chat
    seed = derive(recipe.train.seed, "teacher accuracy", step)
    shown = [recipe.method.context.contextualise(group, trainer.frame, seed) for group in groups]
    given = [
        (index, place, prompt.token_ids)
        for index, own in enumerate(shown)
        for place, prompt in enumerate(own)
        if prompt is not None
    ]
    drawn = sampler.sample(
        [ids for _, _, ids in given],
        [[sibling_seed(seed, ("teacher",), groups[index].question, place)] for index, place, _ in given],
        recipe.rollouts.sampling,
        logprobs=False,
        on_tokens=on_tokens,
    )
    completions = [own[0] for own in drawn]
    texts = [chat.decode(one.ids) for one in completions]
    verdicts = _verdicts(
        trainer, [(groups[index].question, text) for (index, _, _), text in zip(given, texts, strict=True)]
    )
    answers: list[list[int]] = [[] for _ in groups]
    for number, (index, _, _) in enumerate(given):
        answers[index].append(number)
    return [
        Answered(
            student=tuple(verdict.success for verdict in group.verdicts),
            teacher=tuple(verdicts[number].success for number in own),
            cut=(
                sum(one.finish_reason == "length" for one in group.rollouts),
                sum(completions[number].finish_reason == "length" for number in own),
            ),
            leaks=sum(mentions_reference(texts[number]) for number in own),
        )
        for group, own in zip(groups, answers, strict=True)
    ]


def _verdicts(trainer: Trainer, asked: Sequence[tuple[Question, str]]) -> list[Verdict]:
    if not asked:
        return []
    return trainer.verifier.verify([question for question, _ in asked], [text for _, text in asked])


def _mean(values: Sequence[bool]) -> float:
    return sum(values) / len(values) if values else 0.0
