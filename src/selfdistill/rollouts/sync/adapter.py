"""LoRA: only the adapter travels, under a new name for each version, beside base weights that nothing ever touches.

In: a policy with adapters. Out: adapters loaded by engines, and proven. Nothing has to pause: a request names its
adapter, and an engine keeps the cached keys of differently named adapters apart.
"""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from selfdistill.errors import RolloutError
from selfdistill.models.loading import Policy
from selfdistill.rollouts.control import Control, Served
from selfdistill.rollouts.sampler import SyncReport
from selfdistill.rollouts.sync.export import export_adapter
from selfdistill.rollouts.sync.handshake import Stale, fixed_text, shake_hands
from selfdistill.rollouts.sync.versions import Export, Versions

_KEPT = 2
"""Adapters that stay: the latest, and the one from which requests may still be running. Their folders stay as well,
because an engine may push an adapter out of its memory and read it again."""

_COURTESY = 5.0
"""Seconds that engines have, at the end, to forget the adapters: nothing depends on it."""


@dataclass(slots=True)
class _Loaded:
    """The adapters that an engine was given."""

    control: Control
    names: list[str] = field(default_factory=list)


class AdapterSync:
    """Gives engines the policy's adapters. See :class:`~selfdistill.rollouts.sync.WeightSync`.

    Args:
        policy: with adapters.
        folder: one folder per version is written here; the engines must see it under the same path.
        tolerance: of the handshake, nats.
    """

    def __init__(self, policy: Policy, folder: Path, tolerance: float) -> None:
        self._policy = policy
        self._folder = folder
        self._tolerance = tolerance
        self._versions = Versions(keep=_KEPT)
        self._loaded: dict[str, _Loaded] = {}

    @property
    def served(self) -> Served:
        """The weights of the last export."""
        return self._versions.latest.served

    def export(self, version: str) -> Served:
        """Write the present adapters to a folder of their own.

        Raises:
            RolloutError: the folder cannot be written.
        """
        started = time.monotonic()
        name = self._versions.name(version)
        text = fixed_text(self._policy)
        folder = self._folder / name
        size = export_adapter(self._policy, folder)
        served = Served(name, name)
        self._versions.add(Export(served, folder, size, time.monotonic() - started, text))
        return served

    def push(self, control: Control) -> SyncReport:
        """Load the adapters of the last export into one engine, prove them, and unload those that nobody needs.

        Raises:
            Stale: the engine draws from other weights.
            RolloutError: the engine does not take them.
        """
        started = time.monotonic()
        with self._versions.in_use() as export:
            loaded = self._loaded.setdefault(control.name, _Loaded(control))
            loaded.control = control
            _load(loaded, export)
            control.set_version(export.served.version)
            try:
                difference = shake_hands(control, export.served, export.text, self._tolerance)
            except Stale:
                # Without it, requests that name it are refused.
                with contextlib.suppress(RolloutError):
                    control.unload_adapter(export.served.version)
                raise
            # Only now: up to here the engine could still serve the version before.
            _unload(loaded, keep=_KEPT)
            seconds = export.seconds + time.monotonic() - started
        return SyncReport(export.served.version, export.bytes, seconds, difference.mean, difference.max)

    def close(self) -> None:
        """Unload the adapters wherever an engine still answers, and remove their folders."""
        calls = [
            threading.Thread(target=_take_back, args=(loaded,), name="take-back", daemon=True)
            for loaded in self._loaded.values()
        ]
        for call in calls:
            call.start()
        end = time.monotonic() + _COURTESY
        for call in calls:
            call.join(max(0.0, end - time.monotonic()))
        self._loaded.clear()
        self._versions.clear()


def _load(loaded: _Loaded, export: Export) -> None:
    """Load an export's adapter; one that an earlier, failed push may have left under its name is replaced."""
    name, folder = export.served.version, export.folder
    assert folder is not None
    if name in loaded.names:
        loaded.control.unload_adapter(name)
    else:
        loaded.names.append(name)
    loaded.control.load_adapter(name, folder)


def _unload(loaded: _Loaded, keep: int) -> None:
    """Unload all adapters but the last ``keep``; after a restart the engine may not know them any more."""
    while len(loaded.names) > keep:
        loaded.control.unload_adapter(loaded.names[0])
        del loaded.names[0]


def _take_back(loaded: _Loaded) -> None:
    """Unload all adapters of an engine that may be gone."""
    with contextlib.suppress(RolloutError):
        _unload(loaded, keep=0)
