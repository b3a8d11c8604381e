"""The same recipe on one, two and four processes: every method, step by step, side by side.

Each number of processes runs all methods one after the other in one group of processes (gloo, on the CPU). Compared are
the loss of every step, the weights at the end, and every response that was drawn, with the run on one process.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.arguments import Run, Settings, parse, setting
from benchmarks.report import table, write_results
from selfdistill.methods import names

HEADER = ("method", "processes", "largest difference of a loss", "of a weight", "responses that differ")
SMALL = (
    "data.eval_limit=1",
    "evaluation.samples=1",
    "output.save_rollouts=all",
    "train.evaluate_first=false",
    "train.save_every=null",
)


@dataclass(frozen=True, kw_only=True)
class ParitySettings(Settings):
    """Which runs are compared."""

    QUICK: ClassVar[dict[str, Any]] = {"steps": 2, "methods": "paint,sc_sdpo", "processes": "1,2"}

    threads: int = setting(1, "threads of torch, per process")
    steps: int = setting(20, "steps of each run")
    methods: str = setting(",".join(names()), "methods, separated by commas")
    processes: str = setting("1,2,4", "numbers of processes; the first is what others are compared with")
    overrides: str = setting("train.questions_per_step=8", "of every recipe, separated by blanks")
    sharded: str = setting("", "overrides for more than one process only")


@dataclass(frozen=True)
class Difference:
    """How far a run is from that of the first number of processes."""

    method: str
    processes: int
    loss: float
    weight: float
    responses: int
    drawn: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison and write its results."""
    settings, run = parse("parity", ParitySettings, __doc__, arguments)
    results = list(compare(settings))
    rows = [
        (one.method, str(one.processes), f"{one.loss:.1e}", f"{one.weight:.1e}", f"{one.responses} of {one.drawn}")
        for one in results
    ]
    print(table(f"{settings.steps} steps", HEADER, rows))
    _write(run, settings, results)
    return 0


def compare(settings: ParitySettings) -> Iterator[Difference]:
    """Run all methods on every number of processes and yield the differences."""
    first, *others = (int(one) for one in settings.processes.split(","))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        run_all(settings, first, folder)
        for processes in others:
            run_all(settings, processes, folder)
            for method in settings.methods.split(","):
                yield difference(method, processes, folder / f"{first}-{method}", folder / f"{processes}-{method}")


def run_all(settings: ParitySettings, processes: int, folder: Path) -> None:
    """Train every method on so many processes, into ``folder/<processes>-<method>``."""
    own = {"OMP_NUM_THREADS": str(settings.threads), "GLOO_SOCKET_IFNAME": "lo", "WORLD_SIZE": str(processes)}
    own |= {"SELFDISTILL_STORE": str(folder / f"store-{processes}"), "LOCAL_WORLD_SIZE": str(processes)}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.parity", "--worker", json.dumps(asdict(settings)), str(folder)],
            env=os.environ | own | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(processes)
    ]
    codes = [one.wait() for one in started]
    if any(codes):
        raise SystemExit(f"{processes} processes ended with {codes}")


def work(settings: ParitySettings, folder: Path) -> None:
    """Train every method, as one of the processes."""
    import torch

    from selfdistill.parallel import joined
    from selfdistill.training.recipe import load_recipe
    from selfdistill.training.run import train

    torch.set_num_threads(settings.threads)
    with joined(600.0, "cpu") as world:
        sharded = settings.sharded.split() if world.size > 1 else []
        for method in settings.methods.split(","):
            path = Path(str(files("selfdistill"))) / "recipes" / "embedded" / f"{method}.yaml"
            place = [f"output.folder={folder / f'{world.size}-{method}'}", f"train.steps={settings.steps}"]
            train(load_recipe(path, [*SMALL, *settings.overrides.split(), *sharded, *place]))


def difference(method: str, processes: int, one: Path, other: Path) -> Difference:
    """Compare two run folders."""
    losses = [[line["loss"] for line in _lines(folder / "metrics.jsonl")] for folder in (one, other)]
    drawn = [{_key(line): line["response"] for line in _lines(folder / "rollouts.jsonl")} for folder in (one, other)]
    return Difference(
        method,
        processes,
        max(abs(a - b) for a, b in zip(*losses, strict=True)),
        _weights(one / "final", other / "final"),
        sum(drawn[0][key] != drawn[1].get(key) for key in drawn[0]) + len(drawn[1].keys() - drawn[0].keys()),
        len(drawn[0]),
    )


def _weights(one: Path, other: Path) -> float:
    from safetensors.torch import load_file

    (name,) = {path.name for path in one.glob("*.safetensors")}
    before, after = load_file(one / name), load_file(other / name)
    if before.keys() != after.keys():
        return math.inf
    return max(float((before[key].double() - after[key].double()).abs().max()) for key in before)


def _key(line: dict[str, Any]) -> tuple[int, str, int]:
    return line["step"], line["question"], line["sibling"]


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _write(run: Run, settings: ParitySettings, results: Sequence[Difference]) -> None:
    write_results(
        run.output,
        "parity",
        asdict(settings),
        settings.prepare(),
        {"run": run.as_data(), "differences": [asdict(one) for one in results]},
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(ParitySettings(**json.loads(sys.argv[2])), Path(sys.argv[3]))
    else:
        raise SystemExit(main())
