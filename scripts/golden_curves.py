"""Twenty steps of every method on the embedded default, as text: what a change of the code must not change.

``python scripts/golden_curves.py`` writes tests/golden/<method>.txt with the readable objective; the tests train with
the readable objective and with the fast paths side by side, on the same rollouts, and compare both with the file.
Write the files again only when the mathematics is meant to change, and say why in the commit.
"""

from __future__ import annotations

import argparse
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from selfdistill.methods import names
from selfdistill.teachers.weights import trainable
from selfdistill.training.loop import Clock
from selfdistill.training.progress import NullProgress
from selfdistill.training.recipe import load_recipe
from selfdistill.training.run import Run, start
from selfdistill.verifiers.verdict import Group

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"
STEPS = 20
SMALLER = ("train.questions_per_step=4", "data.train_limit=64", "data.eval_limit=4", "train.warmup_steps=2")
"""The embedded recipes with a smaller batch, so that ten methods take a minute."""
READABLE = ("scoring.head=readable", "scoring.reuse_prefix=false", "scoring.padding_free=false")
FAST = ("scoring.head=fused", "scoring.reuse_prefix=true", "scoring.padding_free=false")
PACKED = ("scoring.head=fused", "scoring.reuse_prefix=true", "scoring.padding_free=true")


@dataclass(frozen=True)
class Point:
    """One step of a curve."""

    loss: float
    gradient_norm: float
    tokens: int
    """Response tokens of the batch."""
    sampled: int
    """Checksum of the batch's response ids."""

    def line(self, step: int) -> str:
        """Return the step as a line of text."""
        return f"{step:4d} {self.loss:+.8e} {self.gradient_norm:.8e} {self.tokens:6d} {self.sampled:08x}"


def begin(method: str, folder: Path, paths: Sequence[str]) -> Run:
    """Return a run of the embedded recipe that has not taken a step."""
    recipe = load_recipe(
        ROOT / "recipes" / "embedded" / f"{method}.yaml", [*SMALLER, *paths, f"output.folder={folder / 'run'}"]
    )
    return start(recipe, resume=False, progress=NullProgress())


def train_side_by_side(runs: Sequence[Run], steps: int = STEPS) -> Iterator[list[Point]]:
    """Yield one point per run and step. All runs learn from the rollouts of the first one's model."""
    for step in range(steps):
        clock = Clock(NullProgress())
        groups = runs[0].trainer.sample(step, clock).groups
        points = []
        for run in runs:
            metrics = run.trainer.update(run.trainer.plan(groups, step), run.state, clock)
            run.state.step += 1
            points.append(Point(metrics["loss"], metrics["grad_norm"], *_ids(groups)))
        yield points


def weights(run: Run) -> dict[str, list[float]]:
    """Return a few numbers per parameter that any change of its values would change: norm, sum, weighted sum."""
    summary = {}
    for name, parameter in trainable(run.trainer.policy.model).items():
        flat = parameter.detach().double().flatten()
        waves = torch.cos(torch.arange(len(flat), dtype=torch.float64))
        summary[name] = [float(flat.norm()), float(flat.sum()), float(flat @ waves)]
    return summary


def text(method: str, points: Sequence[Point], final: dict[str, list[float]]) -> str:
    """Return the file's text."""
    lines = [
        f"# {method}: recipes/embedded/{method}.yaml {' '.join(SMALLER)}",
        "# step loss gradient_norm response_tokens checksum_of_response_ids",
        *(point.line(step) for step, point in enumerate(points, 1)),
        "# parameter norm sum sum_of_cosines",
        *(f"{name} {' '.join(f'{value:+.8e}' for value in values)}" for name, values in final.items()),
    ]
    return "\n".join(lines) + "\n"


def read(path: Path) -> tuple[list[Point], dict[str, list[float]]]:
    """Return what :func:`text` wrote."""
    points, final = [], {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        first, *rest = line.split()
        if first.isdigit():
            points.append(Point(float(rest[0]), float(rest[1]), int(rest[2]), int(rest[3], 16)))
        else:
            final[first] = [float(value) for value in rest]
    return points, final


def _ids(groups: Sequence[Group]) -> tuple[int, int]:
    ids = [i for group in groups for rollout in group.rollouts for i in (*rollout.response_ids, -1)]
    return sum(i >= 0 for i in ids), zlib.crc32(" ".join(map(str, ids)).encode())


def main() -> None:
    """Write the curves of the named methods, or of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", default=names(), help="default: all")
    for method in parser.parse_args().methods:
        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as folder:
            run = begin(method, Path(folder), READABLE)
            points = [point for (point,) in train_side_by_side([run])]
            (GOLDEN / f"{method}.txt").write_text(text(method, points, weights(run)), encoding="utf-8")
        print(f"{method}: loss {points[0].loss:.5f} -> {points[-1].loss:.5f}")


if __name__ == "__main__":
    main()
