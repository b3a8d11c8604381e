"""Time, memory and exactness of the loss head: from [N, H] hidden states and a [V, H] head to loss and gradient.

Everybody gets the same tensors; the loss is the mean over tokens, differentiated with respect to the student's hidden
states (and the head, where that is said).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch

from benchmarks import peers
from benchmarks.arguments import Run, parse
from benchmarks.head_contestants import Contestant, contestants
from benchmarks.head_inputs import HeadInputs, HeadOutcome, HeadSettings, make_inputs
from benchmarks.head_reference import cosine, truth
from benchmarks.memory import MemoryProbeError, MemoryProbes
from benchmarks.report import NOTHING, gibibytes, seconds, table, times, write_results
from benchmarks.timing import Spread, alternate, ratio, say, spread

HEADER = (
    "who",
    "what",
    "seconds",
    "to the products",
    "against ours",
    "extra memory at N",
    "at {factor} N",
    "value error",
    "gradient cosine",
)


@dataclass
class HeadResults:
    """All figures, by contestant."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    floors: dict[int, str] = field(default_factory=dict)
    """By number of products, the faster way to make them."""
    exactness: dict[str, dict[str, float]] = field(default_factory=dict)
    memory: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Bytes at N and at a multiple of N; or the error of the process."""
    probes: list[dict[str, Any]] = field(default_factory=list)
    """What every memory process answered."""


def prepare(contestant: str, settings: Mapping[str, Any]) -> Callable[[], object]:
    """Build the inputs and return the run of one contestant (for :mod:`benchmarks.memory_probe`)."""
    chosen = HeadSettings(**settings)
    (one,) = (each for each in contestants(torch.device(chosen.device), True) if each.name == contestant)
    peers.load(one.library)
    return partial(one.run, make_inputs(chosen))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, write the file."""
    settings, run = parse("head", HeadSettings, __doc__, arguments)
    device = settings.prepare()
    inputs, results = make_inputs(settings), HeadResults()
    invited = [one for one in contestants(device, run.peers) if run.wants(one.name) or one.library == "floor"]
    everybody = [check(one, inputs.first(settings.checked_rows), results) for one in invited]
    able = [one for one in everybody if one.unavailable is None]
    work = {one.name: partial(one.run, inputs) for one in able}
    results.seconds = alternate(work, repeats=run.repeats, warmup=run.warmup, device=device)
    results.floors = fastest_floors(results.seconds)
    del inputs, work
    probed = run.probes([one.name for one in able if one.memory])
    measure_memory([one for one in able if one.name in probed], settings, run, results)
    print(table(_title(settings), _header(settings), [row(one, results) for one in everybody]))
    floors = ", ".join(f"{count} products: {name}" for count, name in sorted(results.floors.items()))
    print(f"\nThe faster way to make the bare products is the floor ({floors}).")
    _write(settings, run, device, everybody, results)


def check(one: Contestant, inputs: HeadInputs, results: HeadResults) -> Contestant:
    """Note how exact a contestant is. A peer that fails here becomes unavailable and does not end the run."""
    if one.unavailable is not None or one.objective is None:
        return one
    try:
        results.exactness[one.name] = exactness(one, inputs)
    except Exception as error:
        if one.library == "ours":
            raise
        return replace(one, unavailable=f"failed here: {type(error).__name__}: {error}".splitlines()[0])
    return one


def exactness(one: Contestant, inputs: HeadInputs) -> dict[str, float]:
    """Compare value and gradients on a few rows with float64."""
    assert one.objective is not None
    expected, found = truth(one.objective, inputs), one.run(inputs)
    assert isinstance(found, HeadOutcome)
    compared = {
        "value": float(found.loss),
        "truth": float(expected.loss),
        "value_error": abs(float(found.loss) - float(expected.loss)) / abs(float(expected.loss)),
        "hidden_cosine": cosine(found.hidden_gradient, expected.hidden_gradient),
    }
    if found.weight_gradient is not None and expected.weight_gradient is not None:
        compared["weight_cosine"] = cosine(found.weight_gradient, expected.weight_gradient)
    return compared


def fastest_floors(timed: Mapping[str, Sequence[float]]) -> dict[int, str]:
    """Return, by number of products, which way to make them has the smaller median."""
    found: dict[int, str] = {}
    for count in (2, 3, 4):
        ways = [name for name in timed if name.startswith(f"floor{count}_")]
        found[count] = min(ways, key=lambda name: spread(timed[name]).median)
    return found


def measure_memory(measured: Sequence[Contestant], settings: HeadSettings, run: Run, results: HeadResults) -> None:
    """Fill in the extra peak memory at N and at a multiple of it. A quick run looks at N only."""
    probes = MemoryProbes("benchmarks.head", results.probes)
    factors = {"at_n": 1} if run.quick else {"at_n": 1, "at_multiple": settings.memory_factor}
    for one in measured:
        sizes: dict[str, Any] = {}
        for label, factor in factors.items():
            given = asdict(replace(settings, tokens=settings.tokens * factor))
            try:
                sizes[label] = probes.extra_peak(one.name, given, idle_group=one.library)
            except MemoryProbeError as error:
                say(f"no figure: {error}")
                sizes[f"error_{label}"] = str(error)
        results.memory[one.name] = sizes


def row(one: Contestant, results: HeadResults) -> list[str]:
    """Return one line of the table."""
    who = {"trl": "TRL", "liger": "Liger", "floor": "products"}.get(one.library, one.library)
    if one.unavailable is not None:
        return [who, one.label, one.unavailable, *[NOTHING] * 6]
    timed, memory, exact = results.seconds, results.memory.get(one.name, {}), results.exactness.get(one.name, {})
    against: Spread | None = None
    if one.rival in timed:
        against = ratio(timed[one.name], timed[one.rival])
    return [
        who,
        one.label,
        seconds(spread(timed[one.name])),
        times(ratio(timed[one.name], timed[results.floors[one.products]])),
        times(against),
        gibibytes(memory.get("at_n")),
        gibibytes(memory.get("at_multiple")),
        f"{exact['value_error']:.1e}" if exact else NOTHING,
        " / ".join(f"{exact[key]:.6f}" for key in ("hidden_cosine", "weight_cosine") if key in exact),
    ]


def _title(settings: HeadSettings) -> str:
    sizes = f"N={settings.tokens}, H={settings.width}, V={settings.vocabulary:,}, {settings.dtype}"
    return f"Loss head, {sizes}, {settings.device}, {settings.threads} threads: forward and backward"


def _header(settings: HeadSettings) -> list[str]:
    return [cell.format(factor=settings.memory_factor) for cell in HEADER]


def _write(
    settings: HeadSettings, run: Run, device: torch.device, everybody: Sequence[Contestant], results: HeadResults
) -> None:
    described = {
        one.name: {
            "library": one.library,
            "label": one.label,
            "products": one.products,
            "rival": one.rival,
            "unavailable": one.unavailable,
        }
        for one in everybody
    }
    summary = {
        one.name: {
            "seconds": spread(results.seconds[one.name])._asdict(),
            "to_products": ratio(results.seconds[one.name], results.seconds[results.floors[one.products]])._asdict(),
            "against_ours": (
                ratio(results.seconds[one.name], results.seconds[one.rival])._asdict()
                if one.rival in results.seconds
                else None
            ),
        }
        for one in everybody
        if one.name in results.seconds
    }
    figures = {"contestants": described, "summary": summary, **asdict(results)}
    write_results(run.output, "head", asdict(settings) | {"run": run.as_data()}, device, figures)


if __name__ == "__main__":
    main()
