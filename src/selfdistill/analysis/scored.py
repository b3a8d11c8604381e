"""Score a batch's rows on both sides once, and keep what later looks need: hidden states, heads, records.

In: rows of a plan. Out: a :class:`Scored` per objective. No gradient, and nothing of the model changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from selfdistill.analysis.subject import Subject
from selfdistill.models.head import Head, projection_of
from selfdistill.objectives.compare import compare
from selfdistill.objectives.linear_reference import linear_token_divergence, linear_token_logprobs
from selfdistill.objectives.parts import Distillation
from selfdistill.objectives.record import TokenRecord
from selfdistill.scoring.forward import score_rows
from selfdistill.teachers.self_teacher import TeacherScores
from selfdistill.training.plan import Row
from selfdistill.training.update import entropy_importance, student_pair, teacher_pair


@dataclass(frozen=True, slots=True)
class Scored:
    """Rows of one kind, their N response tokens one after the other."""

    rows: tuple[Row, ...]
    ids: Int[Tensor, " N"]
    student: Float[Tensor, "N H"]
    student_head: Head
    temperature: float
    """At which the student's distributions are looked at: T_d with a teacher, else the sampling temperature."""
    record: TokenRecord
    selected: Bool[Tensor, " N"]
    importance: Float[Tensor, " N"]
    """SRPO's weight of each token; 1 elsewhere."""
    teacher: Float[Tensor, "N HT"] | None = None
    teacher_head: Head | None = None

    @property
    def lengths(self) -> list[int]:
        """Response tokens per row."""
        return [len(row.rollout.response_ids) for row in self.rows]


@torch.no_grad()
def score(subject: Subject, rows: Sequence[Row]) -> list[Scored]:
    """Score rows as training would: those that are distilled against the teacher, the others by themselves."""
    usable = [row for row in rows if row.rollout.response_ids and row.objective is not None]
    distilled = [row for row in usable if row.objective == "distillation"]
    others = [row for row in usable if row.objective != "distillation"]
    found = [_distilled(subject, distilled)] if distilled else []
    return [*found, _alone(subject, others)] if others else found


@torch.no_grad()
def scored_again(subject: Subject, before: Scored) -> TokenRecord:
    """Return the record of the same tokens against the same teacher, at the student's weights as they are now."""
    student, head = _student(subject, before.rows)
    temperature = subject.recipe.rollouts.sampling.temperature
    part = subject.recipe.method.distillation
    if before.teacher is None or before.teacher_head is None or part is None:
        return linear_token_logprobs(student, head, before.ids, before.temperature)
    return linear_token_divergence(
        student,
        before.teacher,
        head,
        part.settings(temperature),
        response_ids=before.ids,
        teacher_weight=before.teacher_head,
        selected=before.selected,
        strength=part.interpolation_strength,
        logprob_temperature=temperature,
    )


def _distilled(subject: Subject, rows: Sequence[Row]) -> Scored:
    part, teacher = subject.recipe.method.distillation, subject.state.teacher
    assert isinstance(part, Distillation) and teacher is not None, "a row is distilled by a method without a teacher"
    scoring, policy = subject.scoring(), subject.trainer.policy
    budget = subject.recipe.train.micro_batch_tokens
    scores: TeacherScores = teacher.score([teacher_pair(row) for row in rows], scoring.forwarding(policy, budget))
    student, head = _student(subject, rows)
    ids, temperature = _ids(rows, student), scoring.temperature
    lengths = [len(row.rollout.response_ids) for row in rows]
    states = torch.cat(scores.states)
    compared = compare(part, student, states, head, scores.projection, ids, lengths, temperature)
    weights = entropy_importance(subject.recipe.method, scores, scoring)
    return Scored(
        tuple(rows),
        ids,
        student,
        head,
        part.settings(temperature).temperature,
        compared.record,
        compared.selected,
        torch.ones_like(compared.record.student_entropy) if weights is None else torch.cat(weights),
        states,
        scores.projection,
    )


def _alone(subject: Subject, rows: Sequence[Row]) -> Scored:
    student, head = _student(subject, rows)
    ids = _ids(rows, student)
    temperature = subject.recipe.rollouts.sampling.temperature if subject.samples else 1.0
    record = linear_token_logprobs(student, head, ids, temperature)
    nothing = torch.zeros_like(record.student_entropy)
    return Scored(tuple(rows), ids, student, head, temperature, record, nothing.bool(), nothing + 1)


def _student(subject: Subject, rows: Sequence[Row]) -> tuple[Float[Tensor, "N H"], Head]:
    policy, budget = subject.trainer.policy, subject.recipe.train.micro_batch_tokens
    forwarding = subject.scoring().forwarding(policy, budget)
    states = score_rows(policy.model, [student_pair(row) for row in rows], forwarding)
    return torch.cat(states), projection_of(policy.model)


def _ids(rows: Sequence[Row], like: Tensor) -> Int[Tensor, " N"]:
    return torch.tensor([i for row in rows for i in row.rollout.response_ids], device=like.device)
