"""All weights by way of a folder: written once per version, read by each engine. For where no GPU can send them.

In: a policy whose weights are all trained. Out: engines that have replaced theirs by them, and proven it.
"""

from __future__ import annotations

import time
from pathlib import Path

from selfdistill.models.loading import Policy
from selfdistill.rollouts.control import Control, Served
from selfdistill.rollouts.sampler import SyncReport
from selfdistill.rollouts.sync.export import export_weights
from selfdistill.rollouts.sync.handshake import fixed_text
from selfdistill.rollouts.sync.update import paused, proven
from selfdistill.rollouts.sync.versions import Export, Versions


class FolderSync:
    """Has engines read the policy's weights. See :class:`~selfdistill.rollouts.sync.WeightSync`.

    Args:
        policy: without adapters.
        folder: one folder per version is written here; the engines must see it under the same path.
        tolerance: of the handshake, nats.
    """

    def __init__(self, policy: Policy, folder: Path, tolerance: float) -> None:
        self._policy = policy
        self._folder = folder
        self._tolerance = tolerance
        # Engines hold a copy of their own: only the latest is of use to one that restarts.
        self._versions = Versions(keep=1)

    @property
    def served(self) -> Served:
        """The weights of the last export."""
        return self._versions.latest.served

    def export(self, version: str) -> Served:
        """Write the present weights to a folder of their own.

        Raises:
            RolloutError: the folder cannot be written.
        """
        started = time.monotonic()
        name = self._versions.name(version)
        text = fixed_text(self._policy)
        folder = self._folder / name
        size = export_weights(self._policy, folder)
        served = Served(name, None)
        self._versions.add(Export(served, folder, size, time.monotonic() - started, text))
        return served

    def push(self, control: Control) -> SyncReport:
        """Have one engine replace its weights by those of the last export, and prove it.

        Raises:
            Stale: the engine draws from other weights.
            RolloutError: the engine does not take them.
        """
        started = time.monotonic()
        with self._versions.in_use() as export:
            assert export.folder is not None
            version = export.served.version
            with paused(control, version):
                control.reload(export.folder)
                control.reset_prefix_cache()
                control.set_version(version)
            difference = proven(control, export, self._tolerance)
            seconds = export.seconds + time.monotonic() - started
        return SyncReport(version, export.bytes, seconds, difference.mean, difference.max)

    def close(self) -> None:
        """Remove what was written."""
        self._versions.clear()
