"""Weightings as parts of a method: which questions count, and how much (METHODS 6).

In: the pass rates of the GLOBAL batch, the questions' ids and, for PACED, the pass rates measured before training. Out:
one weight per question. A question with weight 0 has no gradient and is never forwarded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from selfdistill.errors import DataError
from selfdistill.validation import PART
from selfdistill.weighting.pass_rate import checked_pass_rates, hard_filter, paced_weights, pass_rate_weights


@dataclass(frozen=True, config=PART, kw_only=True)
class Uniform:
    """Every question counts the same."""

    kind: Literal["uniform"] = "uniform"

    offline: ClassVar[bool] = False
    """Whether pass rates have to be measured before training."""
    compares_siblings: ClassVar[bool] = False
    """Whether one rollout per question says nothing."""

    def weigh(
        self, pass_rates: Sequence[float], question_ids: Sequence[str], prior: Mapping[str, float] | None
    ) -> list[float]:
        """Return 1 for every question."""
        _check_lengths(pass_rates, question_ids)
        return [1.0] * len(pass_rates)


@dataclass(frozen=True, config=PART, kw_only=True)
class PassRate:
    """(p (1-p))^alpha over its mean on the batch's informative questions (SC-SDPO, arXiv 2605.27765)."""

    kind: Literal["pass_rate"] = "pass_rate"
    alpha: float = Field(0.5, ge=0, allow_inf_nan=False)
    """Exponent (published 0.5; 1 is its ablation, 0 only masks all-right and all-wrong questions)."""

    offline: ClassVar[bool] = False
    compares_siblings: ClassVar[bool] = True

    def weigh(
        self, pass_rates: Sequence[float], question_ids: Sequence[str], prior: Mapping[str, float] | None
    ) -> list[float]:
        """Return w_bar of :func:`selfdistill.weighting.pass_rate_weights`."""
        _check_lengths(pass_rates, question_ids)
        return pass_rate_weights(list(pass_rates), self.alpha)


@dataclass(frozen=True, config=PART, kw_only=True)
class Paced:
    """p^a (1-p)^b from one pass before training, over its mean on the data set; frozen (PACED, arXiv 2603.11178)."""

    kind: Literal["paced"] = "paced"
    a: float = Field(1.0, ge=0, allow_inf_nan=False)
    """Exponent of p."""
    b: float = Field(1.0, ge=0, allow_inf_nan=False)
    """Exponent of 1 - p."""
    rollouts: int = Field(8, ge=1)
    """Rollouts per question of the pass before training (published K = 8)."""

    offline: ClassVar[bool] = True
    compares_siblings: ClassVar[bool] = False

    def weigh(
        self, pass_rates: Sequence[float], question_ids: Sequence[str], prior: Mapping[str, float] | None
    ) -> list[float]:
        """Return the frozen weights of the batch's questions; the batch's own pass rates play no part.

        Raises:
            DataError: if a question has no prior pass rate.
        """
        _check_lengths(pass_rates, question_ids)
        known = {} if prior is None else prior
        missing = [question_id for question_id in question_ids if question_id not in known]
        if missing:
            raise DataError(
                f"question {missing[0]!r} has no pass rate from before training "
                f"({len(missing)} of {len(question_ids)} in this batch): paced weights are frozen; "
                "measure the pass rates of the whole training set first"
            )
        weights = dict(zip(known, paced_weights(list(known.values()), self.a, self.b), strict=True))
        return [weights[question_id] for question_id in question_ids]


@dataclass(frozen=True, config=PART, kw_only=True)
class HardFilter:
    """1 where low <= p <= high, else 0 (control of SC-SDPO, arXiv 2605.27765)."""

    kind: Literal["hard_filter"] = "hard_filter"
    low: float = Field(0.2, ge=0, le=1)
    """Lowest pass rate that counts."""
    high: float = Field(0.8, ge=0, le=1)
    """Highest pass rate that counts."""

    offline: ClassVar[bool] = False
    compares_siblings: ClassVar[bool] = True

    @model_validator(mode="after")
    def _check_order(self) -> HardFilter:
        if self.low > self.high:
            raise ValueError(
                f"low is {self.low:g} and high is {self.high:g}: no pass rate lies between; choose low <= high"
            )
        return self

    def weigh(
        self, pass_rates: Sequence[float], question_ids: Sequence[str], prior: Mapping[str, float] | None
    ) -> list[float]:
        """Return 1 or 0 per question."""
        _check_lengths(pass_rates, question_ids)
        return hard_filter(list(pass_rates), self.low, self.high)


Weighting = Annotated[Uniform | PassRate | Paced | HardFilter, Field(discriminator="kind")]


def _check_lengths(pass_rates: Sequence[float], question_ids: Sequence[str]) -> None:
    if len(checked_pass_rates(pass_rates)) != len(question_ids):
        raise DataError(
            f"{len(pass_rates)} pass rates came with {len(question_ids)} question ids: give one of each per question"
        )
