"""What a step logs: from groups, rows and token records to one flat dictionary of numbers."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from selfdistill.contexts.leaks import mentions_reference
from selfdistill.contexts.success_buffer import SuccessBuffer
from selfdistill.methods.sources import OwnRollouts, ReferenceSolutions
from selfdistill.objectives.losses import TokenLosses
from selfdistill.rollouts.mismatch import k3, log_ratio
from selfdistill.training.plan import Plan, Row
from selfdistill.verifiers.verdict import Verdict
from selfdistill.weighting.pass_rate import pass_rate_statistics

Metrics = dict[str, Any]

Drawn = Literal["now", "before", "within_batch"]
"""Which weights drew the rollouts: those that are being updated; those of a step before; those of before an earlier
update on the same batch."""


class TokenMeans:
    """Means and maxima over tokens, gathered micro-batch by micro-batch without keeping any token alive."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = defaultdict(int)
        self._maxima: dict[str, Tensor] = {}

    def add(self, name: str, values: Tensor | None) -> None:
        """Count every element of ``values`` once; None adds nothing."""
        if values is None or values.numel() == 0:
            return
        total = values.detach().double().sum()
        self._sums[name] = self._sums[name] + total if name in self._sums else total
        self._counts[name] += values.numel()

    def add_maximum(self, name: str, values: Tensor) -> None:
        """Keep the largest of all elements that ``name`` was given; none adds nothing."""
        if values.numel() == 0:
            return
        largest = values.detach().double().max()
        self._maxima[name] = torch.maximum(self._maxima[name], largest) if name in self._maxima else largest

    def add_losses(self, scored: TokenLosses, rollout_logprobs: Tensor | None) -> None:
        """Count what one micro-batch's losses say about its tokens; see :meth:`add_difference` for the rollouts'."""
        record = scored.record
        self.add("divergence", record.divergence)
        self.add("student_entropy", record.student_entropy)
        self.add("teacher_entropy", record.teacher_entropy)
        self.add("agreement", record.agreement)
        self.add("clip_fraction", record.clip_fraction)
        self.add("captured_mass", record.captured_mass)
        self.add("ratio", scored.ratio)
        self.add("policy_clip_fraction", scored.policy_clipped)
        if scored.selected is not None and record.teacher_entropy is not None and bool(scored.selected.any()):
            ratio = record.teacher_entropy / record.student_entropy.clamp_min(1e-6)
            self.add("selected_share", scored.selected.double())
            self.add("selected_ratio", ratio[scored.selected])

    def add_difference(self, scored: TokenLosses, rollout_logprobs: Tensor | None, drawn: Drawn) -> None:
        """Count how far the student's log-probabilities (nats) are from those of what drew the tokens.

        From the same weights this is the engine's mismatch; from those before, how far an update has moved the policy
        (the engine's mismatch included). Between the updates of one batch it would mix both, and is not counted.
        """
        own = scored.record.student_logprob
        if own is None or rollout_logprobs is None or drawn == "within_batch":
            return
        moved = log_ratio(own, rollout_logprobs)
        if drawn == "before":
            self.add("policy_moved", moved.abs())
            return
        self.add("sampler_mismatch", moved.abs())
        self.add_maximum("sampler_mismatch_max", moved.abs())
        self.add("sampler_kl", k3(moved))

    def state(self) -> dict[str, Any]:
        """Return what has been counted, as plain numbers that another process can read."""
        return {
            "sums": {name: float(total) for name, total in self._sums.items()},
            "counts": dict(self._counts),
            "maxima": {name: float(largest) for name, largest in self._maxima.items()},
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Count what :meth:`state` returned, and nothing else."""
        self._sums, self._maxima = (
            {name: torch.tensor(value, dtype=torch.float64) for name, value in state[kind].items()}
            for kind in ("sums", "maxima")
        )
        self._counts = defaultdict(int, state["counts"])

    @classmethod
    def joined(cls, states: Sequence[Mapping[str, Any]]) -> TokenMeans:
        """Return what several processes have counted together."""
        joined = cls()
        for state in states:
            for name, total in state["sums"].items():
                joined._sums[name] = joined._sums.get(name, torch.zeros((), dtype=torch.float64)) + total
                joined._counts[name] += state["counts"][name]
            for name, largest in state["maxima"].items():
                joined._maxima[name] = torch.tensor(max(largest, float(joined._maxima.get(name, -math.inf)))).double()
        return joined

    def means(self) -> Metrics:
        """Return the mean, or the maximum, of everything that was counted."""
        means = {name: float(total) / self._counts[name] for name, total in self._sums.items()}
        return means | {name: float(largest) for name, largest in self._maxima.items()}


def batch_metrics(plan: Plan, source: OwnRollouts | ReferenceSolutions) -> Metrics:
    """Describe a batch: lengths, pass rates, weights, contexts. Shares and rates are in [0, 1], lengths in tokens."""
    rows = plan.rows
    metrics: Metrics = {
        "rollouts": len(rows),
        "response_length": _mean([len(row.rollout.response_ids) for row in rows]),
        "forwarded_share": _mean([row.has_signal for row in rows]),
    }
    if isinstance(source, ReferenceSolutions):
        return metrics
    verdicts = [verdict for group in plan.groups for verdict in group.verdicts]
    metrics |= {
        "truncated_share": _mean([row.rollout.finish_reason == "length" for row in rows]),
        "unparseable_share": _mean([verdict.answer is None for verdict in verdicts]),
        "leak_rate": _mean([mentions_reference(row.rollout.text) for row in rows]),
        "reward": _mean([verdict.reward for verdict in verdicts]),
        **_detail_metrics(verdicts),
    }
    metrics |= _pass_rate_metrics(plan, source.group_size)
    return metrics | context_metrics(rows) if plan.distils else metrics


def _detail_metrics(verdicts: Sequence[Verdict]) -> Metrics:
    """Return the means of what only some verifiers say: the share of tests passed, and whether the format is kept."""
    said: dict[str, list[float]] = {
        "tests_passed": [verdict.passed for verdict in verdicts if verdict.passed is not None],
        "well_formed": [verdict.well_formed for verdict in verdicts if verdict.well_formed is not None],
    }
    return {name: _mean(values) for name, values in said.items() if values}


def _pass_rate_metrics(plan: Plan, group_size: int) -> Metrics:
    statistics = pass_rate_statistics([group.pass_rate for group in plan.groups], group_size)
    metrics: Metrics = {
        "pass_rate": statistics.mean,
        "pass_rate_histogram": list(statistics.histogram),
        "weight_sum": sum(plan.question_weights),
        "weight_max": max(plan.question_weights, default=0.0),
        "weighted_share": _mean([weight > 0 for weight in plan.question_weights]),
    }
    if group_size > 1:  # one rollout alone is always all-right or all-wrong
        metrics["informative_share"] = statistics.informative_share
    return metrics


def context_metrics(rows: Sequence[Row]) -> Metrics:
    """Describe what the teacher was shown, for a method that has one; overlap and hidden ratio only with PAINT."""
    prompts = [row.prompt for row in rows if row.prompt is not None]
    metrics: Metrics = {
        "reprompted_share": _mean([row.prompt is not None for row in rows]),
        "feedback_share": sum("feedback" in prompt.source for prompt in prompts) / max(1, len(rows)),
        "context_truncated_tokens": sum(prompt.truncated_tokens for prompt in prompts),
    }
    overlaps = [prompt.overlap for prompt in prompts if prompt.overlap is not None]
    hidden = [prompt.hidden_ratio for prompt in prompts if prompt.hidden_ratio is not None]
    if overlaps:
        metrics["overlap"] = _mean(overlaps)
    if hidden:
        metrics["hidden_ratio"] = _mean(hidden)
    return metrics


def buffer_metrics(rows: Sequence[Row], successes: SuccessBuffer) -> Metrics:
    """Describe the successes of earlier steps, for a method that keeps some; the share is of all rollouts."""
    if successes.per_question == 0:
        return {}
    buffered = [row.prompt is not None and "buffered_demonstration" in row.prompt.source for row in rows]
    return {
        "buffered_share": _mean(buffered),
        "buffer_successes": len(successes),
        "buffer_characters": successes.characters,
    }


def finite(values: Mapping[str, Any]) -> Metrics:
    """Replace what JSON cannot hold (nan, inf) by None."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values.items()
    }


def _mean(values: Sequence[float | bool]) -> float:
    return sum(values) / len(values) if values else 0.0
