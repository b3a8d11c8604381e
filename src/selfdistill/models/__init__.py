"""Models: the policy that is trained (loaded, adapted, saved), its projection head, and the models that come along.

``embedded`` is a tiny Qwen3 inside this package; ``smollm2`` is SmolLM2-135M-Instruct from an installed package.
"""

from __future__ import annotations

from selfdistill.models.head import MixedProjection, Projection, backbone_of, check_projection, projection_of
from selfdistill.models.loading import (
    LoraConfig,
    ModelConfig,
    Policy,
    load_policy,
    save_pretrained,
)
from selfdistill.models.smollm2 import prepare_smollm2

__all__ = [
    "LoraConfig",
    "MixedProjection",
    "ModelConfig",
    "Policy",
    "Projection",
    "backbone_of",
    "check_projection",
    "load_policy",
    "prepare_smollm2",
    "projection_of",
    "save_pretrained",
]
