"""All weights from the trainer's GPU to an engine's, through vLLM's own weight transfer; nothing is written.

In: a policy whose weights are all trained. Out: engines that have replaced theirs by them, and proven it. ``nccl``
sends between GPUs, ``ipc`` lends memory within one. What travels are the live weights, so that an export is good for
pushes only until the weights change.
"""

from __future__ import annotations

import base64
import contextlib
import pickle
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from selfdistill.errors import RolloutError
from selfdistill.models.loading import Policy
from selfdistill.parallel.sharding import sharding_of
from selfdistill.rollouts.control import Control, Served
from selfdistill.rollouts.sampler import SyncReport
from selfdistill.rollouts.sync.export import is_tied, output_head
from selfdistill.rollouts.sync.handshake import fixed_text
from selfdistill.rollouts.sync.update import paused, proven
from selfdistill.rollouts.sync.versions import Export, Fingerprint, Versions

Backend = Literal["nccl", "ipc"]
_PATIENCE = 120.0
"""Seconds that a transfer may take besides the time for its bytes."""
_SLOWEST = 50e6
"""Bytes per second; a transfer that is slower counts as hung."""


class TransferSync:
    """Sends engines the policy's weights. See :class:`~selfdistill.rollouts.sync.WeightSync`.

    Args:
        policy: without adapters, on a GPU.
        backend: of vLLM's weight transfer; the engine must have been started for the same.
        tolerance: of the handshake, nats.
        master_address: where the engines reach this process (nccl).

    Raises:
        RolloutError: vLLM is not installed beside the trainer.
    """

    def __init__(self, policy: Policy, backend: Backend, tolerance: float, master_address: str) -> None:
        self._policy = policy
        self.backend: Backend = backend
        self._tolerance = tolerance
        self._address = master_address
        self._vllm = _import_vllm(backend)
        self._source = _Source(policy.model, self._vllm)
        self._versions = Versions(keep=1)
        self._links: dict[str, _Link] = {}

    @property
    def served(self) -> Served:
        """The weights of the last export."""
        return self._versions.latest.served

    def export(self, version: str) -> Served:
        """Name the present weights; they stay where they are."""
        started = time.monotonic()
        served = Served(self._versions.name(version), None)
        text = fixed_text(self._policy)
        size = sum(weight.numel() * weight.element_size() for _, weight in self._source.weights())
        seconds = time.monotonic() - started
        self._versions.add(Export(served, None, size, seconds, text, fingerprint(self._policy.model)))
        return served

    def push(self, control: Control) -> SyncReport:
        """Send one engine the weights, and have it prove that it has those of the last export.

        Raises:
            Stale: the engine draws from other weights.
            RolloutError: the weights have changed since the export, or do not arrive.
        """
        started = time.monotonic()
        sharding = sharding_of(self._policy.model)
        if sharding is not None and not sharding.depth:
            raise RolloutError(
                "the weights are divided over processes now and cannot be sent to an engine that has come back; it "
                "gets them before the next step is drawn"
            )
        with self._versions.in_use() as export:
            version = export.served.version
            self._require_unchanged(export)
            try:
                link = self._linked(control, export.bytes)
                with paused(control, version):
                    self._send(link, version, export.bytes)
                    control.reset_prefix_cache()
                    self._require_unchanged(export)
                difference = proven(control, export, self._tolerance)
            except BaseException:
                # After a failure the two ends may wait for different things: the next push connects anew.
                self._unlink(control.name)
                raise
            link.version = version
            seconds = export.seconds + time.monotonic() - started
        return SyncReport(version, export.bytes, seconds, difference.mean, difference.max)

    def close(self) -> None:
        """Let go of the connections."""
        for name in list(self._links):
            self._unlink(name)

    def _linked(self, control: Control, size: int) -> _Link:
        """Return the connection with an engine; one that has restarted since needs a new one."""
        link = self._links.get(control.name)
        if link is not None and control.version() == link.version:
            return link
        self._unlink(control.name)
        client = _Client(control)
        info = self._init_info(control)
        engine = self._bounded(
            control,
            size,
            lambda: self._vllm.factory.trainer_init(info, client=client, source=self._source),
        )
        link = self._links[control.name] = _Link(client, engine)
        return link

    def _unlink(self, name: str) -> None:
        link = self._links.pop(name, None)
        if link is not None:
            # A connection whose other end is gone may fail in any way, and nothing hangs on it any more.
            with contextlib.suppress(Exception):
                link.engine.shutdown()

    def _send(self, link: _Link, version: str, size: int) -> None:
        link.client.version = version
        self._bounded(link.client.control, size, link.engine.send_weights)

    def _init_info(self, control: Control) -> Any:
        """Return what vLLM has to know to connect: for nccl a meeting point and how many come to it."""
        if self.backend == "ipc":
            return self._vllm.init_info(rank=0)
        return self._vllm.init_info(
            rank=0,
            master_address=self._address,
            master_port=_free_port(self._address),
            world_size=control.world_size() + 1,
        )

    def _bounded(self, control: Control, size: int, work: Callable[[], Any]) -> Any:
        """Run a part of the transfer; whatever goes wrong in it, or takes too long, is one sentence.

        NCCL waits for ever for an engine that is gone, hence a thread. IPC asks the engine and nobody else, which has
        limits of its own, and an engine in this process wants its own thread.
        """
        limit = _PATIENCE + size / _SLOWEST
        try:
            with _on(self._policy.model):
                return work() if self.backend == "ipc" else _in_thread(work, limit, self._policy.model)
        except RolloutError:
            raise
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")[:200]
            raise RolloutError(
                f"the weights do not get to {control.name} by {self.backend} ({reason}); start the server for it "
                "(selfdistill serve), or set rollouts.server.sync=folder"
            ) from error

    def _require_unchanged(self, export: Export) -> None:
        """Refuse to pass off later weights as those that were exported."""
        if fingerprint(self._policy.model) != export.fingerprint:
            raise RolloutError(
                f"the trainer's weights are no longer those of {export.served.version!r} and cannot be sent as such: "
                "they changed since the export; set rollouts.server.sync=folder (it keeps a copy), or rollouts.ahead=0"
            )


def fingerprint(model: nn.Module) -> Fingerprint:
    """Return what changes whenever a weight is written to or replaced, without reading any."""
    return tuple((weight.data_ptr(), weight._version) for weight in model.parameters())


class _Client:
    """A control as vLLM's trainer engines want it; the version goes along when an update is finished."""

    def __init__(self, control: Control) -> None:
        self.control = control
        self.version: str | None = None

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self.control.init_weight_transfer_engine(init_info)

    def start_weight_update(self) -> None:
        self.control.start_weight_update()

    def update_weights(self, update_info: Any) -> None:
        self.control.update_weights(_portable(update_info))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.control.finish_weight_update(weight_version or self.version)


@dataclass(slots=True)
class _Link:
    """A connection with an engine."""

    client: _Client
    engine: Any
    """vLLM's ``TrainerWeightTransferEngine``."""
    version: str | None = None
    """What the engine was last given."""


@dataclass(frozen=True, slots=True)
class _Vllm:
    """What is used of vLLM."""

    factory: Any
    init_info: Any
    metadata: Any
    full: Any


class _Source:
    """The weights as vLLM's ``WeightSource``: names and shapes beforehand, then the tensors one by one."""

    def __init__(self, model: nn.Module, vllm: _Vllm) -> None:
        self._model = model
        self._vllm = vllm

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every weight once, and a head that is tied to the embeddings under its own name too."""
        yield from self._model.named_parameters()
        if is_tied(self._model):
            yield output_head(self._model)

    def metadata(self) -> list[Any]:
        return [self._vllm.metadata(name, weight.dtype, tuple(weight.shape)) for name, weight in self.weights()]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, weight in self.weights():
            yield name, self._vllm.full(weight.detach())


def _import_vllm(backend: Backend) -> _Vllm:
    """Import the trainer's half of vLLM's weight transfer."""
    try:
        from vllm.distributed.weight_transfer import base, factory

        if backend == "ipc":
            from vllm.distributed.weight_transfer.ipc_engine import (
                IPCTrainerInitInfo as InitInfo,
            )
        else:
            from vllm.distributed.weight_transfer.nccl_engine import (
                NCCLTrainerInitInfo as InitInfo,
            )
        return _Vllm(factory.WeightTransferTrainerFactory, InitInfo, base.ParamMeta, base.materialize_full_tensor)
    except (ImportError, AttributeError) as error:
        raise RolloutError(
            f"rollouts.server.sync: {backend!r} needs vLLM 0.32 in the trainer's environment too ({error}); install "
            "selfdistill[vllm], or set rollouts.server.sync=folder"
        ) from error


def _free_port(address: str) -> int:
    """Return a port on which this machine can be met."""
    try:
        with socket.socket() as probe:
            probe.bind((address, 0))
            port: int = probe.getsockname()[1]
            return port
    except OSError as error:
        raise RolloutError(
            f"rollouts.server.master_address: {address!r} is no address of this machine ({error}); give the one at "
            "which the servers reach it"
        ) from error


def _in_thread(work: Callable[[], Any], limit: float, model: nn.Module) -> Any:
    """Return what ``work`` returns, or give it up after ``limit`` seconds."""
    outcome: list[Any] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            with _on(model):
                outcome.append(work())
        except BaseException as error:  # it belongs to the thread that waits
            failure.append(error)

    thread = threading.Thread(target=run, name="weight-transfer", daemon=True)
    thread.start()
    thread.join(limit)
    if thread.is_alive():
        raise TimeoutError(f"not done after {limit:.0f} s")
    if failure:
        raise failure[0]
    return outcome[0]


def _on(model: nn.Module) -> contextlib.AbstractContextManager[Any]:
    """Make the model's device the current one of this thread."""
    device = next(model.parameters()).device
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def _portable(update_info: Any) -> Any:
    """Return vLLM's update with its handles of GPU memory pickled: they cross to another process as text.

    The engine unpickles them only where ``VLLM_ALLOW_INSECURE_SERIALIZATION`` is set, which ``selfdistill serve`` does.
    """
    if not isinstance(update_info, dict) or update_info.get("ipc_handles") is None:
        return update_info
    rest = {name: value for name, value in update_info.items() if name != "ipc_handles"}
    return rest | {"ipc_handles_pickled": base64.b64encode(pickle.dumps(update_info["ipc_handles"])).decode()}
