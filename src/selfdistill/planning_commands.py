"""``selfdistill doctor RECIPE``: will it fit, how long does a step take, and what to change. Nothing is written."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from selfdistill.errors import RecipeError


def plan(arguments: argparse.Namespace) -> int:
    """``selfdistill doctor RECIPE [key=value ...]``: 1 if the recipe does not fit, else 0."""
    from selfdistill.planning.page import as_data, render
    from selfdistill.planning.plan import Request, make_plan
    from selfdistill.training.recipe import load_recipe

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    seconds = 0.0 if arguments.no_measure else arguments.measure
    made = make_plan(recipe, Request(arguments.gpus, arguments.gpu_memory, seconds))
    render(made)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(as_data(made), indent=2) + "\n", encoding="utf-8")
    return 0 if made.fits else 1


def refuse_options(arguments: argparse.Namespace) -> None:
    """Refuse options that mean nothing without a recipe.

    Raises:
        RecipeError: naming one.
    """
    given = {
        "--gpus": arguments.gpus != 1,
        "--gpu-memory": arguments.gpu_memory is not None,
        "--measure": arguments.measure is not None,
        "--no-measure": arguments.no_measure,
        "--json": arguments.json is not None,
    }
    for name, is_given in given.items():
        if is_given:
            raise RecipeError(f"{name} is about a recipe; write: selfdistill doctor RECIPE {name} ...")
