"""How long training waits for a checkpoint: written in the background, or while training stands still.

Two runs: the embedded default recipe of PAINT, and a random Qwen3 of about 100 million parameters (SC-SDPO's update
phase and an AdamW step, no sampling) whose checkpoint is its weights, two moments and a moving average.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch

from benchmarks.arguments import Run, Settings, parse, setting
from benchmarks.machine import ROOT
from benchmarks.ours_training import Update
from benchmarks.report import table, write_results
from benchmarks.timing import Spread, ratio, say, seconds_of, spread, synchronise
from benchmarks.update_batch import UpdateSettings, make_batch, make_policy, save_model
from selfdistill.checkpoints import Saver, TrainState
from selfdistill.training.config import TrainConfig
from selfdistill.training.optimizer import make_optimizer
from selfdistill.training.progress import NullProgress
from selfdistill.training.recipe import load_recipe
from selfdistill.training.run import take_step
from selfdistill.training.start import start

HEADER = (
    "run",
    "checkpoint",
    "step, s",
    "stall in the background, s",
    "stall without, s",
    "without / in the background",
    "stall / step, in the background",
    "stall / step, without",
    "step while it is written / step",
)


@dataclass(frozen=True, kw_only=True)
class StallSettings(Settings):
    """Sizes of the checkpoint benchmark."""

    QUICK: ClassVar[dict[str, Any]] = {
        "layers": 1,
        "width": 16,
        "vocabulary": 211,
        "questions": 2,
        "new_tokens": 8,
        "rollouts": 4,
        "longest": 12,
    }

    layers: int = setting(12, "of the random model")
    width: int = setting(640, "of the random model")
    vocabulary: int = setting(65_536, "of the random model")
    questions: int = setting(4, "in a step")
    rollouts: int = setting(8, "per question, random model")
    longest: int = setting(220, "tokens of the random model's longest response")
    new_tokens: int = setting(80, "at most, per response of the embedded recipe")


@dataclass(frozen=True)
class Subject:
    """A run under way."""

    state: TrainState
    step: Callable[[], object]


@dataclass
class Figures:
    """Seconds of one run, one figure per round."""

    bytes: int = 0
    """Of a checkpoint."""
    first: float = 0.0
    """Stall of the very first save in the background, which asks for the memory of the copies."""
    step: list[float] = field(default_factory=list)
    background: list[float] = field(default_factory=list)
    """Stall of a save in the background."""
    written: list[float] = field(default_factory=list)
    """From the beginning of that save until it is on disk, a step taken meanwhile."""
    meanwhile: list[float] = field(default_factory=list)
    """That step."""
    alone: list[float] = field(default_factory=list)
    """Stall of a save that training waits for."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, write the file."""
    settings, run = parse("checkpoint_stall", StallSettings, __doc__, arguments)
    device = settings.prepare()
    subjects = {"embedded, PAINT": embedded, "random Qwen3": random_model}
    figures = {}
    for name, subject in subjects.items():
        if run.wants(name):
            figures[name] = measure(name, subject, settings, run, device)
    print(
        table(
            f"Checkpoints, {settings.device}, {settings.threads} threads",
            HEADER,
            [row(*one) for one in figures.items()],
        )
    )
    found = {name: asdict(one) | {"summary": summary(one)} for name, one in figures.items()}
    write_results(run.output, "checkpoint_stall", asdict(settings) | {"run": run.as_data()}, device, {"runs": found})


def measure(name: str, subject: Callable[..., Any], settings: StallSettings, run: Run, device: torch.device) -> Figures:
    """Take turns: a step alone, a save in the background with a step meanwhile, a save that is waited for."""
    figures = Figures()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="selfdistill-bench-")))
        one: Subject = stack.enter_context(subject(settings, folder))
        background = Saver(folder / "background", keep=1)
        alone = Saver(folder / "alone", keep=1, asynchronous=False)
        stack.callback(background.close)
        stack.callback(alone.close)
        one.step()
        for index in range(-max(1, run.warmup), run.repeats):  # the first save is a case of its own
            taken = _round(one, background, alone, device)
            figures.first = figures.first or taken["background"]
            say(f"{name}: " + ", ".join(f"{what} {value:.3f} s" for what, value in taken.items()))
            if index >= 0:
                for what, value in taken.items():
                    getattr(figures, what).append(value)
        figures.bytes = sum(path.stat().st_size for path in (folder / "alone").rglob("*") if path.is_file())
    return figures


def _round(one: Subject, background: Saver, alone: Saver, device: torch.device) -> dict[str, float]:
    taken = {"step": seconds_of(one.step, device)}
    synchronise(device)
    began = time.perf_counter()
    background.save(one.state)
    taken["background"] = time.perf_counter() - began
    taken["meanwhile"] = seconds_of(one.step, device)
    background.wait()
    taken["written"] = time.perf_counter() - began
    taken["alone"] = seconds_of(lambda: alone.save(one.state), device)
    return taken


@contextmanager
def embedded(settings: StallSettings, folder: Path) -> Iterator[Subject]:
    """Yield a run of PAINT's embedded recipe."""
    overrides = [
        "train.steps=1000",
        f"train.questions_per_step={settings.questions}",
        f"train.seed={settings.seed}",
        f"rollouts.sampling.max_new_tokens={settings.new_tokens}",
        f"model.device={settings.device}",
        f"output.folder={folder / 'run'}",
        "output.save_rollouts=none",
        "train.save_every=null",
    ]
    recipe = load_recipe(ROOT / "recipes" / "embedded" / "paint.yaml", overrides)
    with start(recipe, resume=False, progress=NullProgress()) as run:
        yield Subject(run.state, lambda: take_step(run))


@contextmanager
def random_model(settings: StallSettings, folder: Path) -> Iterator[Subject]:
    """Yield updates of a random model on one batch."""
    shape = UpdateSettings(
        layers=settings.layers,
        width=settings.width,
        inner=3 * settings.width,
        heads=max(2, settings.width // 64),
        key_value_heads=max(1, settings.width // 128),
        vocabulary=settings.vocabulary,
        questions=settings.questions,
        rollouts=settings.rollouts,
        longest=settings.longest,
        top_k=min(100, settings.vocabulary // 10),
        device=settings.device,
        seed=settings.seed,
        dtype="float32" if settings.device == "cpu" else "bfloat16",
    )
    save_model(shape, folder / "model")
    update = Update(make_batch(shape, "all"), make_policy(folder / "model", shape))
    state = TrainState(update.policy.model, make_optimizer(update.policy.model, TrainConfig()), update.teacher)
    say(f"{sum(one.numel() for one in state.model.parameters()) / 1e6:.0f} million parameters")

    def step() -> None:
        update()
        state.optimizer.step()
        state.step += 1

    yield Subject(state, step)


def summary(figures: Figures) -> dict[str, Any]:
    """Return medians and ratios."""
    ratios = {
        "alone_to_background": ratio(figures.alone, figures.background),
        "background_to_step": ratio(figures.background, figures.step),
        "alone_to_step": ratio(figures.alone, figures.step),
        "meanwhile_to_step": ratio(figures.meanwhile, figures.step),
    }
    medians = {name: spread(getattr(figures, name)) for name in ("step", "background", "written", "meanwhile", "alone")}
    return {name: value._asdict() for name, value in {**medians, **ratios}.items()}


def row(name: str, figures: Figures) -> list[str]:
    """Return one line of the table."""
    return [
        name,
        f"{figures.bytes / 1e6:,.1f} MB",
        _three(spread(figures.step)),
        _three(spread(figures.background)),
        _three(spread(figures.alone)),
        _three(ratio(figures.alone, figures.background)),
        _three(ratio(figures.background, figures.step)),
        _three(ratio(figures.alone, figures.step)),
        _three(ratio(figures.meanwhile, figures.step)),
    ]


def _three(value: Spread) -> str:
    return f"{value.median:.3g} ({value.low:.2g}-{value.high:.2g})"


if __name__ == "__main__":
    main()
