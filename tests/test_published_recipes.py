from pathlib import Path

from selfdistill import methods
from selfdistill.training.recipe import load_recipe

RECIPES = Path(__file__).resolve().parents[1] / "recipes"


def test_the_recipe_of_paint_has_the_published_settings():
    recipe = load_recipe(RECIPES / "paint" / "qwen3-1.7b.yaml")
    assert recipe.method == methods.build("paint")
    assert recipe.model.lora is not None
    assert (recipe.model.lora.r, recipe.model.lora.alpha) == (64, 128)
    sampling = recipe.rollouts.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.max_new_tokens) == (1.1, 0.95, 20, 1024)
    assert recipe.rollouts.thinking is False
    assert recipe.method.context.thinking is True
    train = recipe.train
    assert (train.steps, train.questions_per_step, train.learning_rate, train.evaluate_every) == (100, 32, 5e-6, 20)
    assert (train.grad_clip, train.weight_decay, train.warmup_steps) == (0.1, 0.0, 0)
    evaluation = recipe.evaluation
    assert (evaluation.samples, evaluation.sampling.temperature, evaluation.sampling.top_p) == (12, 1.0, 0.95)
    assert (evaluation.sampling.max_new_tokens, evaluation.thinking) == (38_912, True)


def test_the_recipe_of_sc_sdpo_has_the_published_settings():
    recipe = load_recipe(RECIPES / "sc_sdpo" / "qwen3-8b.yaml")
    assert recipe.method == methods.build("sc_sdpo")
    assert recipe.model.lora is None
    sampling = recipe.rollouts.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.max_new_tokens) == (1.0, 1.0, 0, 2048)
    assert (recipe.rollouts.max_prompt_tokens, recipe.rollouts.thinking) == (2048, False)
    train = recipe.train
    assert (train.steps, train.questions_per_step, train.learning_rate, train.warmup_steps) == (200, 32, 1e-5, 10)
    assert (train.grad_clip, train.weight_decay, train.schedule, train.updates_per_batch) == (1.0, 0.01, "constant", 1)
    evaluation = recipe.evaluation
    assert (evaluation.samples, evaluation.sampling.temperature, evaluation.sampling.top_p) == (16, 0.6, 0.95)
