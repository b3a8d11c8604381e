"""How a process of a run says why it failed, so that whoever started it can tell one cause from its consequences.

In: the exception that ends the process. Out: a :class:`Failure`, in the file that the launcher named (``--nproc``,
torchrun), and on standard error where the launcher does not print it.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from selfdistill.errors import DataError, ModelError, RecipeError, SelfDistillError, TrainingError

FILE = "SELFDISTILL_FAILURE"
"""Environment variable of ``--nproc``: where a process writes its :class:`Failure`."""
TORCH_FILE = "TORCHELASTIC_ERROR_FILE"
"""Environment variable of torchrun: the same, in its format."""
LOST = re.compile(
    r"gloo.*(closed by peer|reset by peer|broken pipe|connection refused|timed out)"
    r"|connection (closed|was reset|reset) by (remote )?peer|ncclRemoteError|NCCL communicator was aborted",
    re.IGNORECASE | re.DOTALL,
)
"""What torch says when a process at the other end is gone."""
HEARD = re.compile(r"process \d+ of \d+ failed: ")
"""How an error begins that all processes raise because one of them did."""

Kind = Literal["input", "run", "bug", "peer"]
"""``input``: starting again would not help. ``run``: it may. ``bug``: not ours to explain. ``peer``: another process
failed, and this one only noticed."""
CAUSES: tuple[Kind, ...] = ("input", "run", "bug", "peer")
"""Most telling first."""


class PeerError(TrainingError):
    """Another process of the run has failed; its own message says why."""


_tellers: list[Callable[[Failure], None]] = []


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a process ended."""

    rank: int
    kind: Kind
    text: str
    """One line; the traceback for ``bug``."""
    at: float
    """By the machine's monotonic clock."""

    def save(self, file: Path) -> None:
        """Write it where the launcher looks for it."""
        file.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, file: Path) -> Failure | None:
        """Return what a process wrote; None if it wrote nothing, or was ended while it wrote."""
        try:
            return cls(**json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None


def describe(error: BaseException, rank: int) -> Failure:
    """Return what there is to say about an exception."""
    kind = _kind(error)
    if kind == "bug":
        return Failure(rank, kind, "".join(traceback.format_exception(error)).rstrip(), time.monotonic())
    text = str(error) if isinstance(error, SelfDistillError) else "the connection to another process was lost"
    return Failure(rank, kind, one_line(text), time.monotonic())


def tell_through(teller: Callable[[Failure], None]) -> None:
    """Have :func:`tell` hand this process's failures to ``teller``: where there is neither file nor terminal (Ray)."""
    _tellers.append(teller)


def first_cause(failures: Iterable[Failure]) -> Failure | None:
    """Return the failure that the others follow from: of the most telling kind the earliest."""
    return min(failures, key=lambda failure: (CAUSES.index(failure.kind), failure.at), default=None)


def reported(work: Callable[[], int], environment: Mapping[str, str] = os.environ) -> int:
    """Do a process's work and return its exit code; tell its launcher if it fails.

    With one process nothing is different: errors go on to the command line.
    """
    if int(environment.get("WORLD_SIZE", "1")) == 1 and FILE not in environment:
        return work()
    try:
        return work()
    except Exception as error:
        failure = describe(error, int(environment.get("RANK", "0")))
        tell(failure, environment)
        return 1


def tell(failure: Failure, environment: Mapping[str, str] = os.environ) -> None:
    """Write a failure where the launcher looks for it, and print it unless the launcher does.

    A consequence is printed by nobody but the launcher: the process that failed first speaks for itself.
    """
    if _tellers:
        _tellers[-1](failure)
        return
    if FILE in environment:
        failure.save(Path(environment[FILE]))
        return
    if TORCH_FILE in environment:
        _save_for_torch(failure, Path(environment[TORCH_FILE]))
    elif failure.kind == "peer" and failure.rank > 0:
        return
    if failure.kind != "peer" or TORCH_FILE not in environment:
        print(said(failure), file=sys.stderr, flush=True)


def said(failure: Failure) -> str:
    """Return a failure as it is printed: with the rank, each line of a traceback too."""
    lines = failure.text.splitlines() or [""]
    return "\n".join(f"selfdistill: [rank {failure.rank}] {line}" for line in lines)


def one_line(text: str) -> str:
    """Return a message as one printable line."""
    return "".join(filter(str.isprintable, " ".join(text.split())))


def _kind(error: BaseException) -> Kind:
    if isinstance(error, PeerError) or HEARD.match(str(error)):
        return "peer"
    if isinstance(error, (RecipeError, DataError, ModelError)):
        return "input"
    if isinstance(error, SelfDistillError):
        return "run"
    return "peer" if isinstance(error, RuntimeError | OSError) and LOST.search(str(error)) else "bug"


def _save_for_torch(failure: Failure, file: Path) -> None:
    """Write what torchrun's summary shows; it takes the earliest for the cause, in whole seconds."""
    at = int(time.time()) + (2 if failure.kind == "peer" else 0)
    message = {"message": failure.text, "extraInfo": {"py_callstack": failure.text, "timestamp": str(at)}}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"message": message}), encoding="utf-8")
