"""Before anything is trained: does the self-teacher know more, is there something to learn from, and what will it cost?

In: a subject (a recipe's model before training, or a run at a checkpoint). Out: a :class:`Probe`. Nothing is changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from selfdistill.analysis.scored import score
from selfdistill.analysis.subject import Subject
from selfdistill.evaluation.bootstrap import Interval
from selfdistill.planning.plan import Plan
from selfdistill.sections import Section
from selfdistill.training.metrics import TokenMeans
from selfdistill.training.teacher_accuracy import (
    TeacherAccuracy,
    answers_per_question,
    held_out_slice,
    measure_teacher,
)

CUT = 0.2
"""Share of answers that the budget may cut before accuracies say little."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What is known before training."""

    recipe: str
    weights: str
    where: str
    """Whose questions were answered: ``held-out`` or ``training``."""
    accuracy: TeacherAccuracy
    batch_questions: int
    """Training questions whose rollouts were scored."""
    batch_rollouts: int
    informative: float | None
    """Share of those questions with right and wrong rollouts; None: one rollout per question says nothing."""
    forwarded: float
    """Share of their rollouts that would be trained on."""
    tokens: dict[str, float]
    """Means over the tokens that the teacher scored: divergence and entropies in nats, shares."""
    response_length: float
    """Tokens, mean."""

    def to_json(self) -> dict[str, Any]:
        """Return it as values that :func:`json.dumps` takes."""
        return {
            "recipe": self.recipe,
            "weights": self.weights,
            "where": self.where,
            **self.accuracy.to_json(),
            "batch": {
                "questions": self.batch_questions,
                "rollouts": self.batch_rollouts,
                "informative_share": self.informative,
                "forwarded_share": self.forwarded,
                "response_length": self.response_length,
                **self.tokens,
            },
            "verdict": verdict(self.accuracy),
        }


def probe(subject: Subject, questions: int = 32, samples: int | None = None) -> Probe:
    """Return what is known before training.

    Args:
        subject: the model with its method.
        questions: to ask; so many training questions are scored as well, at most a batch.
        samples: answers per question; by default as many as the method trains on, and at least 4.

    Raises:
        RecipeError: the method has no self-teacher.
    """
    method, trainer, teacher = subject.recipe.method, subject.trainer, subject.state.teacher
    asked, where = held_out_slice(method, subject.data, questions)
    assert teacher is not None
    wanted = samples or answers_per_question(method)
    expected = 2 * len(asked) * wanted * subject.recipe.rollouts.sampling.max_new_tokens
    with trainer.progress.phase("answering, student and self-teacher", expected):
        accuracy = measure_teacher(
            trainer, teacher, asked, wanted, step=subject.state.step, on_tokens=trainer.progress.advance
        )
    batch = trainer.batch(subject.state.step)[:questions]
    groups = subject.draw(batch, method.source.group_size)
    plan = subject.plan(groups)
    means = TokenMeans()
    for scored in score(subject, plan.rows):
        for name in ("divergence", "student_entropy", "teacher_entropy", "agreement", "clip_fraction", "captured_mass"):
            if scored.teacher is not None:
                means.add(name, getattr(scored.record, name))
    rates = [group.pass_rate for group in groups]
    return Probe(
        recipe=subject.recipe.name,
        weights=subject.weights,
        where=where,
        accuracy=accuracy,
        batch_questions=len(groups),
        batch_rollouts=len(plan.rows),
        informative=sum(0 < rate < 1 for rate in rates) / len(rates) if method.source.group_size > 1 else None,
        forwarded=sum(row.has_signal for row in plan.rows) / len(plan.rows),
        tokens=means.means(),
        response_length=sum(len(row.rollout.response_ids) for row in plan.rows) / len(plan.rows),
    )


def verdict(accuracy: TeacherAccuracy) -> str:
    """Return what the gap allows to say: the condition for any gain is that the self-teacher knows more."""
    if not accuracy.covered:
        return (
            "No question got a privileged context: no answer was right, and there is no feedback. Nothing can be "
            "learned from such rollouts; choose easier questions, more rollouts per question, or a context with a "
            "solution."
        )
    points = f"{100 * accuracy.gap.mean:+.1f} points [{100 * accuracy.gap.low:+.1f}, {100 * accuracy.gap.high:+.1f}]"
    if accuracy.gap.low > 0:
        return f"The self-teacher knows more than the student: {points}. There is something to learn."
    if accuracy.gap.high <= 0:
        return (
            f"The self-teacher is no better than the student: {points}. Nothing can be expected from training; show it "
            "more of the solution, word its template otherwise, or take a model that can use what it is shown."
        )
    return f"It cannot be told whether the self-teacher knows more: {points}. Ask more questions (--questions)."


def sections(probe: Probe, plan: Plan | None) -> Iterator[Section]:
    """Yield what is printed; ``plan`` is what a step costs, where it was measured."""
    accuracy = probe.accuracy
    over = f"{accuracy.covered} {probe.where} questions with a context, of {accuracy.questions}; {probe.weights}"
    yield Section(
        "does the self-teacher know more?",
        (
            ("student", _percent(accuracy.student), over),
            ("self-teacher", _percent(accuracy.teacher), "one answer to each privileged prompt"),
            ("gap", _points(accuracy.gap), "self-teacher minus student, paired by question"),
            ("student, all questions", _percent(accuracy.student_on_all), f"{accuracy.samples} answers each"),
            (
                "informative",
                f"{accuracy.informative:.1%}",
                "of all questions have right and wrong answers",
            ),
            (
                "cut by the budget",
                f"{accuracy.student_truncated:.1%}",
                f"of the student's answers; {accuracy.teacher_truncated:.1%} of the self-teacher's",
            ),
            ("leaks", f"{accuracy.teacher_leak_rate:.1%}", "of the self-teacher's answers mention what only it sees"),
        ),
    )
    rows = [] if probe.informative is None else [("informative", f"{probe.informative:.1%}", _informative(probe))]
    rows += [
        ("trained on", f"{probe.forwarded:.1%}", f"of {probe.batch_rollouts} rollouts have signal"),
        ("length", f"{probe.response_length:.0f}", "tokens per rollout"),
    ]
    words = {
        "divergence": "nats per token, as the method minimises it",
        "student_entropy": "nats",
        "teacher_entropy": "nats",
        "agreement": "of the tokens have the same likeliest token on both sides",
        "clip_fraction": "of the summands are cut by a clip",
        "captured_mass": "of the probability is on the support",
    }
    rows += [
        (name.replace("_", " "), f"{probe.tokens[name]:.4g}", word)
        for name, word in words.items()
        if name in probe.tokens
    ]
    yield Section("what is there to learn from?", tuple(rows))
    if plan is not None and plan.step is not None:
        steps, seconds = plan.recipe.train.steps, plan.step.total
        yield Section(
            "what will it cost?",
            (
                ("a step", f"{seconds:.2f} s", "measured here; `selfdistill doctor` has the parts"),
                (f"{steps} steps", f"{steps * seconds / 60:,.1f} min", "without evaluations"),
                ("tokens", f"{plan.tokens.sampled * steps:,}", "sampled at most"),
            ),
        )


def remarks(accuracy: TeacherAccuracy) -> Iterator[str]:
    """Yield what makes the figures doubtful."""
    if max(accuracy.student_truncated, accuracy.teacher_truncated) > CUT:
        yield (
            "Many answers were cut by the budget, so that accuracies are too low: raise "
            "rollouts.sampling.max_new_tokens for the probe."
        )


def _informative(probe: Probe) -> str:
    return f"of {probe.batch_questions} training questions have right and wrong rollouts"


def _percent(interval: Interval) -> str:
    return f"{100 * interval.mean:.1f}% [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def _points(interval: Interval) -> str:
    return f"{100 * interval.mean:+.1f} [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"
