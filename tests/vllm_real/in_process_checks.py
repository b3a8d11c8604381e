"""vLLM in process, for real. Run by test_vllm_in_process.py, with the Python that has vLLM."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from selfdistill.errors import RecipeError
from selfdistill.models.loading import load_policy
from selfdistill.rollouts.sampler import Sampling
from selfdistill.rollouts.vllm_engine import VllmEngine
from selfdistill.training.recipe import load_recipe

ROOT = Path(__file__).resolve().parents[2]
SAMPLING = Sampling(temperature=1.0, max_new_tokens=24)


@pytest.fixture(params=["lora", "full"])
def trained(request, tmp_path):
    """A policy and the engine that draws from it."""
    overrides = {"lora": ["model.lora.r=16", "model.lora.alpha=32"], "full": []}[request.param]
    recipe = load_recipe(
        ROOT / "recipes" / "embedded" / "sc_sdpo.yaml",
        [
            "rollouts.engine=vllm",
            "model.device=cpu",
            "rollouts.max_rows=3",
            "rollouts.vllm.options.kv_cache_memory_bytes=536870912",
            *overrides,
        ],
    )
    policy = load_policy(recipe.model, 0)
    engine = VllmEngine(policy, recipe.rollouts, recipe.needs(), tmp_path / "sync")
    yield policy, engine
    engine.close()
    assert {path.name for path in (tmp_path / "sync").glob("*")} <= {"base"}


def test_rollouts_come_from_the_weights_of_the_last_sync(trained, change, rescored, prompts_of) -> None:
    policy, engine = trained
    prompts, seeds = prompts_of(policy, 3), [[10, 11, 12, 13, 14], [20], [30, 40]]
    ends, versions, batches = set(policy.chat.end_of_turn_ids), set(), []
    for step in range(3):
        change(policy, step)
        report = engine.sync(f"step-{step}")
        versions.add(report.version)
        assert report.mean_difference < 1e-3
        counted: list[int] = []
        batches.append(engine.sample(prompts, seeds, SAMPLING, on_tokens=counted.append))
        assert [len(own) for own in batches[-1]] == [5, 1, 2]
        for prompt, own in zip(prompts, batches[-1], strict=True):
            for completion in own:
                expected = rescored(policy, prompt, completion.ids)
                assert (torch.tensor(completion.logprobs) - torch.tensor(expected)).abs().mean() < 1e-3
                assert completion.finish_reason == ("stop" if completion.ids[-1] in ends else "length")
        assert sum(counted) == sum(len(completion.ids) for own in batches[-1] for completion in own)
    assert len(versions) == 3 and batches[0] != batches[1] != batches[2]

    # The same seeds draw the same responses, alone or among others, also after a batch that was given up.
    stream = engine.stream(prompts, seeds, SAMPLING)
    next(stream)
    stream.close()
    alone = engine.sample(prompts[:1], [[12]], SAMPLING)
    assert alone[0][0].ids == batches[-1][0][2].ids
    silent = engine.sample(prompts[:1], [[12]], SAMPLING, logprobs=False)
    assert silent[0][0].ids == alone[0][0].ids and silent[0][0].logprobs is None
    with pytest.raises(RecipeError, match="exceed vLLM's context of 1024"):
        engine.sample(prompts[:1], [[1]], Sampling(temperature=1.0, max_new_tokens=1020))
