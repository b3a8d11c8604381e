"""The table that a benchmark prints and the JSON file that it writes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import ROOT, machine, versions
from benchmarks.timing import Spread

NOTHING = ""


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table with its title; columns are padded so that it also reads as plain text."""
    columns = [[str(row[index]) for row in (header, *rows)] for index in range(len(header))]
    widths = [max(len(cell) for cell in column) for column in columns]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([f"\n{title}\n", line(header), rule, *map(line, rows)])


def seconds(value: Spread | None) -> str:
    """Return ``1.23 (1.20-1.31)``, or nothing."""
    return NOTHING if value is None else f"{value.median:.3g} ({value.low:.3g}-{value.high:.3g})"


def times(value: Spread | None) -> str:
    """Return ``1.23x (1.20-1.31)``, or nothing."""
    return NOTHING if value is None else f"{value.median:.2f}x ({value.low:.2f}-{value.high:.2f})"


def gibibytes(value: int | None) -> str:
    """Return bytes as ``0.12 GiB``, or nothing."""
    return NOTHING if value is None else f"{value / 2**30:.2f} GiB"


def default_output(name: str, device: torch.device, quick: bool) -> Path:
    """Return where the results of a benchmark go; those of a quick run apart, because they mean nothing."""
    folder = ROOT / "benchmarks" / "results"
    return (folder / "quick" if quick else folder) / f"{name}-{device.type}.json"


def write_results(
    path: Path, name: str, arguments: Mapping[str, Any], device: torch.device, results: Mapping[str, Any]
) -> None:
    """Write everything that a reader needs to judge or repeat a run: versions, machine, arguments, raw figures."""
    document = {
        "benchmark": name,
        "versions": versions(),
        "machine": machine(device, torch.get_num_threads()),
        "arguments": dict(arguments),
        **results,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
