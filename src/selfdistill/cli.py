"""The command line: train, evaluate, serve, compare, demo, methods, doctor."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable, Sequence

from selfdistill import __version__, commands
from selfdistill.errors import SelfDistillError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
"""System errors that are the machine's state rather than a bug."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    parsed = parse(arguments)
    run: Callable[[argparse.Namespace], int] = parsed.run
    try:
        return run(parsed)
    except SelfDistillError as error:
        return _failed(str(error))
    except KeyboardInterrupt:
        print("selfdistill: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `selfdistill methods | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        return _failed(f"{error.filename or 'a file'} cannot be written or read: {error.strerror}")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse a command line. Settings may also stand behind the options, where argparse by itself takes none."""
    top = parser()
    parsed, late = top.parse_known_args(arguments)
    if late and (not hasattr(parsed, parsed.words) or any(word.startswith("-") for word in late)):
        top.error(f"unrecognized arguments: {' '.join(late)}")
    if late:
        getattr(parsed, parsed.words).extend(late)
    return parsed


def parser() -> argparse.ArgumentParser:
    """Return the argument parser with all commands."""
    top = argparse.ArgumentParser(
        prog="selfdistill", description="Post-train reasoning language models on their own rollouts."
    )
    top.add_argument("--version", action="version", version=f"selfdistill {__version__}")
    sub = top.add_subparsers(required=True, metavar="COMMAND")
    for add in (_train, _evaluate, _serve, _compare, _demo, _methods, _doctor):
        add(sub)
    return top


Commands = argparse._SubParsersAction  # the type that add_subparsers returns has no public name


def _train(sub: Commands[argparse.ArgumentParser]) -> None:
    command = sub.add_parser(
        "train",
        help="run a recipe",
        description="Run a recipe; settings can be overridden: train.steps=50 method.context.hidden_wrong=0.25",
    )
    command.add_argument("recipe", help="YAML file")
    command.add_argument("overrides", nargs="*", metavar="key=value")
    command.add_argument("--resume", action="store_true", help="go on with the run in the run folder")
    command.set_defaults(run=commands.train, words="overrides")


def _evaluate(sub: Commands[argparse.ArgumentParser]) -> None:
    command = sub.add_parser(
        "evaluate",
        help="evaluate a model or a finished run",
        description="Evaluate a recipe's model, or the final model of a run folder, on the held-out questions.",
    )
    command.add_argument("target", help="recipe (YAML file) or run folder")
    command.add_argument("overrides", nargs="*", metavar="key=value")
    where = command.add_mutually_exclusive_group()
    where.add_argument("--out", help="folder for generations.jsonl and result.json (an interrupted evaluation goes on)")
    where.add_argument(
        "--rescore", metavar="GENERATIONS", help="verify the generations in this file again instead of sampling"
    )
    command.set_defaults(run=commands.evaluate, words="overrides")


def _serve(sub: Commands[argparse.ArgumentParser]) -> None:
    command = sub.add_parser(
        "serve",
        help="the vLLM servers that a recipe's rollouts want",
        description="Print the commands that start vLLM so that it can serve a recipe, or run them.",
    )
    command.add_argument("recipe", help="YAML file")
    command.add_argument("overrides", nargs="*", metavar="key=value")
    # `run` is the command's function.
    command.add_argument(
        "--run", dest="start", action="store_true", help="start the servers of this machine, until Ctrl-C ends them"
    )
    command.add_argument("--python", metavar="PATH", help="the Python that has vLLM (default: look for it)")
    command.set_defaults(run=commands.serve, words="overrides")


def _compare(sub: Commands[argparse.ArgumentParser]) -> None:
    command = sub.add_parser(
        "compare",
        help="several recipes x seeds, one table",
        description="Run several recipes with several seeds and print one table with intervals. Resumable.",
    )
    command.add_argument("recipes", nargs="+", metavar="RECIPE | key=value")
    command.add_argument("--seeds", type=_positive, default=1, help="seeds 0 .. N-1 (default 1)")
    command.add_argument(
        "--jobs", type=_positive, default=None, help="runs side by side (default: one per core on a CPU, else 1)"
    )
    command.add_argument(
        "--out", default="runs/compare", help="folder of the runs and the table (default runs/compare)"
    )
    command.set_defaults(run=commands.compare, words="recipes")


def _demo(sub: Commands[argparse.ArgumentParser]) -> None:
    command = sub.add_parser("demo", help="PAINT and SC-SDPO on the embedded model, minutes on two CPU cores")
    command.add_argument("overrides", nargs="*", metavar="key=value")
    command.add_argument("--out", default="runs/demo", help="folder of the runs (default runs/demo)")
    command.set_defaults(run=commands.demo, words="overrides")


def _methods(sub: Commands[argparse.ArgumentParser]) -> None:
    command = sub.add_parser("methods", help="the methods and what they are made of")
    command.add_argument("name", nargs="?", help="print this method's parts and settings")
    command.add_argument("overrides", nargs="*", metavar="setting=value")
    command.set_defaults(run=commands.methods, words="overrides")


def _doctor(sub: Commands[argparse.ArgumentParser]) -> None:
    command = sub.add_parser("doctor", help="what is installed, which device, what would not work and the remedy")
    command.set_defaults(run=commands.doctor, words="none")


def _failed(message: str) -> int:
    """Print one line, whatever a file name or a model's text in it contains."""
    line = " ".join(message.split())
    print(f"selfdistill: {''.join(filter(str.isprintable, line))}", file=sys.stderr)
    return 1


def _positive(text: str) -> int:
    value = int(text) if text.isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
