"""What each command does, in terms of the library. Heavy imports wait until a command needs them, so that `selfdistill methods` is quick."""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import yaml

from selfdistill.errors import RecipeError


def train(arguments: argparse.Namespace) -> int:
    """``selfdistill train RECIPE [key=value ...] [--resume]``."""
    from selfdistill.training.progress import make_progress
    from selfdistill.training.recipe import load_recipe
    from selfdistill.training.run import train as run

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    with make_progress() as progress:
        result = run(recipe, resume=arguments.resume, progress=progress)
    if not result.finished:
        again = " ".join(["selfdistill train", arguments.recipe, *arguments.overrides, "--resume"])
        print(f"stopped after step {result.step}; resume with: {again}")
        return 0
    for step, evaluation in sorted(result.evaluations.items()):
        print(f"step {step:>5}  {evaluation}")
    print(f"run folder: {result.folder}")
    return 0


def evaluate(arguments: argparse.Namespace) -> int:
    """``selfdistill evaluate TARGET [key=value ...] [--out FOLDER] [--rescore FILE]``."""
    from selfdistill.evaluation.result import EvaluationResult
    from selfdistill.training.evaluating import evaluate_recipe, recipe_of, rescore_file
    from selfdistill.training.progress import make_progress
    from selfdistill.training.run_folder import write_json

    recipe = recipe_of(arguments.target, arguments.overrides)
    out = Path(arguments.out) if arguments.out else recipe.folder / "evaluations" / "now"
    result: EvaluationResult
    if arguments.rescore:
        result = rescore_file(recipe, Path(arguments.rescore))
    else:
        with make_progress() as progress:
            result = evaluate_recipe(recipe, out, progress)
    write_json(out / "result.json", {"step": 0, "evaluations": {"0": result.to_json()}})
    print(result)
    print(f"result: {out / 'result.json'}")
    return 0


def compare(arguments: argparse.Namespace) -> int:
    """``selfdistill compare RECIPE ... [key=value ...] [--seeds N] [--jobs N] [--out FOLDER]``."""
    recipes = [word for word in arguments.recipes if "=" not in word]
    overrides = [word for word in arguments.recipes if "=" in word]
    if not recipes:
        raise RecipeError("compare needs at least one recipe file, for example recipes/embedded/paint.yaml")
    return _compare(recipes, overrides, arguments.seeds, arguments.jobs, Path(arguments.out))


def demo(arguments: argparse.Namespace) -> int:
    """``selfdistill demo``: PAINT and SC-SDPO on the embedded model and task."""
    folder = Path(str(files("selfdistill"))) / "recipes" / "embedded"
    recipes = [str(folder / f"{name}.yaml") for name in ("paint", "sc_sdpo")]
    out = Path(arguments.out)
    if (out / "table.json").exists():  # a finished demo is shown again from the start; an interrupted one goes on
        shutil.rmtree(out)
    print("Training PAINT and SC-SDPO on the embedded model: multi-step arithmetic, 0.8M parameters, CPU.", flush=True)
    return _compare(recipes, arguments.overrides, 1, None, out)


def methods(arguments: argparse.Namespace) -> int:
    """``selfdistill methods [NAME [setting=value ...]]``."""
    from selfdistill.methods import as_data, build, names
    from selfdistill.methods.table import method_table

    if arguments.name is None:
        print(method_table([build(name) for name in names()]))
        return 0
    settings = {}
    for override in arguments.overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise RecipeError(f"{override!r} has no value; write setting=value")
        settings[key] = yaml.safe_load(value)
    print(yaml.safe_dump(as_data(build(arguments.name, **settings)), sort_keys=False), end="")
    return 0


def doctor(arguments: argparse.Namespace) -> int:
    """``selfdistill doctor``."""
    from selfdistill.doctor import report

    return report()


def _compare(recipes: Sequence[str], overrides: Sequence[str], seeds: int, jobs: int | None, out: Path) -> int:
    from selfdistill.training import comparison
    from selfdistill.training.progress import make_progress

    with make_progress() as progress:
        lines = comparison.compare(
            recipes, overrides, seeds=seeds, jobs=jobs or _default_jobs(), out=out, progress=progress
        )
    print()
    print(comparison.table(lines))
    for line in lines:
        if line.against_base:
            print(f"{line.label}: {line.against_base}")
    print(f"\nrun folders: {', '.join(str(folder) for line in lines for folder in line.folders)}")
    print(f"table: {out / 'table.md'}, {out / 'table.json'}")
    return 0


def _default_jobs() -> int:
    import torch

    return 1 if torch.cuda.is_available() else max(1, os.cpu_count() or 1)
