"""GRPO (arXiv 2402.03300), with and without dividing by the group's standard deviation: policy-gradient baselines."""

from dataclasses import replace

from selfdistill.methods.method import Method
from selfdistill.methods.sources import OwnRollouts
from selfdistill.objectives.parts import PolicyGradient, Reduction
from selfdistill.weighting.routing import EveryRow


def grpo() -> Method:
    """Return GRPO with standardised rewards, clip [1 - 0.2, 1 + 0.28] and no KL term (METHODS section 7)."""
    return Method(
        name="grpo",
        paper="GRPO, arXiv 2402.03300",
        source=OwnRollouts(group_size=8),
        routing=EveryRow(objective="policy"),
        policy=PolicyGradient(normalize=True, clip_low=0.2, clip_high=0.28),
        reduction=Reduction(kind="token_mean"),
    )


def grpo_unnormalized() -> Method:
    """Return GRPO whose advantage is the reward minus the group's mean."""
    return replace(
        grpo(), name="grpo_unnormalized", policy=PolicyGradient(normalize=False, clip_low=0.2, clip_high=0.28)
    )
