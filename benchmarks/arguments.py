"""Command lines: what all benchmarks share, and one option per field of a benchmark's settings.

Settings are frozen dataclasses whose fields carry their help in the metadata. Their defaults are for two CPU cores;
``FOR_CUDA`` and ``QUICK`` replace some of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch

from benchmarks.report import default_output


def setting(default: Any, explanation: str) -> Any:
    """Return a dataclass field with a default and the help of its option."""
    return field(default=default, metadata={"help": explanation})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides the inputs of a benchmark; handed to memory probes as JSON."""

    FOR_CUDA: ClassVar[dict[str, Any]] = {}
    QUICK: ClassVar[dict[str, Any]] = {}

    device: str = setting("cpu", "cpu or cuda")
    threads: int = setting(2, "threads of torch")
    seed: int = setting(0, "of weights and inputs")

    def prepare(self) -> torch.device:
        """Set the number of threads, seed torch, and return the device."""
        torch.set_num_threads(self.threads)
        torch.manual_seed(self.seed)
        return torch.device(self.device)


@dataclass(frozen=True, kw_only=True)
class Run:
    """How to measure, apart from what."""

    repeats: int
    warmup: int
    quick: bool
    peers: bool
    memory: bool
    memory_of: tuple[str, ...]
    only: tuple[str, ...]
    output: Path

    def wants(self, contestant: str) -> bool:
        """Say whether ``--only`` leaves a contestant in."""
        return not self.only or any(part in contestant for part in self.only)

    def probes(self, contestants: Sequence[str]) -> list[str]:
        """Return whose memory is measured: what ``--memory-of`` leaves in, and in a quick run only the first."""
        chosen = [name for name in contestants if not self.memory_of or any(part in name for part in self.memory_of)]
        return chosen[: 1 if self.quick else None] if self.memory else []

    def as_data(self) -> dict[str, Any]:
        """Return what belongs into the JSON file."""
        return {
            name: getattr(self, name) for name in ("repeats", "warmup", "quick", "peers", "memory", "memory_of", "only")
        }


Kind = TypeVar("Kind", bound=Settings)


def parse(name: str, kind: type[Kind], description: str | None, arguments: Sequence[str] | None) -> tuple[Kind, Run]:
    """Read a command line into the settings of one benchmark and the way to measure."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}", description=(description or "").split("\n")[0]
    )
    _add_run_options(parser)
    for one in fields(kind):
        _add_setting(parser, one.name, one.default, one.metadata["help"])
    given = vars(parser.parse_args(arguments))
    own = {one.name: given.pop(one.name) for one in fields(kind)}
    device = own["device"] or ("cuda" if torch.cuda.is_available() else "cpu")
    defaults: dict[str, Any] = (
        {"device": device} | (kind.FOR_CUDA if device == "cuda" else {}) | (kind.QUICK if given["quick"] else {})
    )
    settings = kind(**defaults | {key: value for key, value in own.items() if value is not None})
    output = given["output"] or default_output(name, torch.device(device), given["quick"])
    repeats = given["repeats"] or (2 if given["quick"] else 5)
    run = Run(
        repeats=repeats,
        warmup=given["warmup"],
        quick=given["quick"],
        peers=not given["without_peers"],
        memory=not given["without_memory"],
        memory_of=_parts(given["memory_of"]),
        only=_parts(given["only"]),
        output=output,
    )
    return settings, run


def _parts(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.split(",") if part)


def _add_setting(parser: argparse.ArgumentParser, name: str, default: Any, explanation: str) -> None:
    option, text = "--" + name.replace("_", "-"), f"{explanation}; {default}"
    if isinstance(default, bool):
        parser.add_argument(option, action=argparse.BooleanOptionalAction, default=None, help=text)
    else:
        parser.add_argument(option, type=type(default), default=None, help=text)


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that everything runs, measures nothing")
    parser.add_argument("--repeats", type=int, default=None, help="rounds that count; 5")
    parser.add_argument("--warmup", type=int, default=1, help="rounds before those; 1")
    parser.add_argument("--only", default="", help="comma-separated parts of contestants' names; all")
    parser.add_argument("--without-peers", action="store_true", help="leave TRL and Liger out")
    parser.add_argument("--without-memory", action="store_true", help="leave out the processes that measure memory")
    parser.add_argument("--memory-of", default="", help="comma-separated parts of the names whose memory counts; all")
    parser.add_argument("--output", type=Path, default=None, help="JSON file; benchmarks/results/<name>-<device>.json")
