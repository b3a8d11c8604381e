"""Engines by the name that a recipe gives: ``rollouts.engine``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from selfdistill.errors import RecipeError
from selfdistill.models.loading import Policy
from selfdistill.parallel.sharding import exporting, whole
from selfdistill.parallel.world import ALONE, World
from selfdistill.rollouts.sampler import Completion, Engine, Place, Sampling, SyncReport
from selfdistill.training.recipe import Recipe


class ByMain(Engine):
    """An engine outside of the processes, with which the main one speaks alone.

    Args:
        inner: on the main process the engine, elsewhere None.
        model: whose weights it is given; all processes have a part of them.
        world: the processes.
    """

    def __init__(self, inner: Engine | None, model: nn.Module, world: World) -> None:
        self._inner, self._model, self._world = inner, model, world

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        logprobs: bool = True,
        on_tokens: Callable[[int], None] | None = None,
    ) -> Iterator[tuple[Place, Completion]]:
        """Yield one completion per seed; see :meth:`selfdistill.rollouts.sampler.Sampler.stream`.

        Other processes than the main one ask for nothing, and get it.
        """
        if self._inner is None:
            return iter(())
        return self._inner.stream(prompts, seeds, sampling, logprobs=logprobs, on_tokens=on_tokens)

    def sync(self, version: str) -> SyncReport | None:
        """Give the engine the weights, which all processes bring together for it."""
        with exporting(self._model), whole(self._model):
            return self._world.main(lambda: self._inner.sync(version) if self._inner is not None else None)

    def close(self) -> None:
        """Close the engine."""
        if self._inner is not None:
            self._inner.close()


def make_engine(policy: Policy, recipe: Recipe, folder: Path, world: World = ALONE) -> Engine:
    """Return the engine that draws the run's responses; whoever asked for it closes it.

    With several processes, each draws its share from the policy itself, or the main one speaks with servers.

    Args:
        policy: whose weights it draws from.
        recipe: its ``rollouts`` and ``evaluation`` sections say how.
        folder: of the run; what has to be written for the engine goes to ``sync`` in it.
        world: the processes of the run, all of which call this.

    Raises:
        SelfDistillError: the engine cannot be had, or cannot serve what the recipe asks for.
    """
    if world.size == 1 or recipe.rollouts.engine == "transformers":
        return _make(policy, recipe, folder)
    if recipe.rollouts.engine == "vllm":
        raise RecipeError(
            f"rollouts.engine is 'vllm', an engine inside of one process, but there are {world.size} processes; start "
            "servers with `selfdistill serve` and set rollouts.engine=vllm_server"
        )
    inner: list[Engine] = []
    with exporting(policy.model):  # what servers are started from may have to be written
        world.main(lambda: inner.append(_make(policy, recipe, folder)))
    return ByMain(inner[0] if inner else None, policy.model, world)


def _make(policy: Policy, recipe: Recipe, folder: Path) -> Engine:
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
