"""Evaluating without training: a recipe's model, a finished run's final model, or generations that are on disk already."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from selfdistill.errors import DataError, RecipeError
from selfdistill.evaluation.generations import rescore
from selfdistill.evaluation.result import EvaluationResult, summarise
from selfdistill.evaluation.run import evaluate
from selfdistill.models.loading import load_policy
from selfdistill.questions import LoadedData, load_data, require
from selfdistill.rollouts.transformers_sampler import TransformersSampler
from selfdistill.training.progress import Progress
from selfdistill.training.recipe import Recipe, load_recipe
from selfdistill.training.run_folder import RunFolder


def recipe_of(target: str, overrides: Sequence[str]) -> Recipe:
    """Return the recipe to evaluate: that of a file, or that of a run folder with the run's final model in place of its initial one.

    Raises:
        RecipeError: neither a file nor a run folder with a final model.
    """
    folder = RunFolder(Path(target))
    if not folder.path.is_dir():
        return load_recipe(target, overrides)
    if not folder.final.is_dir():
        raise RecipeError(f"{target!r} is a folder without a final model; give a finished run's folder, or a recipe with model.path=FOLDER")
    own = [f"model.path={folder.final}", "model.lora=null", f"output.folder={target}"]
    return load_recipe(folder.recipe, [*own, *overrides])


def evaluate_recipe(recipe: Recipe, out: Path, progress: Progress) -> EvaluationResult:
    """Sample and verify the recipe's held-out questions with its model; continue what is in ``out``."""
    data = _held_out(recipe)
    policy = load_policy(recipe.model, recipe.train.seed)
    sampler = TransformersSampler(
        policy.model, policy.chat, batch_tokens=recipe.rollouts.batch_tokens, max_rows=recipe.rollouts.max_rows
    )
    out.mkdir(parents=True, exist_ok=True)
    asked = len(data.eval[: recipe.evaluation.questions]) * recipe.evaluation.samples
    with progress.phase("evaluating", asked * recipe.evaluation.sampling.max_new_tokens):
        return evaluate(
            data.eval,
            sampler,
            policy.chat,
            data.verifier,
            recipe.evaluation,
            seed=recipe.data.seed,
            generations_path=out / "generations.jsonl",
            label=recipe.model.path,
            on_tokens=progress.advance,
        )


def rescore_file(recipe: Recipe, generations: Path) -> EvaluationResult:
    """Verify generations on disk again, with the recipe's verifier and answers; nothing is sampled."""
    data = _held_out(recipe)
    rescored = rescore(generations, data.eval, data.verifier)
    return summarise(rescored, equivalent=data.verifier.equivalent, level=recipe.evaluation.level)


def _held_out(recipe: Recipe) -> LoadedData:
    data = load_data(recipe.data)
    if not data.eval:
        raise DataError("the recipe has no held-out questions; set data.eval")
    require(data.eval, data.verifier.requires, "evaluation")
    return data
