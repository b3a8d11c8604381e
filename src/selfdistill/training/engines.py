"""Engines by the name that a recipe gives: ``rollouts.engine``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from selfdistill.models.loading import Policy
from selfdistill.rollouts.sampler import Engine
from selfdistill.training.recipe import Recipe


def make_engine(policy: Policy, recipe: Recipe, folder: Path) -> Engine:
    """Return the engine that draws the run's responses; whoever asked for it closes it.

    Args:
        policy: whose weights it draws from.
        recipe: its ``rollouts`` and ``evaluation`` sections say how.
        folder: of the run; what has to be written for the engine goes to ``sync`` in it.

    Raises:
        SelfDistillError: the engine cannot be had, or cannot serve what the recipe asks for.
    """
    config = recipe.rollouts
    # A policy that was loaded from adapters has some, though its recipe adds none.
    needs = replace(recipe.needs(), lora_rank=policy.config.lora.r if policy.config.lora else None)
    match config.engine:
        case "transformers":
            from selfdistill.rollouts.transformers_sampler import TransformersSampler

            return TransformersSampler(
                policy.model, policy.chat, batch_tokens=config.batch_tokens, max_rows=config.max_rows
            )
        case "vllm":
            from selfdistill.rollouts.vllm_engine import VllmEngine

            return VllmEngine(policy, config, needs, folder / "sync")
        case "vllm_server":
            from selfdistill.rollouts.server import ServerEngine

            return ServerEngine(policy, config, needs, folder / "sync")
