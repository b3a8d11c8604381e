"""Extra peak memory of one contestant, always in fresh processes.

On a CPU it is the maximum resident size of a process that builds the inputs and runs the contestant once, less that of
a process which only builds the same inputs (and imports the same libraries). On CUDA it is what the allocator's peak
adds to what was allocated before the run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.machine import ROOT
from benchmarks.timing import say


class MemoryProbeError(RuntimeError):
    """A process that measures memory ended without an answer."""


@dataclass
class MemoryProbes:
    """Starts the processes, and remembers idle ones that contestants share."""

    module: str
    """Module whose ``prepare(contestant, settings)`` builds inputs and returns what is to be run."""
    raw: list[dict[str, Any]]
    """Receives every answer, for the JSON file."""
    _idle: dict[str, int] = field(default_factory=dict)

    def extra_peak(self, contestant: str, settings: Mapping[str, Any], idle_group: str) -> int:
        """Return the bytes that one run of ``contestant`` adds; ``idle_group`` names who shares an idle process."""
        answer = self._probe(contestant, settings, idle=False)
        if answer["device_bytes"] is not None:
            return int(answer["device_bytes"])
        key = json.dumps([idle_group, dict(settings)], sort_keys=True)
        if key not in self._idle:
            self._idle[key] = int(self._probe(contestant, settings, idle=True)["resident_bytes"])
        return max(0, int(answer["resident_bytes"]) - self._idle[key])

    def _probe(self, contestant: str, settings: Mapping[str, Any], *, idle: bool) -> dict[str, Any]:
        say(f"memory: {contestant}{' (idle)' if idle else ''}")
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.memory_probe", self.module, contestant]
        command += [json.dumps(dict(settings)), *(["--idle"] if idle else [])]
        paths = [*os.environ.get("PYTHONPATH", "").split(os.pathsep), str(ROOT), str(ROOT / "src")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}
        ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if ended.returncode != 0:
            raise MemoryProbeError(f"{contestant}: {(ended.stderr.strip().splitlines() or ['killed'])[-1]}")
        answer: dict[str, Any] = json.loads(ended.stdout.strip().splitlines()[-1])
        self.raw.append({"contestant": contestant, "idle": idle, "settings": dict(settings), **answer})
        return answer
