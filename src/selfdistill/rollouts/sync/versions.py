"""What was exported: unique names, the latest version, and folders that go when no engine can need them any more."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from selfdistill.errors import RolloutError
from selfdistill.rollouts.control import Served
from selfdistill.rollouts.sync.handshake import FixedText

Fingerprint = tuple[tuple[int, int], ...]
"""Of every weight: where it lies, and how often it was written to."""


@dataclass(frozen=True, slots=True, eq=False)
class Export:
    """One version of the weights, ready for any number of engines."""

    served: Served
    folder: Path | None
    """Where it lies; None: the weights stay in the trainer."""
    bytes: int
    """What travels to one engine."""
    seconds: float
    """How long the export took."""
    text: FixedText
    fingerprint: Fingerprint | None = None
    """Of the weights, where they are not copied."""


class Versions:
    """The exports of one run, safe to use from several threads.

    Args:
        keep: how many of the latest exports stay on disk; older ones go unless they are being pushed.
    """

    def __init__(self, keep: int) -> None:
        self._keep = keep
        # Runs may share an engine, and an engine may outlive a run: the same step is not the same weights.
        self._nonce = secrets.token_hex(4)
        self._named: Counter[str] = Counter()
        self._exports: list[Export] = []
        self._busy: Counter[str] = Counter()
        self._lock = threading.Lock()

    def name(self, version: str) -> str:
        """Return a name for a version that was never given before, here or in another run."""
        with self._lock:
            self._named[version] += 1
            count = self._named[version]
        return f"{self._nonce}-{version}" if count == 1 else f"{self._nonce}-{version}-{count}"

    def add(self, export: Export) -> None:
        """Make an export the latest."""
        with self._lock:
            self._exports.append(export)
            self._tidy()

    @property
    def latest(self) -> Export:
        """The last export.

        Raises:
            RolloutError: there is none.
        """
        with self._lock:
            if not self._exports:
                raise RolloutError("no weights were exported yet, so that no engine can have them; sync first")
            return self._exports[-1]

    @contextlib.contextmanager
    def in_use(self) -> Iterator[Export]:
        """Yield the last export; its folder stays until the block ends."""
        export = self.latest
        version = export.served.version
        with self._lock:
            self._busy[version] += 1
        try:
            yield export
        finally:
            with self._lock:
                self._busy[version] -= 1
                self._tidy()

    def clear(self) -> None:
        """Remove all that was written, and the folder above it if nothing else is in it."""
        with self._lock:
            folders = [export.folder for export in self._exports if export.folder is not None]
            self._exports = []
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
        for parent in {folder.parent for folder in folders}:
            with contextlib.suppress(OSError):
                parent.rmdir()

    def _tidy(self) -> None:
        """Forget the exports that no engine can need any more."""
        old = self._exports[: -self._keep]
        for export in old:
            if self._busy[export.served.version] > 0:
                continue
            self._exports.remove(export)
            if export.folder is not None:
                shutil.rmtree(export.folder, ignore_errors=True)
