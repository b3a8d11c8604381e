"""What a recipe needs of an engine, and which settings of ``rollouts`` contradict each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfdistill.errors import RecipeError
from selfdistill.rollouts.needs import has_logprobs
from selfdistill.rollouts.sampler import Sampling
from selfdistill.training.recipe import Recipe, load_recipe, resume_conflicts

RECIPES = Path(__file__).resolve().parents[2] / "recipes" / "embedded"
SERVER = "rollouts.engine=vllm_server"
HOT_AND_CUT = ("rollouts.sampling.temperature=1.1", "rollouts.sampling.top_p=0.95")


def recipe(method: str, *overrides: str) -> Recipe:
    return load_recipe(RECIPES / f"{method}.yaml", overrides)


def test_the_longest_response_and_the_rank_are_known_before_anything_is_loaded() -> None:
    needs = recipe("paint", "evaluation.sampling.max_new_tokens=300", "model.lora.r=8").needs()
    assert (needs.new_tokens, needs.lora_rank) == (300, 8)
    assert recipe("sdpo", "model.lora=null").needs().lora_rank is None


@pytest.mark.parametrize(
    ("sampling", "raw", "processed"),
    [
        (Sampling(), True, True),
        (Sampling(temperature=0.6), False, True),
        (Sampling(top_p=0.9), True, False),
        (Sampling(temperature=1.1, top_k=20), False, False),
    ],
)
def test_vllm_has_log_probabilities_before_temperature_or_after_truncation(sampling, raw, processed) -> None:
    assert has_logprobs(sampling, "raw_logprobs") is raw
    assert has_logprobs(sampling, "processed_logprobs") is processed
    assert not has_logprobs(sampling, "raw_logits")


@pytest.mark.parametrize(
    "overrides", [(), ("rollouts.sampling.temperature=0.6",), ("rollouts.sampling.top_p=0.9",)], ids=str
)
def test_the_mode_that_is_asked_for_has_them_wherever_one_does(overrides) -> None:
    needs = recipe("sdpo", SERVER, *overrides).needs()
    assert has_logprobs(needs.training, needs.logprobs_mode)


@pytest.mark.parametrize("method", ["sdpo", "sc_sdpo", "grpo"])
def test_a_method_with_a_ratio_refuses_sampling_without_log_probabilities(method: str) -> None:
    with pytest.raises(RecipeError, match=r"temperature 1.1 together with top_p or top_k; set .*temperature=1"):
        recipe(method, SERVER, *HOT_AND_CUT)
    assert recipe(method, *HOT_AND_CUT).rollouts.engine == "transformers"


def test_a_method_without_a_ratio_samples_as_it_likes() -> None:
    assert recipe("paint", SERVER, *HOT_AND_CUT).rollouts.sampling.top_p == 0.95


def test_responses_that_are_one_step_old_need_a_ratio_and_servers() -> None:
    with pytest.raises(RecipeError, match=r"add method.distillation.ratio_cap=2"):
        recipe("paint", SERVER, "rollouts.ahead=1")
    with pytest.raises(RecipeError, match=r"'transformers' shares the trainer's .* engine=vllm_server"):
        recipe("sdpo", "rollouts.ahead=1")
    with pytest.raises(RecipeError, match=r"samples nothing; set rollouts.ahead=0"):
        recipe("sft", SERVER, "rollouts.ahead=1")
    assert recipe("paint", SERVER, "rollouts.ahead=1", "method.distillation.ratio_cap=2").rollouts.ahead == 1
    assert recipe("grpo", SERVER, "rollouts.ahead=1").rollouts.ahead == 1


def test_a_thinking_budget_is_for_evaluation() -> None:
    with pytest.raises(RecipeError, match=r"thinking_budget .* set it in evaluation.sampling only"):
        recipe("paint", "rollouts.sampling.thinking_budget=16")
    assert recipe("paint", "evaluation.sampling.thinking_budget=16").evaluation.sampling.thinking_budget == 16


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://a", "http://", "server"])
def test_an_address_that_is_none_is_named(url: str) -> None:
    with pytest.raises(RecipeError, match=r"rollouts.server.urls: .* is no server's address"):
        recipe("paint", f"rollouts.server.urls={url}")


def test_addresses_are_kept_without_a_slash_and_named_once() -> None:
    urls = recipe("paint", "rollouts.server.urls=[http://a:1/, 'http://b:2']").rollouts.server.urls
    assert urls == ("http://a:1", "http://b:2")
    with pytest.raises(RecipeError, match="names a server twice"):
        recipe("paint", "rollouts.server.urls=[http://a:1/, 'http://a:1']")


def test_a_resumed_run_may_look_for_its_servers_elsewhere_but_not_sample_otherwise() -> None:
    before = recipe("sdpo", SERVER)
    moved = recipe("sdpo", SERVER, "rollouts.server.urls=http://b:2", "rollouts.server.retries=9")
    assert resume_conflicts(before, moved) == {}
    assert "rollouts.engine" in resume_conflicts(before, recipe("sdpo"))


def test_a_temperature_that_vllm_does_not_take_is_refused_before_anything_is_drawn() -> None:
    with pytest.raises(RecipeError, match=r"evaluation.sampling.temperature is 2.5, and vLLM takes 2 at most"):
        recipe("paint", SERVER, "evaluation.sampling.temperature=2.5")
    assert recipe("paint", "evaluation.sampling.temperature=2.5").evaluation.sampling.temperature == 2.5
