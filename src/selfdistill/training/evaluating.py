"""Evaluating without training: a recipe's model, a finished run's final model, or generations that are on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import torch
from torch import nn

from selfdistill.errors import DataError, RecipeError, RolloutError
from selfdistill.evaluation.generations import rescore
from selfdistill.evaluation.result import EvaluationResult, summarise
from selfdistill.evaluation.run import evaluate
from selfdistill.models.loading import load_policy
from selfdistill.questions import LoadedData, load_data, require
from selfdistill.training.engines import make_engine
from selfdistill.training.progress import Progress
from selfdistill.training.recipe import Recipe, load_recipe
from selfdistill.training.run_folder import RunFolder, replace_text, write_json


def recipe_of(target: str, overrides: Sequence[str]) -> Recipe:
    """Return the recipe to evaluate: a file's, or a run folder's with the final model in place of the initial one.

    Raises:
        RecipeError: neither a file nor a run folder with a final model, or an override is wrong.
    """
    folder = RunFolder(Path(target))
    if not folder.path.is_dir():
        return load_recipe(target, overrides)
    if not folder.recipe.exists():
        raise RecipeError(f"{target!r} is no run folder: it has no recipe.yaml; give a run's folder, or a recipe")
    if not folder.final.is_dir():
        raise RecipeError(
            f"the run in {target!r} has no final model yet; finish it with `selfdistill train ... --resume`, "
            "or give a recipe with model.path=FOLDER"
        )
    changes = {"model": {"path": str(folder.final), "lora": None}, "output": {"folder": target}}
    return load_recipe(folder.recipe, overrides, changes=changes)


def evaluate_recipe(recipe: Recipe, out: Path | None, progress: Progress) -> tuple[EvaluationResult, Path]:
    """Sample and verify the recipe's held-out questions with its model; continue what is there already.

    Args:
        recipe: names model, questions and settings.
        out: folder of generations.jsonl, result.json and recipe.yaml; by default one below the recipe's run folder
            that belongs to exactly these weights, questions and settings.
        progress: where to show it.

    Returns:
        The result, and the folder that it is in.

    Raises:
        RolloutError: the engine fails; the same command goes on with what had not finished.
    """
    if out is not None and RunFolder(out).metrics.exists():
        raise RecipeError(f"--out {str(out)!r} holds a training run; choose another folder")
    data = _held_out(recipe)
    policy = load_policy(recipe.model, recipe.train.seed, keep_adapters=True)
    weights = fingerprint(policy.model)
    folder = out or recipe.folder / "evaluations" / f"of-{_key(recipe, weights)}"
    asked = len(data.eval[: recipe.evaluation.questions]) * recipe.evaluation.samples
    with closing(make_engine(policy, recipe, folder)) as engine:
        try:
            engine.sync("evaluated")
            with progress.phase("evaluating", asked * recipe.evaluation.sampling.max_new_tokens):
                result = evaluate(
                    data.eval,
                    engine,
                    policy.chat,
                    data.verifier,
                    recipe.evaluation,
                    seed=recipe.data.seed,
                    generations_path=folder / "generations.jsonl",
                    label=f"{recipe.model.path}, weights {weights}",
                    on_tokens=progress.advance,
                    on_responses=progress.responses,
                )
        except RolloutError as error:
            raise RolloutError(
                f"{str(error).rstrip('.')}; the responses that had finished are kept in {str(folder)!r}, and the same "
                "command goes on from there"
            ) from error
    replace_text(folder / "recipe.yaml", recipe.to_yaml())
    write_json(folder / "result.json", result.to_json())
    return result, folder


def rescore_file(recipe: Recipe, generations: Path) -> EvaluationResult:
    """Verify generations on disk again, with the recipe's verifier and answers; nothing is sampled.

    The file's verdicts and the result.json beside it are replaced.
    """
    data = _held_out(recipe)
    rescored = rescore(generations, data.eval, data.verifier)
    result = summarise(rescored, equivalent=data.verifier.equivalent, level=recipe.evaluation.level)
    write_json(generations.with_name("result.json"), result.to_json())
    return result


def fingerprint(model: nn.Module) -> str:
    """Return a short text that differs between weights: a hash of 64 values of every parameter.

    Why: a model folder may hold other weights than when it was evaluated (a run that went on).
    """
    digest = hashlib.blake2b(digest_size=5)
    for name, parameter in model.named_parameters():
        values = parameter.detach().reshape(-1)
        sample = values[:: max(1, len(values) // 64)][:64].to("cpu", torch.float32)
        digest.update(name.encode() + sample.numpy().tobytes())
    return digest.hexdigest()


def _key(recipe: Recipe, weights: str) -> str:
    asked = recipe.model_dump_json(include={"data", "evaluation"})
    return hashlib.blake2b(f"{weights} {asked}".encode(), digest_size=5).hexdigest()


def _held_out(recipe: Recipe) -> LoadedData:
    data = load_data(recipe.data)
    if not data.eval:
        raise DataError("the recipe has no held-out questions; set data.eval or data.eval_questions")
    require(data.eval, data.verifier.requires, "evaluation")
    return data
