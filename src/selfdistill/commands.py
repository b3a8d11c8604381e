"""What each command does, in terms of the library.

Heavy imports wait until a command needs them, so that `selfdistill methods` is quick.
"""

from __future__ import annotations

import argparse
import shutil
from contextlib import nullcontext
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from selfdistill.errors import RecipeError, RolloutError

if TYPE_CHECKING:
    from selfdistill.training.alarms import Alarm
    from selfdistill.training.recipe import Recipe
    from selfdistill.training.run import RunResult

DEMO = ("paint", "sc_sdpo")
"""The embedded recipes of ``selfdistill demo``."""
REPORT = "report.html"


def train(arguments: argparse.Namespace) -> int:
    """``selfdistill train RECIPE [key=value ...] [--resume | --auto-resume] [--nproc N | --ray]``."""
    from selfdistill.parallel.failures import reported
    from selfdistill.parallel.launch import end_with_launcher, launch

    end_with_launcher()
    _require_launcher(arguments)
    if arguments.nproc is not None:
        how = [flag for flag in ("--resume", "--auto-resume") if getattr(arguments, flag[2:].replace("-", "_"))]
        words = ["train", arguments.recipe, *arguments.overrides, *how]
        return launch(words, arguments.nproc, restarts=arguments.restarts)
    if arguments.ray:
        from selfdistill.parallel.ray_command import train_on_ray

        return train_on_ray(arguments)
    return reported(lambda: _train(arguments))


def _train(arguments: argparse.Namespace) -> int:
    """Train in this process, which may be one of several; the first of them speaks to the user."""
    from selfdistill.parallel.launch import command_line, rank
    from selfdistill.training.auto_resume import finished_result, has_run, is_restart
    from selfdistill.training.progress import NullProgress, make_progress
    from selfdistill.training.recipe import load_recipe
    from selfdistill.training.run import train as run

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    automatic = arguments.auto_resume or is_restart()
    result = finished_result(recipe) if automatic else None
    if result is None:
        resume = has_run(recipe) if automatic else arguments.resume
        with make_progress() if rank() == 0 else nullcontext(NullProgress()) as progress:
            result = run(recipe, resume=resume, progress=progress)
    if rank() == 0:
        print_result(recipe, result, command_line(["train", arguments.recipe, *arguments.overrides, "--resume"]))
    return 0


def print_result(recipe: Recipe, result: RunResult, again: str) -> None:
    """Print how a run ended; ``again`` is the command that goes on with one that was stopped."""
    from selfdistill.evaluation.compare import compare_results

    if not result.finished:
        print(f"stopped after step {result.step} of {recipe.train.steps}; go on with: {again}")
        return
    for step, evaluation in sorted(result.evaluations.items()):
        print(f"step {step:>5}  {evaluation}")
    if len(result.evaluations) > 1:
        first, last = min(result.evaluations), max(result.evaluations)
        change = compare_results(result.evaluations[first], result.evaluations[last], level=recipe.evaluation.level)
        print(f"step {last} against step {first}: {change}")
    if result.stopped_early is not None:
        _print_early_stop(recipe, result, result.stopped_early)
    print(f"run folder: {result.folder}")


def _print_early_stop(recipe: Recipe, result: RunResult, alarm: Alarm) -> None:
    """Print why a run ended before its last step, what to take from it, and how to go on nevertheless."""
    import shlex

    best = result.best_step
    print(f"stopped early, after step {result.step} of {recipe.train.steps}: warnings.stop_on has {alarm.name!r}")
    print(alarm.text)
    if best is None:
        print("no checkpoint is known to be the best; set train.evaluate_every, and train.keep_best=true")
    else:
        run, out = str(result.folder), f"{result.folder}-best"
        export = shlex.join(["selfdistill", "export", run, "--checkpoint", "best", "--out", out])
        print(f"the best checkpoint is that of step {best}; take it with: {export}")
        before = result.evaluations.get(0)
        if before is not None and best in result.evaluations and before.avg.mean >= result.evaluations[best].avg.mean:
            print(f"but the model before training, with {before.avg.mean:.1%}, is no worse")
    print("to go on nevertheless: --resume with warnings.stop_on=[]")


def _require_launcher(arguments: argparse.Namespace) -> None:
    """Refuse an option of a launcher that was not asked for: it would be silently ignored."""
    of_ray: dict[str, object] = {"workers": 1, "address": None, "gpus_per_worker": None, "cpus_per_worker": 1.0}
    of_ray |= {"max_failures": 0, "placement": "PACK", "servers": 0}
    for launcher, wanted, options in (
        ("--nproc", arguments.nproc is not None, {"restarts": 0}),
        ("--ray", arguments.ray, of_ray),
    ):
        for name, default in options.items():
            value = getattr(arguments, name)
            if not wanted and value != default:
                raise RecipeError(f"--{name.replace('_', '-')} is {value}, but it is for {launcher}; add {launcher}")


def serve(arguments: argparse.Namespace) -> int:
    """``selfdistill serve RECIPE [key=value ...] [--run] [--python PATH]``."""
    from selfdistill.rollouts.serve import as_script, serve_commands, served_model
    from selfdistill.rollouts.serve_processes import run_servers
    from selfdistill.rollouts.vllm_install import REMEDY, find_vllm
    from selfdistill.training.recipe import load_recipe

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    install = find_vllm(arguments.python)
    if install is None and (arguments.start or arguments.python):  # before a model is loaded and written
        where = f" for {arguments.python}" if arguments.python else ""
        raise RolloutError(f"vLLM is not installed{where}; {REMEDY}")
    seed = recipe.train.seed
    source = served_model(recipe.model, seed, recipe.folder / "served")
    commands = serve_commands(recipe.model, recipe.rollouts, recipe.needs(), source=source, seed=seed, install=install)
    remarks = []
    if recipe.rollouts.engine != "vllm_server":
        remarks.append(f"The recipe samples with {recipe.rollouts.engine}: train it with rollouts.engine=vllm_server.")
    if install is None:
        remarks.append(f"vLLM was not found; {REMEDY}.")
    print(as_script(commands, remarks), flush=True)
    return run_servers(commands) if arguments.start else 0


def demo(arguments: argparse.Namespace) -> int:
    """``selfdistill demo``: PAINT and SC-SDPO on the embedded model and task."""
    from selfdistill.study_commands import run_all
    from selfdistill.training.studies import of_recipes

    folder = Path(str(files("selfdistill"))) / "recipes" / "embedded"
    out = Path(arguments.out)
    _clear_finished_demo(out)
    print("Training PAINT and SC-SDPO on the embedded model: multi-step arithmetic, 0.9M parameters.", flush=True)
    recipes = [str(folder / f"{name}.yaml") for name in DEMO]
    code = run_all(of_recipes(recipes, arguments.overrides), arguments.overrides, out)
    if code == 0:
        _show_demo(out)
    return code


def _show_demo(out: Path) -> None:
    """Write the report of the demo's runs, and say how to look closer."""
    from selfdistill.analysis.figures.style import has_matplotlib
    from selfdistill.report_commands import write_report

    if has_matplotlib():
        page = out / REPORT
        write_report([out], page)
        print(f"report: {page}, to be opened in a browser")
    print(f"token by token: selfdistill inspect {out / f'{DEMO[0]}-seed0'}")


def methods(arguments: argparse.Namespace) -> int:
    """``selfdistill methods [NAME [setting=value ...]]``."""
    from selfdistill.methods import build, names, summary
    from selfdistill.methods.describe import describe
    from selfdistill.methods.table import method_table
    from selfdistill.training.recipe_file import split_override

    if arguments.name is None:
        print(method_table([build(name) for name in names()]))
        print("\n`selfdistill methods NAME` prints a method's parts and settings.")
        return 0
    method = build(arguments.name, **dict(split_override(override) for override in arguments.overrides))
    print(f"# {summary(arguments.name)}.")
    print(describe(method), end="")
    return 0


def doctor(arguments: argparse.Namespace) -> int:
    """``selfdistill doctor [RECIPE [key=value ...]]``: this machine, or what a recipe needs."""
    from selfdistill.doctor import report
    from selfdistill.planning_commands import plan, refuse_options

    if arguments.recipe is not None:
        return plan(arguments)
    refuse_options(arguments)
    return report()


def _clear_finished_demo(out: Path) -> None:
    """Make room for the demo: a finished one is removed, so that it runs again; an interrupted one goes on.

    Raises:
        RecipeError: there is something in ``out`` that the demo did not write.
    """
    runs = [out / "base", *(out / f"{name}-seed0" for name in DEMO)]
    tables = (out / f"table.{ending}" for ending in ("md", "csv", "tex", "json"))
    own = {out / REPORT, *runs, *(run.with_name(f"{run.name}.log") for run in runs), *tables}
    if not out.is_dir():
        return
    others = sorted(path.name for path in out.iterdir() if path not in own)
    if others:
        raise RecipeError(
            f"{str(out)!r} holds {others[0]!r}, which is not the demo's; choose another folder with --out"
        )
    if (out / "table.json").exists():
        print(f"Removing the finished demo in {out}.", flush=True)
        shutil.rmtree(out)
