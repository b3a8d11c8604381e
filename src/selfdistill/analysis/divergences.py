"""SC-SDPO's four measures of what the self-teacher says, by correctness and by pass rate (arXiv 2605.27765, appendix).

In: a subject. Out: for each rollout the means over its tokens of KL(S||T), the Jensen-Shannon divergence,
log(p_T/p_S)(y) and 0.5 log(p_S/M)(y) of the sampled token with M = (p_S + p_T) / 2, in nats; and, over tokens, how
each is distributed on right and on wrong rollouts. The divergences are taken on the student's top 100 ids and a tail,
as in the paper; the log-ratios need no support. Any method with a self-teacher can be looked at so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from selfdistill.analysis.scored import Scored, score
from selfdistill.analysis.subject import Subject
from selfdistill.errors import RecipeError
from selfdistill.objectives.divergence import compare_log_probabilities, log_probabilities, working_dtype
from selfdistill.objectives.linear_reference import CHUNK_ELEMENTS
from selfdistill.objectives.settings import DivergenceSettings
from selfdistill.questions import Question

SUPPORT = 100
"""Ids of the student's that are compared, beside a tail."""
MEASURES = ("reverse_kl", "jsd", "log_ratio", "contrast")
"""KL(S||T), JSD, log(p_T/p_S)(y), 0.5 log(p_S/M)(y)."""
BINS = 60
SPREAD = (0.5, 99.5)
"""Percentiles of all tokens between which the bins lie; what is outside is counted in the outermost ones."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One rollout: means over its tokens, nats."""

    question: str
    sibling: int
    pass_rate: float
    success: bool
    tokens: int
    reverse_kl: float
    jsd: float
    log_ratio: float
    contrast: float


@torch.no_grad()
def token_measures(scored: Scored) -> dict[str, Float[Tensor, " N"]]:
    """Return the four measures of every token, in nats, float32 or better, in chunks of logits.

    Raises:
        ValueError: the rows have no teacher.
    """
    if scored.teacher is None or scored.teacher_head is None:
        raise ValueError("rows without a teacher have no divergence from one")
    vocabulary = scored.student_head.vocabulary
    rows = max(1, CHUNK_ELEMENTS // vocabulary)
    parts: dict[str, list[Tensor]] = {name: [] for name in MEASURES}
    for start in range(0, len(scored.ids), rows):
        chunk = slice(start, start + rows)
        student_logits = scored.student_head.logits(scored.student[chunk])
        teacher_logits = scored.teacher_head.logits(scored.teacher[chunk])
        dtype = working_dtype(student_logits, teacher_logits)
        student = log_probabilities(student_logits.to(dtype), scored.temperature)
        teacher = log_probabilities(teacher_logits.to(dtype), scored.temperature)
        for name in ("reverse_kl", "jsd"):
            settings = DivergenceSettings(divergence=name, support="student_topk", top_k=min(SUPPORT, vocabulary - 1))
            parts[name].append(compare_log_probabilities(student, teacher, settings).divergence)
        ids = scored.ids[chunk].long().unsqueeze(-1)
        own, told = student.gather(-1, ids).squeeze(-1), teacher.gather(-1, ids).squeeze(-1)
        parts["log_ratio"].append(told - own)
        # log(p_S/M) = log 2 - log(1 + p_T/p_S), which keeps its digits where both agree.
        parts["contrast"].append(0.5 * (math.log(2) - torch.nn.functional.softplus(told - own)))
    return {name: torch.cat(values) for name, values in parts.items()}


def study(subject: Subject, questions: int = 16, siblings: int | None = None) -> dict[str, Any]:
    """Draw rollouts of the next training questions and measure them; return what ``analysis/divergences.json`` holds.

    Args:
        subject: the model with its method.
        questions: how many.
        siblings: rollouts of each; by default as many as the method trains on, and at least 8, so that there are pass
            rates to tell apart.

    Raises:
        RecipeError: the method has no self-teacher.
    """
    method = subject.recipe.method
    if method.distillation is None:
        raise RecipeError(f"method {method.name!r} has no self-teacher, so there is nothing to measure")
    drawn = subject.draw(_next(subject, questions), siblings or max(8, method.source.group_size))
    tables = [(one, token_measures(one)) for one in score(subject, subject.plan(drawn).rows) if one.teacher is not None]
    rates = {group.question.id: group.pass_rate for group in drawn}
    right = {
        (group.question.id, rollout.sibling): verdict.success
        for group in drawn
        for rollout, verdict in zip(group.rollouts, group.verdicts, strict=True)
    }
    rollouts = [one for scored, table in tables for one in _rollouts(scored, table, rates, right)]
    return {
        "step": subject.state.step,
        "weights": subject.weights,
        "questions": len(drawn),
        "siblings": len(drawn[0].rollouts),
        "without_context": sum(len(group.rollouts) for group in drawn) - len(rollouts),
        "support": SUPPORT,
        "temperature": tables[0][0].temperature if tables else None,
        "rollouts": [asdict(one) for one in rollouts],
        "histograms": _histograms(tables, right),
    }


def _next(subject: Subject, count: int) -> list[Question]:
    """Return the next training questions, none twice."""
    found: dict[str, Question] = {}
    step, wanted = subject.state.step, min(count, len(subject.data.train))
    while len(found) < wanted:
        found |= {one.id: one for one in subject.trainer.batch(step)}
        step += 1
    return list(found.values())[:wanted]


def _rollouts(
    scored: Scored, table: dict[str, Tensor], rates: dict[str, float], right: dict[tuple[str, int], bool]
) -> Iterator[Measured]:
    start = 0
    for row, length in zip(scored.rows, scored.lengths, strict=True):
        rollout, rows = row.rollout, slice(start, start + length)
        start += length
        means = {name: float(values[rows].double().mean()) for name, values in table.items()}
        name = rollout.question.id
        yield Measured(name, rollout.sibling, rates[name], right[name, rollout.sibling], length, **means)


def _histograms(
    tables: Sequence[tuple[Scored, dict[str, Tensor]]], right: dict[tuple[str, int], bool]
) -> dict[str, Any]:
    """Return per measure the bins' edges and how many tokens of right and of wrong rollouts lie in each."""
    if not tables:
        return {}
    success = np.concatenate(
        [
            np.full(length, right[row.rollout.question.id, row.rollout.sibling])
            for scored, _ in tables
            for row, length in zip(scored.rows, scored.lengths, strict=True)
        ]
    )
    made = {}
    for name in MEASURES:
        values = np.concatenate([table[name].double().cpu().numpy() for _, table in tables])
        low, high = np.percentile(values, SPREAD)
        edges = np.linspace(low, high if high > low else low + 1e-6, BINS + 1)
        inside = np.clip(values, edges[0], edges[-1])
        made[name] = {
            "edges": edges.tolist(),
            "correct": np.histogram(inside[success], edges)[0].tolist(),
            "wrong": np.histogram(inside[~success], edges)[0].tolist(),
        }
    return made
