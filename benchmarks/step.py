"""Seconds of each phase of our own training step, and of a teacher's pass over siblings with and without prefix reuse.

Nothing here has a peer: the embedded default recipes of PAINT and SC-SDPO, with the fast paths and with the readable
objective, take turns step by step. The teacher's pass has a random Qwen3, and siblings of one length.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from benchmarks import ours_training
from benchmarks.arguments import Run, Settings, parse, setting
from benchmarks.report import NOTHING, seconds, table, times, write_results
from benchmarks.timing import Spread, alternate, ratio, say, spread
from benchmarks.update_batch import UpdateSettings, load_model, save_model

METHODS = ("paint", "sc_sdpo")
PATHS = ("fast", "readable")
PHASES = ("sampling", "verifying", "update", "step")
STEP_HEADER = (
    "recipe",
    "objective",
    "sampling, s",
    "verifying, s",
    "update, s",
    "step, s",
    *("tokens/s sampled", "tokens/s updated", "update: readable / fast"),
)
TEACHER_HEADER = ("teacher's pass", "seconds", "tokens/s", "without / with reuse", "largest difference")


@dataclass(frozen=True, kw_only=True)
class StepSettings(Settings):
    """Sizes of the step benchmark."""

    FOR_CUDA: ClassVar[dict[str, Any]] = {"layers": 16, "width": 2048, "prefix": 1024, "response": 1024}
    QUICK: ClassVar[dict[str, Any]] = {
        "questions": 2,
        "new_tokens": 8,
        "layers": 1,
        "width": 64,
        "prefix": 12,
        "response": 12,
        "siblings": 3,
    }

    questions: int = setting(32, "per step of the recipe")
    new_tokens: int = setting(80, "at most, per response")
    layers: int = setting(8, "of the teacher")
    width: int = setting(512, "of the teacher")
    prefix: int = setting(256, "tokens of the privileged prompt that the siblings share")
    response: int = setting(256, "tokens of each sibling's response")
    siblings: int = setting(8, "rows that share the prompt")


@dataclass
class StepResults:
    """All figures."""

    steps: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """By ``<method>/<path>``, what each step logged."""
    teacher: dict[str, list[float]] = field(default_factory=dict)
    difference: float | None = None
    """Largest difference between the hidden states with and without reuse, over their root mean square."""

    def of(self, name: str, metric: str) -> list[float]:
        """Return one logged figure of every step."""
        return [step[metric] for step in self.steps[name]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print both tables, write the file."""
    settings, run = parse("step", StepSettings, __doc__, arguments)
    device = settings.prepare()
    results = StepResults()
    train(settings, run, results)
    score(settings, run, device, results)
    names = list(results.steps)
    if names:
        title = f"Training step, embedded recipes, {settings.questions} questions, {settings.threads} threads"
        print(table(title, STEP_HEADER, [step_row(name, results) for name in names]))
    if results.teacher:
        print(table(_teacher_title(settings), TEACHER_HEADER, teacher_rows(settings, results)))
        positions = settings.siblings * (settings.prefix + settings.response)
        reused = settings.prefix + settings.siblings * settings.response
        print(f"\nPositions: {positions} without reuse, {reused} with it: {positions / reused:.2f}x fewer.")
    figures = asdict(results) | {"summary": summary(results)}
    write_results(run.output, "step", asdict(settings) | {"run": run.as_data()}, device, figures)


def train(settings: StepSettings, run: Run, results: StepResults) -> None:
    """Take steps of every recipe on every path, in turns; the first ``warmup`` do not count."""
    chosen = [f"{method}/{path}" for method in METHODS for path in PATHS if run.wants(f"{method}/{path}")]
    with tempfile.TemporaryDirectory(prefix="selfdistill-bench-") as folder:
        runs = {name: _start(name, settings, run, Path(folder)) for name in chosen}
        for index in range(-run.warmup, run.repeats):
            for name, steps in runs.items():
                metrics = steps()
                say(f"step {index + 1 + run.warmup}: {name} {metrics['seconds/step']:.3f} s")
                if index >= 0:
                    results.steps.setdefault(name, []).append(dict(metrics))


def _start(name: str, settings: StepSettings, run: Run, folder: Path) -> Callable[[], Mapping[str, Any]]:
    method, _, path = name.partition("/")
    overrides = [
        f"train.steps={run.warmup + run.repeats}",
        f"train.questions_per_step={settings.questions}",
        f"train.seed={settings.seed}",
        f"rollouts.sampling.max_new_tokens={settings.new_tokens}",
        f"model.device={settings.device}",
        f"output.folder={folder / name.replace('/', '-')}",
        "output.save_rollouts=none",
        "train.save_every=null",
    ]
    return ours_training.training(method, overrides, readable=path == "readable")


def score(settings: StepSettings, run: Run, device: torch.device, results: StepResults) -> None:
    """Time the teacher's pass over siblings that share a prompt, with and without computing it once."""
    if not run.wants("teacher"):
        return
    shape = UpdateSettings(
        layers=settings.layers,
        width=settings.width,
        inner=3 * settings.width,
        heads=max(1, settings.width // 64),
        key_value_heads=max(1, settings.width // 128),
        vocabulary=1024,  # the head is not part of this
        longest=settings.response,
        question=settings.prefix,
        dtype="float32" if device.type == "cpu" else "bfloat16",
        seed=settings.seed,
    )
    with tempfile.TemporaryDirectory(prefix="selfdistill-bench-") as folder:
        save_model(shape, Path(folder))
        model = load_model(Path(folder), device)
    draw = torch.Generator().manual_seed(settings.seed)

    def words(count: int) -> list[int]:
        return torch.randint(4, shape.vocabulary, (count,), generator=draw).tolist()

    prompt = words(settings.prefix)
    pairs = [(prompt, words(settings.response)) for _ in range(settings.siblings)]
    budget = settings.siblings * (settings.prefix + settings.response)
    ways = {"with reuse": True, "without reuse": False}
    work = {
        name: partial(ours_training.teacher_pass, model, pairs, budget, reuse=reuse) for name, reuse in ways.items()
    }
    results.difference = largest_difference(*(way() for way in work.values()))
    results.teacher = alternate(work, repeats=run.repeats, warmup=run.warmup, device=device)


def largest_difference(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """Return the largest difference of two lists of hidden states, over their root mean square."""
    one, other = torch.cat(list(first)).float(), torch.cat(list(second)).float()
    return float((one - other).abs().max() / one.square().mean().sqrt())


def step_row(name: str, results: StepResults) -> list[str]:
    """Return one line of the first table."""
    method, _, path = name.partition("/")
    phases = [seconds(_spread_of(results, name, f"seconds/{phase}")) for phase in PHASES]
    speeds = [_median(results, name, f"tokens_per_second/{phase}") for phase in ("sampling", "update")]
    return [method, path, *phases, *speeds, times(_gain(results, name))]


def teacher_rows(settings: StepSettings, results: StepResults) -> list[list[str]]:
    """Return the lines of the second table."""
    tokens = settings.siblings * settings.response
    gain = ratio(results.teacher["without reuse"], results.teacher["with reuse"])
    rows = []
    for name, timed in results.teacher.items():
        reused = name == "with reuse"
        shown = spread(timed)
        difference = f"{results.difference:.1e}" if reused and results.difference is not None else NOTHING
        rows.append([name, seconds(shown), f"{tokens / shown.median:.0f}", times(gain if reused else None), difference])
    return rows


def summary(results: StepResults) -> dict[str, Any]:
    """Return medians and ratios."""
    found: dict[str, Any] = {}
    for name in results.steps:
        phases = {phase: _spread_of(results, name, f"seconds/{phase}") for phase in PHASES}
        gain = _gain(results, name)
        found[name] = {phase: value._asdict() for phase, value in phases.items() if value is not None}
        found[name]["readable_to_fast"] = None if gain is None else gain._asdict()
    if results.teacher:
        gain = ratio(results.teacher["without reuse"], results.teacher["with reuse"])
        found["teacher"] = {"without_to_with_reuse": gain._asdict()}
    return found


def _gain(results: StepResults, name: str) -> Spread | None:
    """Return how many times longer the readable path's update takes, for a fast path that has one beside it."""
    method, _, path = name.partition("/")
    if path != "fast" or f"{method}/readable" not in results.steps:
        return None
    return ratio(results.of(f"{method}/readable", "seconds/update"), results.of(name, "seconds/update"))


def _spread_of(results: StepResults, name: str, metric: str) -> Spread | None:
    return spread(results.of(name, metric)) if all(metric in step for step in results.steps[name]) else None


def _median(results: StepResults, name: str, metric: str) -> str:
    found = [step[metric] for step in results.steps[name] if metric in step]
    return f"{spread(found).median:.0f}" if found else NOTHING


def _teacher_title(settings: StepSettings) -> str:
    rows = f"{settings.siblings} siblings, prompt of {settings.prefix}, responses of {settings.response} tokens"
    return f"Teacher's pass, {settings.layers} layers x {settings.width}, {rows}, {settings.device}"


if __name__ == "__main__":
    main()
