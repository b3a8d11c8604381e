"""The processes of a run: who this one is, and how it speaks with the others.

In: what the launcher says (torchrun's variables, ``--nproc``, Ray). Out: a :class:`World`. With one process it is
:data:`ALONE`, nothing is initialised, and every exchange returns what it was given.

Every exchange is made by all processes, whatever their data, in the same order. Work that can fail on one process alone
goes into :meth:`World.each`: all then learn of the failure, instead of waiting for a process that will not come.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from selfdistill.errors import RolloutError, SelfDistillError
from selfdistill.parallel.failures import PeerError
from selfdistill.parallel.watchdog import watching

if TYPE_CHECKING:  # a launcher, which only starts others, has no use for torch
    import torch

T = TypeVar("T")


class StopRequested(Exception):
    """Work that can be continued was left because a stop is wanted."""


@dataclass(frozen=True, slots=True)
class World:
    """This process among the processes of a run.

    Args:
        rank: which one it is, from 0.
        size: how many there are.
        local_rank: which one it is on its node.
        local_size: how many there are on each node.
        group: a gloo group for objects in CPU memory; None with one process.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    group: Any = field(default=None, repr=False)
    timeout_seconds: float = 1800.0
    """Longest that this process waits for the others."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes what the run writes once, and speaks to the user."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Return every process's ``value``, by rank.

        Raises:
            PeerError: a process is gone, or did not come in time.
        """
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        with losing_peers(), watching("waiting for the other processes", self.timeout_seconds):
            dist.all_gather_object(values, value, group=self.group)
        return values

    def each(self, work: Callable[[], T]) -> list[T]:
        """Do ``work`` on every process and return what each returned, by rank.

        Raises:
            Exception: what this process's own ``work`` raised.
            RolloutError: an engine failed elsewhere.
            StopRequested: a stop is wanted elsewhere.
            PeerError: something else failed elsewhere.
        """
        if self.size == 1:
            return [work()]
        try:
            mine = work()
        except PeerError:
            raise  # nobody is left to be told
        except Exception as error:
            self.gather((None, error_text(error), type(error).__name__))
            raise
        results = self.gather((mine, None, ""))
        for rank, (_, text, kind) in enumerate(results):
            if text is not None:
                raise _KINDS.get(kind, PeerError)(f"process {rank} of {self.size} failed: {text}")
        return [value for value, _, _ in results]

    def main(self, work: Callable[[], T]) -> T:
        """Do ``work`` on the main process alone and return what it returned everywhere. Raises as :meth:`each`."""
        if self.size == 1:
            return work()
        import torch.distributed as dist

        sent: list[Any] = [None]
        failure: Exception | None = None
        if self.is_main:
            try:
                sent = [(work(), None, "")]
            except Exception as error:
                failure, sent = error, [(None, error_text(error), type(error).__name__)]
        with losing_peers(), watching("waiting for the main process", self.timeout_seconds):
            dist.broadcast_object_list(sent, src=0, group=self.group)
        if failure is not None:
            raise failure
        value, text, kind = sent[0]
        if text is not None:
            raise _KINDS.get(kind, PeerError)(f"process 0 of {self.size} failed: {text}")
        result: T = value
        return result

    def any(self, flag: bool) -> bool:
        """Return whether ``flag`` is set on some process."""
        return any(self.gather(flag))


_KINDS: dict[str, type[Exception]] = {"RolloutError": RolloutError, "StopRequested": StopRequested}
"""What all processes raise if one does: it leads to the same thing on all of them."""


def error_text(error: BaseException) -> str:
    """Return the error's text, or its name if it has none."""
    return str(error) or type(error).__name__


@contextmanager
def losing_peers() -> Iterator[None]:
    """Turn what the communication library says about a process that is gone, or late, into one sentence.

    Raises:
        PeerError: in place of its error.
    """
    import torch.distributed as dist

    try:
        yield
    except RuntimeError as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        if isinstance(error, SelfDistillError) or not (
            isinstance(error, dist.DistError) or any(word in line.lower() for word in _LOST)
        ):
            raise
        raise PeerError(
            f"another process of the run is gone or hangs ({line}); its own output says why, and --resume goes on from "
            "the last checkpoint"
        ) from error


_LOST = ("connection", "timed out", "timeout", "socket", "peer", "gloo", "nccl")


ALONE = World()
"""One process."""


def join(timeout_seconds: float, device_type: str, environment: Mapping[str, str] = os.environ) -> World:
    """Return this process's place among those that a launcher has started; :data:`ALONE` if there is no launcher.

    Reads torchrun's variables (RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT). A process
    group that exists already (Ray Train makes one) is used.

    Raises:
        SelfDistillError: the variables are incomplete, or the processes do not find each other in time.
    """
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        return _world(dist.get_rank(), dist.get_world_size(), environment, timeout_seconds)
    size = int(environment.get("WORLD_SIZE", "1"))
    if size == 1:
        return ALONE
    lacking = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in environment]
    store = environment.get("SELFDISTILL_STORE")  # of `--nproc`: a file, so that nothing listens
    if lacking and not (store and "RANK" in environment):
        raise SelfDistillError(
            f"WORLD_SIZE is {size}, but {', '.join(lacking)} is not set; start the processes with torchrun, with "
            "--nproc, or with --ray, or unset WORLD_SIZE"
        )
    local = int(environment.get("LOCAL_RANK", "0"))
    if device_type == "cuda":
        import torch

        torch.cuda.set_device(local)
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo",
            store=_store(f"file://{store}" if store else "env://", environment, timeout_seconds),
            rank=int(environment["RANK"]),
            world_size=size,
            timeout=_longer(timeout_seconds),
        )
    except (RuntimeError, ValueError) as error:
        line = str(error).strip().splitlines()[0]
        raise SelfDistillError(
            f"process {environment['RANK']} of {size} did not find the others ({line}); check MASTER_ADDR and "
            "MASTER_PORT, and that all were started"
        ) from error
    return _world(int(environment["RANK"]), size, environment, timeout_seconds)


def _store(place: str, environment: Mapping[str, str], timeout_seconds: float) -> Any:
    """Return where the processes leave their addresses for each other.

    After a failure torchrun starts them again on the same store (``--standalone`` at least), where the addresses of
    those that are gone still stand: every attempt has names of its own there.
    """
    import torch.distributed as dist

    rank, size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    rendezvous: Any = dist.rendezvous  # type: ignore[attr-defined]
    store, _, _ = next(iter(rendezvous(place, rank, size, timeout=timedelta(seconds=timeout_seconds))))
    return dist.PrefixStore(  # type: ignore[attr-defined]
        f"attempt-{environment.get('TORCHELASTIC_RESTART_COUNT', '0')}", store
    )


def local_device(name: str, world: World) -> torch.device:
    """Return the device of this process: its node's GPU number ``local_rank``, or the CPU."""
    import torch

    from selfdistill.models.loading import resolve_device

    device = resolve_device(name)
    return torch.device("cuda", world.local_rank) if device.type == "cuda" and world.size > 1 else device


@contextmanager
def joined(timeout_seconds: float, device_type: str) -> Iterator[World]:
    """:func:`join` for the length of a block; a process group that was there before stays.

    Raises:
        PeerError: inside the block a process got lost.
    """
    import torch.distributed as dist

    found = dist.is_available() and dist.is_initialized()
    world = join(timeout_seconds, device_type)
    try:
        with losing_peers() if world.size > 1 else nullcontext():
            yield world
    finally:
        if world.size > 1 and not found:
            dist.destroy_process_group()


def _world(rank: int, size: int, environment: Mapping[str, str], timeout_seconds: float) -> World:
    import torch.distributed as dist

    if size == 1:
        return ALONE
    group = dist.new_group(backend="gloo", timeout=_longer(timeout_seconds))
    local_size = int(environment.get("LOCAL_WORLD_SIZE", str(size)))
    return World(rank, size, int(environment.get("LOCAL_RANK", str(rank))), local_size, group, timeout_seconds)


def _longer(seconds: float) -> timedelta:
    """Return the library's own time-out: the watchdog, which finds out who hangs, is to come first."""
    return timedelta(seconds=1.5 * seconds + 60)
