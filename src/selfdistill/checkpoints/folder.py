"""The folder of a run's checkpoints: which there are, which is the best, and what a killed run left behind.

Only complete checkpoints have a name like ``step-000020``. While one is written it is ``.step-000020.partial``, and one
that it is about to replace is ``.step-000020.replaced``.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfdistill.checkpoints.manifest import STATE, Manifest, encode
from selfdistill.checkpoints.storage import HashedFile, sync_folder

OLD_STATE = "state.pt"
"""The only file of a checkpoint that version 0.1.0 wrote."""
BEST = "best.json"
PARTIAL, REPLACED = "partial", "replaced"
_STEP = re.compile(r"step-(\d{6,})")
_LEFTOVER = re.compile(rf"\.(step-\d{{6,}})\.({PARTIAL}|{REPLACED})")


@dataclass(frozen=True, slots=True)
class Best:
    """The best checkpoint so far."""

    step: int
    score: float
    """Of the evaluation of its weights: avg@k."""


@dataclass(frozen=True, slots=True)
class CheckpointFolder:
    """Paths and names; everything that writes is called by the main process only."""

    path: Path

    def of(self, step: int) -> Path:
        """Return where the checkpoint after ``step`` steps is."""
        return self.path / f"step-{step:06d}"

    def partial(self, step: int) -> Path:
        """Return where it is while it is written."""
        return self.path / f".step-{step:06d}.{PARTIAL}"

    def present(self) -> list[int]:
        """Return the steps that have a folder, complete or not, oldest first."""
        if not self.path.is_dir():
            return []
        found = (_STEP.fullmatch(path.name) for path in self.path.iterdir() if path.is_dir())
        return sorted(int(match[1]) for match in found if match)

    def steps(self) -> list[int]:
        """Return the steps whose checkpoint was written to its end, oldest first."""
        return [step for step in self.present() if any((self.of(step) / name).is_file() for name in (STATE, OLD_STATE))]

    @property
    def newest(self) -> Path:
        """The newest of them. Raises IndexError if there is none."""
        return self.of(self.steps()[-1])

    def is_old(self, step: int) -> bool:
        """Say whether the checkpoint is a single file of version 0.1.0."""
        return (self.of(step) / OLD_STATE).is_file() and not (self.of(step) / STATE).exists()

    def begin(self, step: int) -> Path:
        """Make an empty folder to write the checkpoint of ``step`` into."""
        partial = self.partial(step)
        _remove(partial)
        partial.mkdir(parents=True)
        return partial

    def commit(self, manifest: Manifest) -> None:
        """Write ``state.json`` beside the tensors' files, and give the folder its name."""
        partial, target = self.partial(manifest.step), self.of(manifest.step)
        _write(partial / STATE, encode(manifest))
        sync_folder(partial)
        replaced = self.path / f".{target.name}.{REPLACED}"
        _remove(replaced)
        if target.exists():
            os.rename(target, replaced)
        os.rename(partial, target)
        sync_folder(self.path)
        _remove(replaced)

    def abandon(self, step: int) -> None:
        """Remove what was written of a checkpoint that has not become complete."""
        _remove(self.partial(step))

    def prune(self, keep: int) -> None:
        """Remove all but the newest ``keep`` checkpoints and the best one."""
        best = self.best()
        for step in self.steps()[:-keep]:
            if best is None or step != best.step:
                _remove(self.of(step))

    def sweep(self) -> None:
        """Remove what a killed run left; a checkpoint that it was about to replace gets its name back."""
        if not self.path.is_dir():
            return
        for path in list(self.path.iterdir()):
            match = _LEFTOVER.fullmatch(path.name)
            if match and match[2] == REPLACED and not (self.path / match[1]).exists():
                os.rename(path, self.path / match[1])
            elif match or path.name == f".{BEST}":
                _remove(path)
        for step in self.present():  # version 0.1.0 made the folder first
            if {path.name for path in self.of(step).iterdir()} <= {f".{OLD_STATE}"}:
                _remove(self.of(step))

    def set_aside(self, step: int) -> Path:
        """Rename a checkpoint that cannot be used, so that it does not count any more, and return its new path."""
        place = self.path / f"unusable-{self.of(step).name}"
        _remove(place)
        os.rename(self.of(step), place)
        return place

    def best(self) -> Best | None:
        """Return the best checkpoint; None if there is none, or its folder is gone."""
        try:
            content: Any = json.loads((self.path / BEST).read_text(encoding="utf-8"))
            best = Best(int(content["step"]), float(content["score"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return best if best.step in self.steps() and math.isfinite(best.score) else None

    def mark_best(self, best: Best) -> None:
        """Write ``best.json``; the checkpoint must be there."""
        content = {"step": best.step, "score": best.score, "checkpoint": self.of(best.step).name}
        temporary = self.path / f".{BEST}"
        _write(temporary, (json.dumps(content, indent=1) + "\n").encode())
        os.replace(temporary, self.path / BEST)
        sync_folder(self.path)


def _write(path: Path, content: bytes) -> None:
    file = HashedFile(path)
    try:
        file.write(content)
        file.close()
    finally:
        file.abandon()


def _remove(path: Path) -> None:
    """Remove a file or folder, if it is there, under another name first: half a checkpoint must not keep its name."""
    if path.is_dir():
        with suppress(OSError):
            hidden = path if path.name.startswith(".") else path.with_name(f".{path.name}.{PARTIAL}")
            if hidden != path:
                shutil.rmtree(hidden, ignore_errors=True)
                os.rename(path, hidden)
            shutil.rmtree(hidden, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
