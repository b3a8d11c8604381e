"""Rollouts on the real engine: tokens per second against vLLM itself, the cost and exactness of syncs, faults.

Needs vLLM (`make vllm` installs the CPU build into an environment of its own). Everything runs on this machine.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from benchmarks.arguments import Run, Settings, parse, setting
from benchmarks.report import NOTHING, table, times, write_results
from benchmarks.timing import Spread, ratio, spread
from selfdistill.rollouts.vllm_install import VllmInstall, find_vllm

SPEED_HEADER = ("contestant", "tokens/s", "against vLLM, bare", "against transformers")
SYNC_HEADER = ("sync", "adapter, MB", "weights, MB", "times less data", "adapter, s", "weights, s")
FAULT_HEADER = ("fault", "outcome", "finished before", "lost", "seconds", "limit")
SECTIONS = ("speed", "sync", "drift", "logprobs", "faults")


@dataclass(frozen=True, kw_only=True)
class RolloutSettings(Settings):
    """Sizes of the rollouts benchmark."""

    QUICK: ClassVar[dict[str, Any]] = {"model": "embedded", "dtype": "float32", "rows": 8, "new_tokens": 8, "syncs": 3}

    model: str = setting("smollm2", "of the speed and sync sections")
    dtype: str = setting("bfloat16", "of its weights")
    rows: int = setting(64, "responses side by side, 8 prompts")
    new_tokens: int = setting(96, "per response, at most")
    syncs: int = setting(1000, "of the drift section")
    rank: int = setting(16, "of the adapters whose sync is timed")
    cache_gib: int = setting(1, "of each engine, for keys and values")
    sections: str = setting(",".join(SECTIONS), "comma-separated parts of the benchmark")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the tables, write the file; after each section, because later ones break things on purpose."""
    settings, run = parse("rollouts", RolloutSettings, __doc__, arguments)
    device = settings.prepare()
    install = find_vllm()
    if install is None:
        print("vLLM is not installed, so there is nothing to measure; make vllm installs the CPU build")
        return
    figures: dict[str, Any] = {"vllm": {"distribution": install.distribution, "version": install.version}}
    for name, found in measure(settings, run, install):
        figures[name] = found
        show(name, found, settings)
        write_results(run.output, "rollouts", asdict(settings) | {"run": run.as_data()}, device, figures)


def show(name: str, found: Any, settings: RolloutSettings) -> None:
    """Print one section's table."""
    match name:
        case "speed":
            title = f"{settings.model}, {settings.dtype}, {settings.rows} rows, {settings.threads} cores"
            print(table(title, SPEED_HEADER, speed_rows(found)), flush=True)
        case "sync":
            print(table("Adapter alone against all weights, merged", SYNC_HEADER, sync_rows(found)), flush=True)
        case "faults":
            print(table("Faults", FAULT_HEADER, [fault_row(one) for one in found]), flush=True)
        case _:
            print(f"\n{name}: {found}", flush=True)


def measure(settings: RolloutSettings, run: Run, install: VllmInstall) -> Iterator[tuple[str, Any]]:
    """Yield the name and the figures of every section that is asked for."""
    from benchmarks import rollouts_faults, rollouts_speed, rollouts_sync

    common: dict[str, Any] = {"max_model_len": 1024}
    if install.cpu:
        common |= {"enforce_eager": True, "kv_cache_memory_bytes": settings.cache_gib * 2**30}
        common["enable_chunked_prefill"] = False  # seeded requests need that on a CPU
    wanted = set(settings.sections.split(","))
    if "speed" in wanted:
        from selfdistill.rollouts.sync import base_folder

        job = rollouts_speed.make_job(settings.model, settings.dtype, settings.rows, settings.new_tokens, common)
        with tempfile.TemporaryDirectory() as folder:
            source = base_folder(job.policy, Path(folder) / "base")
            yield "speed", rollouts_speed.measure(job, run, install, source)
    if "sync" in wanted:
        repeats = max(2, run.repeats)
        measured = rollouts_sync.adapters_against_weights(
            install, settings.model, settings.dtype, settings.rank, repeats, common
        )
        yield "sync", {settings.model: measured, "computed": rollouts_sync.published_sizes()}
    if "logprobs" in wanted:
        yield (
            "logprobs",
            {
                f"{settings.model}, {dtype}": rollouts_sync.logprob_difference(install, settings.model, dtype, common)
                for dtype in ("float32", "bfloat16")
            },
        )
    if "drift" in wanted:
        drift = rollouts_sync.many_syncs(install, settings.syncs, common)
        yield "drift", drift | {"merging_in_bf16": rollouts_sync.merged_drift(settings.syncs)}
    if "faults" in wanted:
        yield "faults", rollouts_faults.measure(install, common)


def speed_rows(speed: Mapping[str, Sequence[Mapping[str, float]]]) -> list[list[str]]:
    """Return the lines of the first table; ratios are taken within a round."""
    rates = {name: [one["tokens"] / one["seconds"] for one in rounds] for name, rounds in speed.items()}

    def against(name: str, other: str) -> str:
        return NOTHING if name == other or other not in rates else times(ratio(rates[name], rates[other]))

    return [
        [name, _rate(spread(own)), against(name, "vLLM, bare"), against(name, "transformers, generate")]
        for name, own in rates.items()
    ]


def sync_rows(sync: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Return the lines of the second table: measured ones with seconds, computed ones without."""
    rows = []
    for name, found in sync.items():
        if name == "computed":
            for model, one in found.items():
                sizes = _mb(one["adapter"]), _mb(one["weights"]), _x(one["times_less_data"])
                rows.append([f"{model}, rank 64 (computed)", *sizes, NOTHING, NOTHING])
            continue
        both = [found[kind][-1]["bytes"] for kind in ("adapter", "weights")]
        taken = [torch.tensor([one["seconds"] for one in found[kind]]).median() for kind in ("adapter", "weights")]
        label = f"{name}, {found['dtype']}, rank {found['rank']}"
        cells = [*map(_mb, both), _x(found["times_less_data"]), *(f"{float(one):.2f}" for one in taken)]
        rows.append([label, *cells])
    return rows


def fault_row(outcome: Mapping[str, Any]) -> list[str]:
    """Return one line of the third table."""
    ended = str(outcome["ended"]).replace("|", "/")
    shown = ended if len(ended) <= 100 else f"{ended[:97]}..."
    counts = [str(outcome[name]) for name in ("finished_before", "lost")]
    return [outcome["fault"], shown, *counts, f"{outcome['seconds']:.1f}", f"{outcome['limit']:.0f}"]


def _rate(value: Spread) -> str:
    return f"{value.median:.0f} ({value.low:.0f}-{value.high:.0f})"


def _mb(size: float) -> str:
    return f"{size / 1e6:.1f}"


def _x(value: float) -> str:
    return f"{value:.1f}x"


if __name__ == "__main__":
    main()
