"""What a step costs: sampling, scoring, update and sync, fitted to steps measured here, then on paper for 8B.

The form is in ``benchmarks.cost_fit``, what is measured in ``benchmarks.cost_measure``, what is on paper, with all that
is assumed for it, in ``benchmarks.cost_paper``. One number of questions is held out of the fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from benchmarks.arguments import Settings, parse, setting
from benchmarks.cost_fit import PARTS, TERMS, Line, fit, fit_line, predict
from benchmarks.cost_measure import EXCHANGED, WRITTEN, measured_steps, measured_writes
from benchmarks.cost_paper import ASSUMED, H100, H200, PUBLISHED, QWEN3_8B, paper
from benchmarks.process_group import Answer
from benchmarks.report import table, write_results
from benchmarks.timing import spread

FIT_HEADER = ("processes", "part", "coefficients", "error of fitted rows", "of held-out rows", "largest")
PAPER_HEADER = (
    "set-up",
    "variant",
    "GPU",
    "GPUs",
    "sampling",
    "scoring",
    "update",
    "sync",
    "results",
    "step, s",
    "responses/s",
    "bound by",
    "GPUs that draw / train",
    "GPUs within 10% of the best",
)


@dataclass(frozen=True, kw_only=True)
class CostSettings(Settings):
    """The grid."""

    QUICK: ClassVar[dict[str, Any]] = {"models": "tiny,embedded", "questions": "2,4,6", "tokens": "4,8", "writes": 2}

    models: str = setting("embedded,5M,20M", "sizes of benchmarks.random_models")
    processes: str = setting("1,2", "numbers of processes; together they have --threads threads")
    questions: str = setting("4,12,32", "of a step; the middle one is held out of the fit")
    tokens: str = setting("16,64", "of a response")
    writes: int = setting(len(WRITTEN), "sizes of weights that are written")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, fit, print the tables, write the JSON file."""
    settings, run = parse("cost_model", CostSettings, __doc__, arguments)
    questions, tokens = ([int(one) for one in text.split(",")] for text in (settings.questions, settings.tokens))
    shares = [(count, max(1, settings.threads // count)) for count in map(int, settings.processes.split(","))]
    steps, exchanges = measured_steps(
        settings.models.split(","),
        shares,
        [(q, t) for q in questions for t in tokens],
        min(run.repeats, 3),
        settings.seed,
    )
    exchange = fit_line(exchanges) if exchanges else Line(0.0, 0.0)
    writes = measured_writes(WRITTEN[: settings.writes])
    fits = fitted(steps, questions[len(questions) // 2], exchange)
    lines = {"exchange": exchange, "sync": fit_line(writes[:-1])}
    rows = paper()
    shown = [row for row in rows if row["gpu"] == H100.name or row["variant"] == PUBLISHED]
    print(table("Fitted to steps measured here; errors are relative, median over rows", FIT_HEADER, _fit_rows(fits)))
    print(_lines_text(lines, writes))
    print(
        table(
            "Qwen3-8B on paper: seconds by part. Nothing of this was measured", PAPER_HEADER, list(map(_cells, shown))
        )
    )
    results: Answer = {"steps": steps, "exchanges": exchanges, "writes": writes, "fits": fits, "exchanged": EXCHANGED}
    results |= {"lines": {name: asdict(line) for name, line in lines.items()}, "paper": rows}
    results |= {
        "assumed": {"general": asdict(ASSUMED), "model": asdict(QWEN3_8B), "gpus": [asdict(H100), asdict(H200)]}
    }
    write_results(run.output, "cost_model", asdict(settings) | {"run": run.as_data()}, settings.prepare(), results)
    return 0


def fitted(steps: Sequence[Answer], held_out: int, exchange: Line) -> list[Answer]:
    """Return, by number of processes and part, the coefficients and the relative error of every row."""
    found: list[Answer] = []
    for processes in sorted({row["processes"] for row in steps}):
        rows = [row for row in steps if row["processes"] == processes]
        for part in PARTS:
            coefficients = fit(part, [row for row in rows if row["questions"] != held_out], exchange)
            errors = [
                {
                    **{name: row[name] for name in ("model", "questions", "tokens")},
                    "held_out": row["questions"] == held_out,
                    "seconds": row[part],
                    "predicted": predict(part, row, coefficients, exchange),
                }
                for row in rows
            ]
            found.append({"processes": processes, "part": part, "coefficients": coefficients, "rows": errors})
    return found


def _error(row: Mapping[str, Any]) -> float:
    return abs(float(row["predicted"]) / float(row["seconds"]) - 1)


def _fit_rows(fits: Sequence[Answer]) -> list[list[str]]:
    rows = []
    for one in fits:
        named = zip(TERMS[one["part"]], one["coefficients"], strict=True)
        errors = {kept: [_error(row) for row in one["rows"] if row["held_out"] is kept] for kept in (False, True)}
        rows.append(
            [
                str(one["processes"]),
                one["part"],
                ", ".join(_coefficient(name, value) for name, value in named if value > 0),
                f"{spread(errors[False]).median:.0%}",
                f"{spread(errors[True]).median:.0%}",
                f"{max(errors[True]):.0%}",
            ]
        )
    return rows


def _coefficient(name: str, value: float) -> str:
    """Return a coefficient in a unit that can be read."""
    if name == "per FLOP":
        return f"{1e-9 / value:.3g} GFLOP/s"
    return f"{value * 1e9:.3g} ns {name}" if value < 1e-6 else f"{value * 1e3:.3g} ms {name}"


def _lines_text(lines: Mapping[str, Line], writes: Sequence[Answer]) -> str:
    exchange, sync = lines["exchange"], lines["sync"]
    held = writes[-1]
    error = abs(sync.seconds(held["bytes"]) / held["seconds"] - 1)
    return (
        f"\nexchange (gloo all-gather): {exchange.once * 1e3:.2f} ms + bytes / {exchange.bandwidth / 1e9:.2f} GB/s"
        f"\nsync (folder, written and read): {sync.once * 1e3:.2f} ms + bytes / {sync.bandwidth / 1e9:.2f} GB/s; "
        f"error of the held-out size ({held['bytes'] / 2**20:.0f} MiB) {error:.0%}"
    )


def _cells(row: Mapping[str, Any]) -> list[str]:
    parts = [f"{row[name]:.2f}" for name in ("sampling", "scoring", "update", "sync", "results")]
    return [
        *(str(row[name]) for name in ("setup", "variant", "gpu", "gpus")),
        *parts,
        f"{row['step']:.1f}",
        f"{row['rows'] / row['step']:.1f}",
        row["bound"],
        f"{row['drawing']} / {row['training']}",
        str(row["enough"]),
    ]


if __name__ == "__main__":
    raise SystemExit(main())
