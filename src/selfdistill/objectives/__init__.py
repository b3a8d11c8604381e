"""From two hidden states to a loss: divergences, PAINT's interpolation, policy gradients, reductions.

``divergence.py`` is the readable reference on logits; ``linear_divergence.py`` computes the same from hidden states
without holding logits of all tokens. ``parts.py`` holds the settings that methods compose and recipes override.
"""

from selfdistill.objectives.compare import Comparison, compare
from selfdistill.objectives.divergence import token_divergence
from selfdistill.objectives.interpolation import interpolate_targets, select_by_entropy_ratio, select_per_sequence
from selfdistill.objectives.linear_divergence import linear_entropies, linear_token_divergence, linear_token_logprobs
from selfdistill.objectives.parts import Distillation, Imitation, PolicyGradient, Reduction
from selfdistill.objectives.policy_gradient import (
    Surrogate,
    imitation_loss,
    importance_ratio,
    policy_gradient_loss,
    sampled_token_loss,
)
from selfdistill.objectives.record import TokenRecord
from selfdistill.objectives.reductions import entropy_weights, token_weights, unnormalised_entropy_weights
from selfdistill.objectives.settings import DivergenceSettings, SettingError

__all__ = [
    "Comparison",
    "Distillation",
    "DivergenceSettings",
    "Imitation",
    "PolicyGradient",
    "Reduction",
    "SettingError",
    "Surrogate",
    "TokenRecord",
    "compare",
    "entropy_weights",
    "imitation_loss",
    "importance_ratio",
    "interpolate_targets",
    "linear_entropies",
    "linear_token_divergence",
    "linear_token_logprobs",
    "policy_gradient_loss",
    "sampled_token_loss",
    "select_by_entropy_ratio",
    "select_per_sequence",
    "token_divergence",
    "token_weights",
    "unnormalised_entropy_weights",
]
