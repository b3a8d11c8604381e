"""The command line: train, evaluate, compare, demo, methods, doctor."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from selfdistill import __version__
from selfdistill.errors import SelfDistillError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    parsed = parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = parsed.run
    try:
        return run(parsed)
    except SelfDistillError as error:
        print(f"selfdistill: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("selfdistill: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `selfdistill methods | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def parser() -> argparse.ArgumentParser:
    """Return the argument parser with all commands."""
    from selfdistill import commands

    top = argparse.ArgumentParser(prog="selfdistill", description="Post-train reasoning language models on their own rollouts.")
    top.add_argument("--version", action="version", version=f"selfdistill {__version__}")
    sub = top.add_subparsers(required=True, metavar="COMMAND")

    train = sub.add_parser("train", help="run a recipe", description="Run a recipe; settings can be overridden: train.steps=50 method.context.hidden_wrong=0.25")
    train.add_argument("recipe", help="YAML file")
    train.add_argument("overrides", nargs="*", metavar="key=value")
    train.add_argument("--resume", action="store_true", help="go on with the run in the run folder")
    train.set_defaults(run=commands.train)

    evaluate = sub.add_parser("evaluate", help="evaluate a model or a finished run", description="Evaluate a recipe's model, or the final model of a run folder.")
    evaluate.add_argument("target", help="recipe (YAML file) or run folder")
    evaluate.add_argument("overrides", nargs="*", metavar="key=value")
    evaluate.add_argument("--out", help="folder for generations.jsonl and result.json (an interrupted evaluation goes on)")
    evaluate.add_argument("--rescore", metavar="GENERATIONS", help="verify the generations in this file again instead of sampling")
    evaluate.set_defaults(run=commands.evaluate)

    compare = sub.add_parser("compare", help="several recipes x seeds, one table", description="Run several recipes with several seeds and print one table with intervals. Resumable.")
    compare.add_argument("recipes", nargs="+", metavar="RECIPE | key=value")
    compare.add_argument("--seeds", type=_positive, default=1, help="seeds 0 .. N-1 (default 1)")
    compare.add_argument("--jobs", type=_positive, default=None, help="runs side by side (default: one per core on a CPU, else 1)")
    compare.add_argument("--out", default="runs/compare", help="folder of the runs and the table (default runs/compare)")
    compare.set_defaults(run=commands.compare)

    demo = sub.add_parser("demo", help="PAINT and SC-SDPO on the embedded model, minutes on two CPU cores")
    demo.add_argument("overrides", nargs="*", metavar="key=value")
    demo.add_argument("--out", default="runs/demo", help="folder of the runs (default runs/demo)")
    demo.set_defaults(run=commands.demo)

    methods = sub.add_parser("methods", help="the methods and what they are made of")
    methods.add_argument("name", nargs="?", help="print this method's parts and settings")
    methods.add_argument("overrides", nargs="*", metavar="setting=value")
    methods.set_defaults(run=commands.methods)

    doctor = sub.add_parser("doctor", help="what is installed, which device, what would not work and the remedy")
    doctor.set_defaults(run=commands.doctor)
    return top


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
