"""From a checkpoint of a run to a plain transformers or PEFT folder, on one process, however many wrote it."""

from __future__ import annotations

from pathlib import Path

from selfdistill.checkpoints import CheckpointFolder
from selfdistill.checkpoints.reading import put_weights, read_weights
from selfdistill.errors import TrainingError
from selfdistill.models.loading import load_policy, save_pretrained
from selfdistill.training.card import model_card
from selfdistill.training.recipe import Recipe, load_recipe
from selfdistill.training.run_folder import RunFolder


def export_checkpoint(run: Path, out: Path, which: str = "last") -> int:
    """Write the model, or the adapters, of a checkpoint into a new folder for ``from_pretrained``, with a model card.

    Args:
        run: the run folder; the run may still be going on.
        out: the new folder.
        which: ``last``, ``best`` (by the evaluations during the run) or a step.

    Returns:
        The checkpoint's step.

    Raises:
        TrainingError: there is no such run or checkpoint, it is damaged, or ``out`` is taken.
        ModelError: the recipe's model cannot be loaded, or ``out`` cannot be written.
    """
    folder = RunFolder(run)
    if not folder.recipe.exists():
        raise TrainingError(f"{str(run)!r} is no run folder: it has no recipe.yaml; give the folder of a run")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise TrainingError(f"--out: {str(out)!r} holds something already; choose a new folder")
    step = chosen_step(CheckpointFolder(folder.checkpoints), which)
    path = CheckpointFolder(folder.checkpoints).of(step)
    weights = read_weights(path)
    recipe = load_recipe(folder.recipe)
    policy = load_policy(_on_cpu(recipe).model, recipe.train.seed)
    try:
        put_weights(policy.model, weights)
    except ValueError as error:
        raise TrainingError(
            f"the checkpoint {str(path)!r} does not fit the model {recipe.model.path!r} of {str(folder.recipe)!r} "
            f"({error}); has that model changed since?"
        ) from None
    evaluations = {at: result for at, result in folder.read_evaluations().items() if at <= step}
    save_pretrained(policy, out, model_card(recipe, step, evaluations))
    return step


def _on_cpu(recipe: Recipe) -> Recipe:
    """Return the recipe for a machine that needs no GPU, nor the attention kernels that training used."""
    changes = {"device": "cpu", "attention": "eager", "gradient_checkpointing": False}
    return recipe.model_copy(update={"model": recipe.model.model_copy(update=changes)})


def chosen_step(folder: CheckpointFolder, which: str) -> int:
    """Return the step of the checkpoint that ``which`` names: ``last``, ``best`` or a step.

    Raises:
        TrainingError: there is no such checkpoint.
    """
    steps = folder.steps()
    if not steps:
        raise TrainingError(f"there is no checkpoint in {str(folder.path)!r}; the run has not saved one yet")
    there = ", ".join(map(str, steps))
    if which == "last":
        return steps[-1]
    if which == "best":
        best = folder.best()
        if best is None:
            raise TrainingError(
                f"no checkpoint in {str(folder.path)!r} is known to be the best: the run has not evaluated one, or "
                f"train.keep_best is false; choose a step of {there}, or last"
            )
        return best.step
    if not which.isdigit() or int(which) not in steps:
        raise TrainingError(
            f"--checkpoint: there is no {which!r} in {str(folder.path)!r}; choose of last, best, {there}"
        )
    return int(which)
