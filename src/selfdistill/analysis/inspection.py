"""From one question's rollouts to an :class:`~selfdistill.analysis.xray.Xray`: score, look at the top, update, compare.

In: a subject and a group. Out: the x-ray. The update whose effect is shown is a real one, by the method's own
objective and the run's own optimizer, on this question alone; weights, teacher and optimizer are put back after it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from selfdistill.analysis.scored import Scored, score, scored_again
from selfdistill.analysis.subject import Subject
from selfdistill.analysis.top_tokens import top_tokens
from selfdistill.analysis.xray import Anchor, Context, RolloutXray, TokenTable, TopTokens, Xray
from selfdistill.contexts.anchors import anchor_hits
from selfdistill.contexts.masking import shown_parts
from selfdistill.contexts.prompt import PrivilegedPrompt
from selfdistill.methods.table import COLUMNS as PARTS
from selfdistill.methods.table import cells
from selfdistill.objectives.record import TokenRecord
from selfdistill.rollouts.rollout import Rollout
from selfdistill.teachers.weights import snapshot, trainable
from selfdistill.training.loop import Clock
from selfdistill.training.plan import Plan, Row
from selfdistill.verifiers.verdict import Group

SHOWS_SOLUTION = ("solution", "partial_solution")
"""Sources of prompts that show the reference solution, or a part of it."""


def inspect(subject: Subject, group: Group, *, update: bool = True, weight: float | None = None, k: int = 10) -> Xray:
    """Return the x-ray of one question's rollouts.

    Args:
        subject: the model with its method; as it was again afterwards.
        group: the rollouts with their verdicts.
        update: whether to take one step of the optimizer on this question alone, to show its effect.
        weight: the question's weight in a real batch; by default that of a batch of its own.
        k: how many of the likeliest tokens are kept per position.
    """
    plan = subject.plan([group])
    weighed = _token_weights(subject, plan)
    scored = score(subject, plan.rows)
    tables: dict[int, TokenTable] = {}
    for one in scored:
        tables |= _tables(subject, one, weighed, k)
    made = None
    if update and scored and any(weighed.values()):
        made, after = _updated(subject, plan, scored)
        for one, record in zip(scored, after, strict=True):
            tables |= _with_effect(tables, one, record)
    rollouts = [_rollout(row, verdict, tables, weight) for row, verdict in zip(plan.rows, group.verdicts, strict=True)]
    question, recipe = group.question, subject.recipe
    return Xray(
        title=f"{recipe.name}: {question.id}",
        recipe=recipe.name,
        method=recipe.method.name,
        model=recipe.model.path,
        weights=subject.weights,
        step=subject.state.step,
        question_id=question.id,
        messages=tuple(dict(message) for message in question.messages),
        answer=question.answer,
        solution=question.solution,
        pass_rate=group.pass_rate,
        rollouts=tuple(rollouts),
        vocabulary=_vocabulary(subject, tables.values()),
        settings=_settings(subject),
        update=made,
    )


def _tables(subject: Subject, scored: Scored, weighed: Mapping[int, float], k: int) -> dict[int, TokenTable]:
    """Return the table of each row's tokens, by sibling."""
    record, part = scored.record, subject.recipe.method.distillation
    columns: dict[str, Tensor | None] = {
        "divergence": record.divergence,
        "log_ratio": _difference(record.teacher_logprob, record.student_logprob),
        "student_entropy": record.student_entropy,
        "teacher_entropy": record.teacher_entropy,
        "student_logprob": record.student_logprob,
        "teacher_logprob": record.teacher_logprob,
        "clip_fraction": record.clip_fraction,
        "captured_mass": record.captured_mass,
    }
    if record.teacher_entropy is not None:
        columns["entropy_ratio"] = record.teacher_entropy / record.student_entropy.clamp_min(1e-6)
    student = top_tokens(scored.student, scored.student_head, scored.temperature, k)
    teacher = interpolated = None
    if scored.teacher is not None and scored.teacher_head is not None and part is not None:
        teacher = top_tokens(scored.teacher, scored.teacher_head, scored.temperature, k)
        rows, strength = scored.selected, part.interpolation_strength
        mixed = (scored.student[rows], scored.student_head, strength)
        interpolated = top_tokens(scored.teacher[rows], scored.teacher_head, scored.temperature, k, mixed)
    tables, start, softened = {}, 0, 0
    for row, length in zip(scored.rows, scored.lengths, strict=True):
        part_of = slice(start, start + length)
        own = {name: _plain(column[part_of]) for name, column in columns.items() if column is not None}
        own["weight"] = _plain(scored.importance[part_of] * weighed[row.rollout.sibling])
        if row.rollout.logprobs is not None:
            own["rollout_logprob"] = torch.tensor(row.rollout.logprobs, dtype=torch.float32)
        selected = scored.selected[part_of].cpu()
        count = int(selected.sum())
        tables[row.rollout.sibling] = TokenTable(
            ids=scored.ids[part_of].cpu(),
            columns=own,
            selected=selected,
            student=_rows(student, part_of),
            teacher=None if teacher is None else _rows(teacher, part_of),
            interpolated=None if interpolated is None else _rows(interpolated, slice(softened, softened + count)),
        )
        start, softened = start + length, softened + count
    return tables


def _token_weights(subject: Subject, plan: Plan) -> dict[int, float]:
    """Return by sibling what a token's loss is multiplied with, over its mean size on the group's tokens with signal.

    With a policy gradient that is the advantage too, which may be negative.
    """
    rows = plan.parts(1, subject.recipe.method.reduction)[0]
    weights = {
        row.rollout.sibling: row.token_weight * (row.advantage if row.objective == "policy" else 1.0) for row in rows
    }
    lengths = {row.rollout.sibling: len(row.rollout.response_ids) for row in rows}
    total = sum(abs(weights[sibling]) * lengths[sibling] for sibling in weights)
    mean = total / max(1, sum(lengths.values()))
    return {row.rollout.sibling: weights.get(row.rollout.sibling, 0.0) / (mean or 1.0) for row in plan.rows}


def _updated(subject: Subject, plan: Plan, scored: Sequence[Scored]) -> tuple[str, list[TokenRecord]]:
    """Take one step on the plan, score the same tokens again, and put everything back."""
    trainer, state = subject.trainer, subject.state
    model = state.model
    weights, moments = snapshot(model), copy.deepcopy(state.optimizer.state_dict())
    teacher = None if state.teacher is None else {name: value.clone() for name, value in state.teacher.weights.items()}
    counts = (state.bad_steps, state.skipped_updates)
    one_update = trainer.recipe.train.model_copy(update={"updates_per_batch": 1})
    alone = replace(trainer, recipe=trainer.recipe.model_copy(update={"train": one_update}))
    try:
        metrics = alone.update(plan, state, Clock(trainer.progress))
        model.eval()
        after = [scored_again(subject, one) for one in scored]
    finally:
        _put_back(state.model, weights)
        state.optimizer.load_state_dict(moments)
        state.bad_steps, state.skipped_updates = counts
        if state.teacher is not None and teacher is not None:
            for name, value in state.teacher.weights.items():
                value.copy_(teacher[name])
        model.eval()
    text = (
        f"one step of the optimizer on these rollouts alone: learning rate {metrics['learning_rate']:.3g}, "
        f"loss {metrics['loss']:.4g}, gradient norm {metrics['grad_norm']:.3g}"
    )
    return text, after


@torch.no_grad()
def _put_back(model: torch.nn.Module, weights: Mapping[str, Tensor]) -> None:
    for name, parameter in trainable(model).items():
        parameter.copy_(weights[name])


def _with_effect(tables: Mapping[int, TokenTable], scored: Scored, after: TokenRecord) -> dict[int, TokenTable]:
    """Return the tables with what the tokens are like after the update."""
    changed, start = {}, 0
    for row, length in zip(scored.rows, scored.lengths, strict=True):
        part_of, table = slice(start, start + length), tables[row.rollout.sibling]
        own = dict(table.columns)
        if after.student_logprob is not None:
            own["student_logprob_after"] = _plain(after.student_logprob[part_of])
        if after.divergence is not None:
            own["divergence_after"] = _plain(after.divergence[part_of])
        changed[row.rollout.sibling] = replace(table, columns=own)
        start += length
    return changed


def _rollout(row: Row, verdict: Any, tables: Mapping[int, TokenTable], weight: float | None) -> RolloutXray:
    rollout = row.rollout
    return RolloutXray(
        sibling=rollout.sibling,
        text=rollout.text,
        finish_reason=rollout.finish_reason,
        reward=float(verdict.reward),
        success=bool(verdict.success),
        answer=verdict.answer,
        feedback=verdict.feedback,
        objective=row.objective,
        weight=row.weight if weight is None else weight,
        advantage=row.advantage,
        context=None if row.prompt is None else _context(rollout, row.prompt),
        tokens=tables.get(rollout.sibling),
    )


def _context(rollout: Rollout, prompt: PrivilegedPrompt) -> Context:
    solution = rollout.question.solution
    shows = solution is not None and prompt.source in SHOWS_SOLUTION
    return Context(
        source=prompt.source,
        shown=prompt.shown,
        messages=tuple(dict(message) for message in prompt.messages),
        overlap=prompt.overlap,
        hidden_ratio=prompt.hidden_ratio,
        anchors=(
            tuple(Anchor(text, found) for text, found in anchor_hits(solution, rollout.text).items())
            if shows and solution is not None and prompt.overlap is not None
            else ()
        ),
        solution_parts=shown_parts(solution, prompt.shown) if shows and solution is not None else (),
        demonstrator=prompt.demonstrator,
        truncated_tokens=prompt.truncated_tokens,
    )


def _vocabulary(subject: Subject, tables: Any) -> dict[int, str]:
    """Return the text of every id that occurs: of each alone, so that a part of a character is a replacement mark."""
    ids: set[int] = set()
    for table in tables:
        tops = (table.student, table.teacher, table.interpolated)
        for column in (table.ids, *(top.ids for top in tops if top is not None)):
            ids.update(column.flatten().tolist())
    chat = subject.trainer.policy.chat
    return {one: chat.decode([one], skip_special_tokens=False) for one in sorted(ids)}


def _settings(subject: Subject) -> dict[str, Any]:
    """Return what a reader wants to know beside the tokens."""
    recipe = subject.recipe
    temperature = recipe.rollouts.sampling.temperature
    known: dict[str, Any] = {name: cell for name, cell in zip(PARTS, cells(recipe.method), strict=True) if cell != "-"}
    known["sampling temperature"] = temperature
    if recipe.method.distillation is not None:
        known["distillation temperature"] = recipe.method.distillation.settings(temperature).temperature
    return known


def _difference(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    return None if first is None or second is None else first - second


def _plain(column: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    return column.detach().float().cpu()


def _rows(top: TopTokens, rows: slice) -> TopTokens:
    ids: Int[Tensor, "n k"] = top.ids[rows]
    return TopTokens(ids, top.probabilities[rows])
