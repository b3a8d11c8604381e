"""How an engine gets the policy's weights, exactly and provably.

::

    Policy --export--> Export (files, log-probabilities of a fixed text) --push--> Control --handshake--> SyncReport

``export`` happens once per version, while the weights stand still. ``push`` gives one engine what was exported and then
has it draw behind a fixed text: version and log-probabilities prove that it has these weights and no others. It can be
repeated, for example after a restart. Weights travel

- as a LoRA adapter, under a new name each time (:mod:`~selfdistill.rollouts.sync.adapter`); nothing is ever merged;
- all of them, by way of a folder that the engine reads (:mod:`~selfdistill.rollouts.sync.folder`);
- all of them, through vLLM's weight transfer between GPUs (:mod:`~selfdistill.rollouts.sync.transfer`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Protocol

from selfdistill.errors import RolloutError
from selfdistill.models.loading import Policy
from selfdistill.rollouts.config import RolloutsConfig
from selfdistill.rollouts.control import Control, Served
from selfdistill.rollouts.sampler import SyncReport
from selfdistill.rollouts.sync.adapter import AdapterSync
from selfdistill.rollouts.sync.export import base_folder
from selfdistill.rollouts.sync.folder import FolderSync
from selfdistill.rollouts.sync.handshake import Stale, tolerance_of

__all__ = ["Stale", "WeightSync", "base_folder", "make_sync"]


class WeightSync(Protocol):
    """Gives the policy's weights to engines, one version after the other."""

    @property
    def served(self) -> Served:
        """The weights of the last export.

        Raises:
            RolloutError: nothing was exported yet.
        """
        ...

    def export(self, version: str) -> Served:
        """Keep the policy's present weights for :meth:`push`; to be called while they stand still.

        Args:
            version: what they are called, for example ``step-000012``; the name in the result is unique beyond the run.

        Raises:
            RolloutError: they cannot be written.
        """
        ...

    def push(self, control: Control) -> SyncReport:
        """Give one engine the weights of the last export and have it prove that it draws from them.

        May be repeated, and called from several threads for different engines.

        Raises:
            Stale: the engine works, but has other weights than these.
            RolloutError: the engine cannot be given the weights, or nothing was exported yet.
        """
        ...

    def close(self) -> None:
        """Remove what was written, and take back from the engines what only this run can use."""
        ...


def make_sync(policy: Policy, config: RolloutsConfig, folder: Path, *, in_process: bool = False) -> WeightSync:
    """Return the way on which the policy's weights go to its engines.

    Args:
        policy: adapters travel if it has any, else all weights.
        config: ``server.sync`` and ``server.folder`` say how and through where, ``handshake_tolerance`` how exactly.
        folder: where weights are put, unless ``server.folder`` names another.
        in_process: the engine runs beside the trainer, on the same device.

    Raises:
        RolloutError: this way cannot be gone here.
    """
    shared = config.server.folder
    folder = (folder if shared is None else Path(shared).expanduser()).absolute()
    tolerance = tolerance_of(policy, config)
    if policy.has_adapters:
        return AdapterSync(policy, folder, tolerance)
    way = _way(policy, config, in_process)
    if way == "folder":
        return FolderSync(policy, folder, tolerance)
    if policy.device.type != "cuda":
        raise RolloutError(
            f"rollouts.server.sync: {way!r} sends weights from a GPU, and the model is on {policy.device.type}; "
            "use auto or folder"
        )
    from selfdistill.rollouts.sync.transfer import TransferSync

    return TransferSync(policy, way, tolerance, config.server.master_address)


def _way(policy: Policy, config: RolloutsConfig, in_process: bool) -> Literal["nccl", "ipc", "folder"]:
    """Return how all weights travel: as the recipe says, or the fastest way that this device knows."""
    if config.server.sync != "auto":
        return config.server.sync
    if policy.device.type != "cuda":
        return "folder"
    return "ipc" if in_process else "nccl"
