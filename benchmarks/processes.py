"""Steps on two processes of one thread against one process of two: both have the same two cores and the same recipe.

The two groups of processes take turns, step by step. What is drawn and trained on is the same in both (that is what
``benchmarks.parity`` shows), so a ratio of tokens per second is one of seconds. ``--profile`` says where time goes.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.arguments import Run, Settings, parse, setting
from benchmarks.process_group import Answer, ProcessGroup, is_worker, progress, serve
from benchmarks.random_models import open_recipe, write_model
from benchmarks.report import seconds, table, times, write_results
from benchmarks.stopwatches import REST, Stopwatches
from benchmarks.timing import Spread, ratio, spread

HEADER = (
    "recipe",
    "processes x threads",
    "seconds per step",
    "sampling",
    "verifying",
    "update",
    "sampled tokens/s",
    "trained tokens/s",
    "against one process",
)
PROFILE_HEADER = ("recipe", "where", "1 process, s", "2 processes, s (rank 0)", "(rank 1)", "calls")
PHASES = ("sampling", "verifying", "update")
ONE, MORE = "one", "more"

Figures = dict[str, list[dict[str, float]]]
"""By contestant, one entry per round."""


@dataclass(frozen=True, kw_only=True)
class ProcessesSettings(Settings):
    """What takes a step, and how it is divided."""

    QUICK: ClassVar[dict[str, Any]] = {
        "cases": "embedded:paint,tiny:paint",
        "overrides": "train.questions_per_step=4 rollouts.sampling.max_new_tokens=8",
        "steps": 1,
    }

    cases: str = setting("embedded:sc_sdpo,embedded:paint,20M:paint", "model:method, separated by commas")
    processes: int = setting(2, "that share the work; each has threads / processes threads")
    steps: int = setting(1, "of every turn")
    overrides: str = setting("", "of every recipe, separated by blanks")
    profile: bool = setting(False, "say where time goes, in processes of their own")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables, write the JSON file."""
    settings, run = parse("processes", ProcessesSettings, __doc__, arguments)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        paths = {name: write_model(name, folder, settings.seed) for name in _models(settings)}
        given = asdict(settings) | {"paths": paths, "folder": str(folder)}
        found = measure(settings, run, given, folder)
        profiles = profile(settings, run, given, folder) if settings.profile else {}
    summary = {case: summarised(figures) for case, figures in found.items()}
    rows = [row for case, one in summary.items() for row in _rows(case, one, settings)]
    print(table("The same steps on one process and on several", HEADER, rows))
    if profiles:
        print(table("Where a step's seconds go", PROFILE_HEADER, _profile_rows(profiles)))
    _write(run, settings, {"rounds": found, "summary": summary, "profiles": profiles})
    return 0


def measure(settings: ProcessesSettings, run: Run, given: Mapping[str, Any], folder: Path) -> dict[str, Figures]:
    """Return every case's rounds, in which both contestants take their turns."""
    found: dict[str, Figures] = {case: {ONE: [], MORE: []} for case in settings.cases.split(",")}
    with ExitStack() as stack:
        groups = _groups(settings, given, folder, stack)
        for case in found:
            for index in range(-run.warmup, run.repeats):
                for name, group in groups.items():
                    answers = group.ask({"case": case, "steps": settings.steps})
                    progress(group, f"{case}, round {index + 1}: {answers[0]['wall']:.2f} s")
                    if index >= 0:
                        found[case][name].append(answers[0])
    return found


def profile(
    settings: ProcessesSettings, run: Run, given: Mapping[str, Any], folder: Path
) -> dict[str, dict[str, list[Answer]]]:
    """Return, by case and contestant, each process's seconds by place."""
    found: dict[str, dict[str, list[Answer]]] = {}
    with ExitStack() as stack:
        groups = _groups(settings, dict(given) | {"watched": True}, folder, stack)
        for case in settings.cases.split(","):
            for name, group in groups.items():
                for _ in range(run.warmup):
                    group.ask({"case": case, "steps": 1})
                answers = group.ask({"case": case, "steps": 2 * settings.steps})
                found.setdefault(case, {})[name] = answers
    return found


def summarised(figures: Figures) -> dict[str, dict[str, Spread]]:
    """Return the spreads of a case: seconds and rates of both contestants, and the ratios of the rounds."""
    answer = {
        name: {key: spread([one[key] for one in rounds]) for key in rounds[0]} for name, rounds in figures.items()
    }
    one, more = figures[ONE], figures[MORE]
    answer["ratio"] = {
        key: ratio([a[key] for a in one], [b[key] for b in more])
        for key in ("wall", *(name for name in PHASES if all(name in entry for entry in one)))
    }
    return answer


def _groups(
    settings: ProcessesSettings, given: Mapping[str, Any], folder: Path, stack: ExitStack
) -> dict[str, ProcessGroup]:
    shares = {ONE: (1, settings.threads), MORE: (settings.processes, max(1, settings.threads // settings.processes))}
    return {
        name: stack.enter_context(ProcessGroup("benchmarks.processes", count, threads, given, folder))
        for name, (count, threads) in shares.items()
    }


def _models(settings: ProcessesSettings) -> list[str]:
    return sorted({case.partition(":")[0] for case in settings.cases.split(",")})


def worker(given: Answer, world: Any) -> Callable[[Answer], Answer]:
    """Return what takes the steps of a case, as one of the processes."""
    from selfdistill.training.progress import NullProgress
    from selfdistill.training.run import take_step
    from selfdistill.training.start import start

    watches = Stopwatches()
    if given.get("watched"):
        watches.install()
    runs: dict[str, Any] = {}

    def handle(request: Answer) -> Answer:
        case = request["case"]
        if case not in runs:
            model, _, method = case.partition(":")
            folder = Path(given["folder"]) / f"{case}-{world.size}-{bool(given.get('watched'))}"
            recipe = open_recipe(method, given["paths"][model], folder, given["overrides"].split())
            runs[case] = start(recipe, resume=False, progress=NullProgress(), world=world)
        world.gather(None)
        watches.reset()
        started = time.perf_counter()
        steps = [take_step(runs[case]) for _ in range(request["steps"])]
        wall = (time.perf_counter() - started) / len(steps)
        if given.get("watched"):
            return _places(watches, wall, len(steps))
        return {"wall": wall, **_rates(steps)}

    return handle


def _rates(steps: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return mean seconds per phase, and tokens per second over all of the steps."""
    totals = {name: sum(one[f"seconds/{name}"] for one in steps) for name in PHASES}
    answer = {name: total / len(steps) for name, total in totals.items()}
    for name in ("sampling", "update"):
        tokens = sum(one.get(f"tokens_per_second/{name}", 0.0) * one[f"seconds/{name}"] for one in steps)
        answer |= {f"{name}_rate": tokens / totals[name], f"{name}_tokens": tokens / len(steps)}
    return answer


def _places(watches: Stopwatches, wall: float, steps: int) -> Answer:
    places = {label: total / steps for label, total in watches.seconds.items()}
    places[REST] = wall - sum(places.values())
    return {"wall": wall, "seconds": places, "calls": {label: n / steps for label, n in watches.calls.items()}}


def _rows(case: str, found: Mapping[str, Mapping[str, Spread]], settings: ProcessesSettings) -> list[list[str]]:
    labels = {
        ONE: f"1 x {settings.threads}",
        MORE: f"{settings.processes} x {max(1, settings.threads // settings.processes)}",
    }
    return [
        [
            case.replace(":", ", ") if name == ONE else "",
            label,
            seconds(found[name]["wall"]),
            *(seconds(found[name].get(phase)) for phase in PHASES),
            *(f"{found[name][key].median:.0f}" for key in ("sampling_rate", "update_rate")),
            times(found["ratio"]["wall"]) if name == MORE else "",
        ]
        for name, label in labels.items()
    ]


def _profile_rows(profiles: Mapping[str, Mapping[str, Sequence[Answer]]]) -> list[list[str]]:
    rows: list[list[str]] = []
    for case, found in profiles.items():
        (alone,), several = found[ONE], found[MORE]
        labels = sorted(several[0]["seconds"], key=lambda label: -several[0]["seconds"][label])
        rows.append([case, "a step", f"{alone['wall']:.3f}", *(f"{one['wall']:.3f}" for one in several[:2]), ""])
        for label in labels:
            cells = [f"{one['seconds'].get(label, 0.0):.3f}" for one in (alone, *several[:2])]
            rows.append(["", label, *cells, f"{several[0]['calls'].get(label, 0):.0f}"])
    return rows


def _write(run: Run, settings: ProcessesSettings, results: Mapping[str, Any]) -> None:
    plain = {
        case: {name: {key: value._asdict() for key, value in one.items()} for name, one in found.items()}
        for case, found in results["summary"].items()
    }
    write_results(
        run.output,
        "processes",
        asdict(settings) | {"run": run.as_data()},
        settings.prepare(),
        {**results, "summary": plain},
    )


if __name__ == "__main__":
    if is_worker():
        serve(worker)
    else:
        raise SystemExit(main())
