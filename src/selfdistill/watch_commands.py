"""What `selfdistill watch` does, in terms of the library."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add_watch(sub: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    command = sub.add_parser(
        "watch",
        help="show runs that go on elsewhere: speed, accuracy, warnings",
        description="Show runs that go on in other processes or on other machines, from the files in their folders, "
        "until they are finished or Ctrl-C. Where the output is no terminal, they are shown once.",
    )
    command.add_argument("runs", nargs="+", metavar="RUN", help="run folder")
    command.add_argument("--once", action="store_true", help="show them once, in full, and return")
    command.set_defaults(run=watch, words="none")


def watch(arguments: argparse.Namespace) -> int:
    """``selfdistill watch RUN [RUN ...] [--once]``."""
    from selfdistill.training.watching import watch_runs

    try:
        watch_runs([Path(run) for run in arguments.runs], sys.stdout, once=arguments.once)
    except KeyboardInterrupt:
        return 0  # how one leaves it; the runs go on
    return 0
