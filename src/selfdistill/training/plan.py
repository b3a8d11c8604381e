"""Weigh: from verified groups and their privileged prompts to rows, each with its objective and its share of the loss.

Everything that depends on the GLOBAL batch (mean weights, denominators) is settled here, before anything is forwarded;
so the result cannot depend on micro-batches. Rows without signal are left out: they are never forwarded, they only
count in the denominators.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from selfdistill.contexts.prompt import PrivilegedPrompt
from selfdistill.methods.method import Method
from selfdistill.objectives.parts import Reduction
from selfdistill.rollouts.rollout import Rollout
from selfdistill.verifiers.verdict import Group
from selfdistill.weighting.advantages import group_advantages


@dataclass(frozen=True, slots=True)
class Row:
    """One rollout on its way into the loss."""

    rollout: Rollout
    prompt: PrivilegedPrompt | None
    objective: str | None
    """``distillation``, ``policy`` or ``imitation``; None: no signal."""
    weight: float
    """The question's weight (1 where the method does not weight)."""
    advantage: float = 0.0
    token_weight: float = 0.0
    """What each of the row's token losses is multiplied with, denominators included."""

    @property
    def has_signal(self) -> bool:
        """Whether the row can have a gradient at all."""
        if self.objective is None or self.weight == 0 or not self.rollout.response_ids:
            return False
        return self.objective != "policy" or self.advantage != 0


@dataclass(frozen=True, slots=True)
class Plan:
    """What one batch of questions will be trained on."""

    groups: tuple[Group, ...]
    question_weights: tuple[float, ...]
    rows: tuple[Row, ...]
    """Every rollout of the batch, group by group, those without signal included."""
    distils: bool
    """Whether the method has a teacher, even if no rollout of this batch gets one."""

    def parts(self, count: int, reduction: Reduction) -> list[tuple[Row, ...]]:
        """Split the batch into ``count`` parts of whole groups, one optimiser step each, as even as can be.

        Returns each part's rows with signal. Question weights are the whole batch's, denominators each part's own.
        """
        bounds = [round(index * len(self.groups) / count) for index in range(count + 1)]
        starts = [0, *accumulate(len(group.rollouts) for group in self.groups)]
        return [_reduced(self.rows[starts[low] : starts[high]], reduction) for low, high in pairwise(bounds)]


def make_plan(
    method: Method,
    groups: Sequence[Group],
    prompts: Sequence[Sequence[PrivilegedPrompt | None]],
    prior: Mapping[str, float] | None = None,
) -> Plan:
    """Weigh and route the rollouts of one batch.

    Args:
        method: what to do.
        groups: the batch, one group per question.
        prompts: per group, one privileged prompt or None per rollout.
        prior: pass rates by question id from before training, for weightings that want them (PACED).
    """
    ids = [group.question.id for group in groups]
    weights = method.weighting.weigh([group.pass_rate for group in groups], ids, prior)
    rows: list[Row] = []
    for group, group_prompts, weight in zip(groups, prompts, weights, strict=True):
        objectives = method.routing.route(group.verdicts, group_prompts)
        advantages = _advantages(method, group)
        rows += [
            Row(rollout, prompt, objective, weight, advantage)
            for rollout, prompt, objective, advantage in zip(
                group.rollouts, group_prompts, objectives, advantages, strict=True
            )
        ]
    return Plan(tuple(groups), tuple(weights), tuple(rows), distils=method.distillation is not None)


def _advantages(method: Method, group: Group) -> Sequence[float]:
    if method.policy is None:
        return [0.0] * len(group.rollouts)
    return group_advantages([verdict.reward for verdict in group.verdicts], normalize=method.policy.normalize)


def _reduced(rows: Sequence[Row], reduction: Reduction) -> tuple[Row, ...]:
    informative = [row.has_signal for row in rows]
    lengths = [len(row.rollout.response_ids) for row in rows]
    weights = reduction.token_weights(lengths, [row.weight for row in rows], informative)
    weighed = zip(rows, weights, informative, strict=True)
    return tuple(replace(row, token_weight=weight) for row, weight, keep in weighed if keep)
