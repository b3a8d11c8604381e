"""The command line: one subcommand each for training, looking, evaluating, comparing and planning."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
from collections.abc import Callable, Sequence

from selfdistill import (
    __version__,
    analysis_commands,
    checkpoint_commands,
    commands,
    data_commands,
    evaluate_commands,
    report_commands,
    study_commands,
    watch_commands,
)
from selfdistill.argument_types import above_zero, natural, none_or_more, positive, share
from selfdistill.errors import SelfDistillError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
"""System errors that are the machine's state rather than a bug."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    parsed = parse(arguments)
    run: Callable[[argparse.Namespace], int] = parsed.run
    try:
        code = run(parsed)
        if arguments is None:  # the process is about to end: a second Ctrl-C must not turn a stop into a failure
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        return code
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
    for add in (
        _train,
        _data,
        _evaluate,
        _difference,
        _export,
        _serve,
        _compare,
        _ablate,
        _demo,
        _methods,
        _doctor,
        analysis_commands.add_inspect,
        analysis_commands.add_probe,
        report_commands.add_report,
        watch_commands.add_watch,
    ):
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
    going_on = command.add_mutually_exclusive_group()
    going_on.add_argument("--resume", action="store_true", help="go on with the run in the run folder")
    going_on.add_argument(
        "--auto-resume", action="store_true", help="go on if the run folder holds a run, else begin: for requeued jobs"
    )
    processes = command.add_argument_group("several processes (torchrun starts them too; see docs/scaling.md)")
    launcher = processes.add_mutually_exclusive_group()
    launcher.add_argument("--nproc", type=positive, metavar="N", help="processes of this machine, one per GPU")
    launcher.add_argument("--ray", action="store_true", help="workers of a Ray cluster")
    processes.add_argument(
        "--restarts", type=natural, default=0, metavar="K", help="with --nproc: start again so often when one fails"
    )
    _ray_options(processes)
    command.set_defaults(run=commands.train, words="overrides")


def _ray_options(command: argparse._ArgumentGroup) -> None:
    command.add_argument("--workers", type=positive, default=1, metavar="N", help="with --ray (default 1)")
    command.add_argument(
        "--address", metavar="ADDRESS", help="with --ray: auto, host:port or ray://host:port (default: a local cluster)"
    )
    command.add_argument(
        "--gpus-per-worker", type=none_or_more, metavar="G", help="with --ray (default: 1 where there are GPUs)"
    )
    command.add_argument(
        "--cpus-per-worker", type=none_or_more, default=1.0, metavar="C", help="with --ray (default 1)"
    )
    command.add_argument(
        "--max-failures", type=natural, default=0, metavar="K", help="with --ray: start all again so often"
    )
    command.add_argument(
        "--placement",
        choices=("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"),
        default="PACK",
        help="with --ray: how workers are put on nodes (default PACK)",
    )
    command.add_argument(
        "--servers", type=natural, default=0, metavar="M", help="with --ray: also run so many vLLM servers"
    )


def _evaluate(sub: Commands[argparse.ArgumentParser]) -> None:
    command = sub.add_parser(
        "evaluate",
        help="evaluate a model or a finished run, on its held-out questions or on benchmarks",
        description="Evaluate a recipe's model, the final model of a run folder, or a model (folder, hub id, embedded, "
        "smollm2), on the recipe's held-out questions or on benchmarks. An interrupted evaluation goes on.",
    )
    command.add_argument("asked", nargs="*", metavar="TARGET | key=value", help="recipe, run folder or model; settings")
    command.add_argument("--benchmark", metavar="A,B", help="benchmarks, for example aime24,aime25,hmmt25")
    command.add_argument("--preset", metavar="NAME", help="a published protocol: samples, sampling and thinking")
    command.add_argument("--list", action="store_true", help="print the benchmarks and presets with their sources")
    command.add_argument("--data", metavar="FOLDER", help="where local files are (default: $SELFDISTILL_DATA)")
    command.add_argument("--out", metavar="FOLDER", help="folder of the responses and results")
    instead = command.add_mutually_exclusive_group()
    instead.add_argument(
        "--rescore", metavar="GENERATIONS", help="verify these responses (a file or folder) again instead of sampling"
    )
    instead.add_argument(
        "--import", dest="imported", metavar="FILE", help="score responses drawn elsewhere (JSON lines, lighteval)"
    )
    command.add_argument("--against", metavar="RESULT", help="compare with an earlier evaluation (folder or file)")
    command.add_argument("--export", metavar="KINDS", help="also write jsonl, lighteval, or both: jsonl,lighteval")
    command.set_defaults(run=evaluate_commands.evaluate, words="asked")


def _difference(sub: Commands[argparse.ArgumentParser]) -> None:
    command = sub.add_parser(
        "difference",
        help="compare two evaluations by a paired bootstrap",
        description="Say by how much an evaluation is better than another on the same problems, and whether they can "
        "tell. Give folders of evaluations, or their result.json.",
    )
    command.add_argument("baseline")
    command.add_argument("candidate")
    command.add_argument("--level", type=share, default=0.95, help="of the intervals (default 0.95)")
    command.add_argument("--out", metavar="FILE", help="also write the comparison as JSON")
    command.set_defaults(run=evaluate_commands.difference, words="none")


def _export(sub: Commands[argparse.ArgumentParser]) -> None:
    command = sub.add_parser(
        "export",
        help="a checkpoint of a run as a folder for transformers or PEFT",
        description="Write the model, or the adapters, of a run's checkpoint into a new folder that from_pretrained "
        "loads, with a model card. Needs no GPU, and one process, however many wrote the checkpoint.",
    )
    command.add_argument("target", metavar="RUN", help="run folder")
    command.add_argument("--out", required=True, metavar="FOLDER", help="new folder of the model")
    command.add_argument(
        "--checkpoint", default="last", metavar="WHICH", help="last (default), best (by avg@k), or a step"
    )
    command.set_defaults(run=checkpoint_commands.export, words="none")


def _data(sub: Commands[argparse.ArgumentParser]) -> None:
    command = sub.add_parser(
        "data",
        help="the questions of a recipe: how many, from where, and the first one",
        description="Load a recipe's questions and print counts, notes, and the first one as the model is asked it.",
    )
    command.add_argument("recipe", help="YAML file")
    command.add_argument("overrides", nargs="*", metavar="key=value")
    command.set_defaults(run=data_commands.data, words="overrides")


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
    command.add_argument(
        "--out", default="runs/compare", help="folder of the runs and the table (default runs/compare)"
    )
    _study_options(command, "1")
    command.set_defaults(run=study_commands.compare, words="recipes")


def _ablate(sub: Commands[argparse.ArgumentParser]) -> None:
    command = sub.add_parser(
        "ablate",
        help="a study, or one recipe under many settings, x seeds, one table",
        description="Run the rows of a study file, or a recipe under every combination of some settings' values. "
        "Resumable.",
    )
    command.add_argument("target", metavar="STUDY | RECIPE", help="YAML file")
    command.add_argument("overrides", nargs="*", metavar="key=value")
    command.add_argument(
        "--over", action="append", default=[], metavar="key=value,value", help="a setting to vary; may be repeated"
    )
    command.add_argument(
        "--zip", action="store_true", help="pair the values of several --over instead of taking every combination"
    )
    command.add_argument("--out", help="folder of the runs and the table (default runs/<name of the file>)")
    _study_options(command, "what the study says, else 1")
    command.set_defaults(run=study_commands.ablate, words="overrides")


def _study_options(command: argparse.ArgumentParser, seeds: str) -> None:
    command.add_argument("--seeds", type=positive, default=None, help=f"seeds 0 .. N-1 (default: {seeds})")
    command.add_argument(
        "--jobs",
        type=positive,
        default=None,
        help="runs side by side (default: one per GPU; on a CPU one per core)",
    )
    command.add_argument("--against", metavar="ROW", help="also give paired differences against this row")
    command.add_argument("--keep-going", action="store_true", help="when a run fails, let the others run to their end")
    part = command.add_mutually_exclusive_group()
    part.add_argument("--list", action="store_true", help="print one command line per run, and run nothing")
    part.add_argument("--row", metavar="NAME", help="run this row only, with --seed")
    part.add_argument("--collect", action="store_true", help="make the table of what is finished, and run nothing")
    command.add_argument("--seed", type=natural, default=0, help="with --row: its seed (default 0)")


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
    command = sub.add_parser(
        "doctor",
        help="what is installed and what would not work; of a recipe: will it fit, and how long is a step",
        description="Without a recipe: what is installed, which device, what would not work and the remedy. With one: "
        "its memory, its tokens and its time per step, measured here if possible, and what to change if it does not "
        "fit (exit code 1). Nothing is trained or saved.",
    )
    command.add_argument("recipe", nargs="?", help="YAML file")
    command.add_argument("overrides", nargs="*", metavar="key=value")
    command.add_argument("--gpus", type=positive, default=1, metavar="N", help="GPUs of one node (default 1)")
    command.add_argument("--gpu-memory", type=above_zero, metavar="GIB", help="of one GPU (default: what is here)")
    measured = command.add_mutually_exclusive_group()
    measured.add_argument(
        "--measure", type=above_zero, metavar="SECONDS", help="to measure for (default 20, if model and data are here)"
    )
    measured.add_argument("--no-measure", action="store_true", help="load no weights")
    command.add_argument("--json", metavar="FILE", help="also write the plan as JSON")
    command.set_defaults(run=commands.doctor, words="overrides")


def _failed(message: str) -> int:
    """Print one line, whatever a file name or a model's text in it contains."""
    line = " ".join(message.split())
    print(f"selfdistill: {''.join(filter(str.isprintable, line))}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
