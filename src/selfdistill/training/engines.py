"""Samplers by the name that a recipe gives: ``rollouts.engine``."""

from __future__ import annotations

from selfdistill.models.loading import Policy
from selfdistill.rollouts.config import RolloutsConfig
from selfdistill.rollouts.sampler import Sampler
from selfdistill.rollouts.transformers_sampler import TransformersSampler


def make_sampler(policy: Policy, config: RolloutsConfig) -> Sampler:
    """Return the sampler that draws from ``policy`` as it is at each call."""
    match config.engine:
        case "transformers":
            return TransformersSampler(
                policy.model, policy.chat, batch_tokens=config.batch_tokens, max_rows=config.max_rows
            )
