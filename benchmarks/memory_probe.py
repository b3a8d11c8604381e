"""One fresh process: build the inputs, run one contestant once (or not at all), say how much memory that took.

``python -m benchmarks.memory_probe MODULE CONTESTANT SETTINGS [--idle]``; the last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.timing import synchronise


def main(arguments: Sequence[str] | None = None) -> None:
    """Probe what the command line names and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("module", help="module with a function prepare(contestant, settings)")
    parser.add_argument("contestant")
    parser.add_argument("settings", type=json.loads, help="JSON object")
    parser.add_argument("--idle", action="store_true", help="build the inputs only")
    given = parser.parse_args(arguments)
    device = torch.device(given.settings["device"])
    work = importlib.import_module(given.module).prepare(given.contestant, given.settings)
    gc.collect()
    before = _allocated(device)
    forgotten = _forget_peak()
    if not given.idle:
        work()
        synchronise(device)
    extra = None if before is None else torch.cuda.max_memory_allocated(device) - before
    print(json.dumps({"resident_bytes": _peak_resident(forgotten), "device_bytes": extra}))


def _allocated(device: torch.device) -> int | None:
    """Return the bytes in use on a CUDA device, and start a new peak there; None for a CPU."""
    if device.type != "cuda":
        return None
    synchronise(device)
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _forget_peak() -> bool:
    """Start a new peak of the resident size, so that building the inputs cannot hide a run; Linux only."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _peak_resident(since_inputs: bool) -> int:
    """Return the largest resident size in bytes: since the inputs were built, or of the whole life of the process."""
    if since_inputs:
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes there, KiB elsewhere


if __name__ == "__main__":
    main()
