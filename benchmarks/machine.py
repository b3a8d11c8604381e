"""What a figure depends on besides the code: versions, machine, commit.

In: nothing, or the torch device. Out: plain dictionaries for the JSON file. Nothing here names a folder of the machine.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "transformers", "triton", "trl", "liger-kernel", "accelerate", "numpy", "selfdistill")
TUNING = ("OMP_", "MKL_", "KMP_", "MALLOC_", "GLIBC_TUNABLES", "THP_MEM_ALLOC_ENABLE", "PYTORCH_", "TORCH")
"""Beginnings of the names of environment variables that change speed or memory."""
PLACES = ("_DIR", "_PATH", "_HOME", "_ROOT")
"""Ends of the names of those that only say where something lies."""
OURS = ("src", "benchmarks")
"""Folders whose uncommitted changes make a figure irreproducible."""


def _tunes(key: str) -> bool:
    return key.startswith(TUNING) and not key.endswith(PLACES)


def installed(package: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, Any]:
    """Return Python's and the packages' versions, and the commit of this repository."""
    found = {name: installed(name) for name in PACKAGES}
    return {"python": platform.python_version(), **found, "commit": _git("rev-parse", "HEAD"), "changed": _changed()}


def machine(device: torch.device, threads: int) -> dict[str, Any]:
    """Return processor, cores, threads, memory and, on CUDA, the GPU."""
    described: dict[str, Any] = {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": threads,
        "memory_gib": _memory_gib(),
        "environment": {key: value for key, value in sorted(os.environ.items()) if _tunes(key)},
        "preloaded": bool(os.environ.get("LD_PRELOAD")),  # another allocator, perhaps; its path is nobody's business
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        described |= {"gpu": properties.name, "gpu_memory_gib": round(properties.total_memory / 2**30, 1)}
        described |= {"cuda": torch.version.cuda, "capability": list(torch.cuda.get_device_capability(device))}
    return described


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError):
        return None


def _git(*arguments: str) -> str | None:
    command = ["git", "-c", f"safe.directory={ROOT}", *arguments]
    try:
        answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()


def _changed() -> bool | None:
    """Say whether the measured code differs from the commit; None where there is no git."""
    status = _git("status", "--porcelain", "--", *OURS)
    return None if status is None else bool(status)
