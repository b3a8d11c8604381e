"""Time per token and extra peak memory of ours from about 1,000 to 64,000 tokens: the head, and the whole update phase.

Sizes take turns within a round, so that a drift of the machine shows in all of them. Widths are small enough for
minutes on two cores; what is looked at is how the figures grow, not how large they are.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from benchmarks import ours, ours_training
from benchmarks.arguments import Run, Settings, parse, setting
from benchmarks.head_inputs import HeadSettings, make_inputs
from benchmarks.memory import MemoryProbeError, MemoryProbes
from benchmarks.report import gibibytes, seconds, table, times, write_results
from benchmarks.timing import Spread, alternate, say, spread
from benchmarks.update_batch import BLOCK, UpdateSettings, make_batch, make_policy, save_model

HEADER = ("what", "tokens", "seconds", "microseconds per token", "against the smallest", "extra memory")


@dataclass(frozen=True, kw_only=True)
class ScalingSettings(Settings):
    """Sizes of the scaling benchmark."""

    FOR_CUDA: ClassVar[dict[str, Any]] = {
        "width": 4096,
        "vocabulary": 151_936,
        "dtype": "bfloat16",
        "model_layers": 8,
        "model_width": 1024,
        "model_vocabulary": 49_152,
    }
    QUICK: ClassVar[dict[str, Any]] = {
        "smallest": 32,
        "largest": 128,
        "width": 16,
        "vocabulary": 211,
        "model_layers": 1,
        "model_width": 64,
        "model_vocabulary": 211,
        "longest": 4,
        "question": 4,
    }

    smallest: int = setting(1024, "tokens")
    largest: int = setting(65_536, "tokens")
    factor: int = setting(4, "between one size and the next")
    width: int = setting(256, "H of the head alone")
    vocabulary: int = setting(16_384, "V of the head alone")
    dtype: str = setting("float32", "of everything")
    model_layers: int = setting(2, "of the model in the update phase")
    model_width: int = setting(128, "of the model")
    model_vocabulary: int = setting(8192, "of the model")
    longest: int = setting(104, "tokens of the longest response; their mean is about 32")
    question: int = setting(32, "tokens of a question")

    @property
    def sizes(self) -> list[int]:
        """Numbers of tokens, rising."""
        found = [self.smallest]
        while found[-1] * self.factor <= self.largest:
            found.append(found[-1] * self.factor)
        return found

    def head(self, tokens: int) -> HeadSettings:
        """Return the head benchmark's settings for a number of tokens."""
        shared: dict[str, Any] = {
            "device": self.device,
            "threads": self.threads,
            "seed": self.seed,
            "dtype": self.dtype,
        }
        return HeadSettings(tokens=tokens, width=self.width, vocabulary=self.vocabulary, top_k=20, **shared)

    def update(self, tokens: int) -> UpdateSettings:
        """Return the update benchmark's settings for about so many tokens: blocks of rows of the same lengths."""
        shape = UpdateSettings(
            device=self.device,
            threads=self.threads,
            seed=self.seed,
            dtype=self.dtype,
            layers=self.model_layers,
            width=self.model_width,
            inner=3 * self.model_width,
            heads=max(1, self.model_width // 64),
            key_value_heads=max(1, self.model_width // 128),
            vocabulary=self.model_vocabulary,
            longest=self.longest,
            question=self.question,
            top_k=20,
            questions=BLOCK // 8,
        )
        block = make_batch(shape, "all").tokens
        return replace(shape, questions=max(1, round(tokens / block)) * shape.questions)


@dataclass
class ScalingResults:
    """All figures, by ``<what>/<tokens>``."""

    tokens: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)
    probes: list[dict[str, Any]] = field(default_factory=list)
    """What every memory process answered."""

    def per_token(self, name: str) -> list[float]:
        """Return microseconds per token, by round."""
        return [1e6 * value / self.tokens[name] for value in self.seconds[name]]


def prepare(contestant: str, settings: Mapping[str, Any]) -> Callable[[], object]:
    """Build one size (for :mod:`benchmarks.memory_probe`)."""
    chosen = ScalingSettings(**settings)
    chosen.prepare()
    return build(contestant, chosen)[0]


def build(name: str, settings: ScalingSettings) -> tuple[Callable[[], object], int]:
    """Return the run of ``head/<tokens>`` or ``update/<tokens>``, and how many tokens it has."""
    what, _, tokens = name.partition("/")
    if what == "head":
        inputs = make_inputs(settings.head(int(tokens)))
        return (lambda: ours.divergence(inputs, divergence="forward_kl")), int(tokens)
    shape = settings.update(int(tokens))
    batch = make_batch(shape, "all")
    with tempfile.TemporaryDirectory(prefix="selfdistill-bench-") as folder:
        save_model(shape, Path(folder))
        policy = make_policy(Path(folder), shape)
    return ours_training.Update(batch, policy), batch.tokens


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, write the file."""
    settings, run = parse("scaling", ScalingSettings, __doc__, arguments)
    device = settings.prepare()
    names = [f"{what}/{size}" for what in ("head", "update") for size in settings.sizes]
    names = [name for name in names if run.wants(name)]
    results = ScalingResults()
    measure_time(names, settings, run, device, results)
    measure_memory(run.probes(names), settings, results)
    print(table(_title(settings), HEADER, [row(name, results) for name in names]))
    found = {name: {"against_smallest": against_smallest(name, results)._asdict()} for name in names}
    figures = asdict(results) | {"summary": found}
    write_results(run.output, "scaling", asdict(settings) | {"run": run.as_data()}, device, figures)


def measure_time(
    names: Sequence[str], settings: ScalingSettings, run: Run, device: torch.device, results: ScalingResults
) -> None:
    """Fill in the seconds; the head's sizes take turns, then the update's."""
    for what in ("head", "update"):
        built = {name: build(name, settings) for name in names if name.startswith(what)}
        results.tokens |= {name: tokens for name, (_, tokens) in built.items()}
        work = {name: function for name, (function, _) in built.items()}
        results.seconds |= alternate(work, repeats=run.repeats, warmup=run.warmup, device=device)


def measure_memory(names: Sequence[str], settings: ScalingSettings, results: ScalingResults) -> None:
    """Fill in the extra peak memory of every size."""
    probes = MemoryProbes("benchmarks.scaling", results.probes)
    for name in names:
        try:
            results.memory[name] = probes.extra_peak(name, asdict(settings), idle_group=name)
        except MemoryProbeError as error:
            say(f"no figure: {error}")
            results.memory[name] = str(error)


def against_smallest(name: str, results: ScalingResults) -> Spread:
    """Return the time per token over that of the smallest size of the same, within a round."""
    what = name.partition("/")[0]
    smallest = next(other for other in results.seconds if other.startswith(what))
    pairs = zip(results.per_token(name), results.per_token(smallest), strict=True)
    return spread([own / base for own, base in pairs])


def row(name: str, results: ScalingResults) -> list[str]:
    """Return one line of the table."""
    what, memory = name.partition("/")[0], results.memory.get(name)
    return [
        {"head": "head, forward KL", "update": "update phase, SC-SDPO"}[what],
        f"{results.tokens[name]:,}",
        seconds(spread(results.seconds[name])),
        seconds(spread(results.per_token(name))),
        times(against_smallest(name, results)),
        memory if isinstance(memory, str) else gibibytes(memory),
    ]


def _title(settings: ScalingSettings) -> str:
    head = f"head H={settings.width}, V={settings.vocabulary:,}"
    model = f"model {settings.model_layers} layers x {settings.model_width}, V={settings.model_vocabulary:,}"
    return f"Growth with the number of tokens, {head}; {model}; {settings.dtype}, {settings.device}"


if __name__ == "__main__":
    main()
