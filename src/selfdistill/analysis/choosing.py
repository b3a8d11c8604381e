"""Which rollouts are looked at: freshly drawn ones, or those that a run has saved.

In: a subject and what the user named. Out: a verified group, and the question's weight where a real batch gave it one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from selfdistill.analysis.run_data import read_lines
from selfdistill.analysis.subject import Subject
from selfdistill.errors import DataError
from selfdistill.questions import Question
from selfdistill.rollouts.rollout import Rollout
from selfdistill.verifiers.verdict import Group

TRIED = 4
"""Questions that are drawn until one has right and wrong rollouts, if the user names none."""
SIBLINGS = 4
"""Rollouts of a question for a method that trains on one of each."""


def chosen_group(
    subject: Subject, *, question: str | None = None, siblings: int | None = None, saved_step: int | None = None
) -> tuple[Group, float | None]:
    """Return the rollouts to look at.

    Args:
        subject: draws them, from its weights.
        question: id or number; by default the first of the step's batch whose rollouts are not all right or all wrong.
        siblings: how many are drawn; by default as many as the method trains on, and at least a few.
        saved_step: take what the run has saved of this step instead.

    Raises:
        DataError: there is no such question, or nothing saved of it.
    """
    if saved_step is not None:
        return _saved(subject, saved_step, question)
    if siblings is None:
        siblings = max(SIBLINGS, subject.recipe.method.source.group_size)
    candidates = subject.trainer.batch(subject.state.step)[:TRIED] if question is None else [subject.question(question)]
    groups = []
    for candidate in candidates:
        groups += subject.draw([candidate], siblings)
        if 0 < groups[-1].pass_rate < 1:
            break
    mixed = [group for group in groups if 0 < group.pass_rate < 1]
    group = (mixed or groups)[0]
    return group, _weight_among_others(subject, group)


def _weight_among_others(subject: Subject, group: Group) -> float | None:
    """Return the weight that the question would have had in the run's latest batch; None: there is no such batch.

    In a batch of its own every question that counts has weight 1.
    """
    latest = (
        [one for one in read_lines(subject.folder.metrics) if one["step"] <= subject.state.step]
        if subject.folder
        else []
    )
    counts: Sequence[int] = latest[-1].get("pass_rate_histogram", ()) if latest else ()
    if len(counts) < 2:
        return None
    others = [place / (len(counts) - 1) for place, count in enumerate(counts) for _ in range(count)]
    names = [group.question.id, *(f"another {number}" for number in range(len(others)))]
    prior = {group.question.id: group.pass_rate, **subject.state.pass_rates}
    if subject.recipe.method.weighting.offline:
        others, names = [], names[:1]
    weights: list[float] = subject.recipe.method.weighting.weigh([group.pass_rate, *others], names, prior)
    return weights[0]


def _saved(subject: Subject, step: int, named: str | None) -> tuple[Group, float | None]:
    assert subject.folder is not None, "only a run has saved rollouts"
    records = [one for one in read_lines(subject.folder.rollouts) if one.get("step") == step]
    kept = list(dict.fromkeys(str(one["question"]) for one in records))
    if not kept:
        raise DataError(
            f"--from-step: nothing of step {step} is in {str(subject.folder.rollouts)!r}; choose another step, or "
            "train with output.save_rollouts=all"
        )
    chosen = kept[0] if named is None else named
    if chosen not in kept:
        raise DataError(f"--question: of step {step} these were saved: {', '.join(kept)}; not {named!r}")
    own = [one for one in records if one["question"] == chosen]
    question = subject.question(chosen)
    rollouts = [_rollout(subject, question, one) for one in own]
    return subject.verified(question, rollouts), float(own[0]["weight"])


def _rollout(subject: Subject, question: Question, record: Mapping[str, Any]) -> Rollout:
    """Return a rollout as it was saved: its ids, never decoded and encoded again."""
    ids: Sequence[int] | None = record.get("response_ids")
    if ids is None:
        raise DataError(
            "--from-step: these rollouts were saved without their token ids, by an older version; leave it out to "
            "draw new ones"
        )
    chat, thinking = subject.trainer.policy.chat, subject.recipe.rollouts.thinking
    return Rollout(
        question=question,
        sibling=int(record["sibling"]),
        prompt_ids=chat.render(question.messages, thinking=thinking),
        response_ids=tuple(ids),
        logprobs=None,
        text=str(record["response"]),
        finish_reason=record["finish_reason"],
    )
