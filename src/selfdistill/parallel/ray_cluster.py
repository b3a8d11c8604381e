"""The Ray cluster of a run: somebody's, or one of this machine that is gone afterwards.

In: an address, or how much room a run needs. Out: a connection for as long as a block runs.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from selfdistill.doctor import available_cores
from selfdistill.errors import RecipeError, TrainingError
from selfdistill.parallel.failures import one_line

CONNECT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class RayOptions:
    """How a run is put on a cluster."""

    workers: int = 1
    address: str | None = None
    """``auto``, ``host:port`` or ``ray://host:port``; None: a cluster of this machine, for this run."""
    gpus_per_worker: float | None = None
    """None: one, if the recipe trains on CUDA and the cluster has GPUs."""
    cpus_per_worker: float = 1.0
    max_failures: int = 0
    placement: str = "PACK"
    servers: int = 0
    """vLLM servers that run beside the workers."""
    server_program: tuple[str, ...] | None = None
    """Started instead of vLLM with model, ``--host`` and ``--port``: for tests."""


@contextmanager
def cluster(options: RayOptions) -> Iterator[None]:
    """Connect to the cluster, or have one of this machine for as long as the block runs.

    Raises:
        TrainingError: there is none at the address.
    """
    import ray

    if options.address is not None:
        try:
            _require_reachable(options.address)
            with _on_loopback() if _is_loopback(options.address) else nullcontext():
                ray.init(address=options.address, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, ray.exceptions.RayError, RuntimeError, ValueError) as error:
            raise TrainingError(
                f"--address {options.address}: there is no Ray cluster ({one_line(str(error))[:200]}); start one with "
                "`ray start --head`, or leave out --address for one of this machine"
            ) from None
        try:
            with _stdout_is_ours():
                yield
        finally:
            ray.shutdown()
        return
    folder = tempfile.mkdtemp(prefix="sd-ray-")  # short: a socket's path has a limit
    # Ray would give its workers what others leave of the processors (nice 15); here they are what the machine is for.
    own = {"GLOO_SOCKET_IFNAME": "lo", "RAY_worker_niceness": "0"}
    with _on_loopback(), _set(own):
        try:
            cpus = math.ceil(options.workers * options.cpus_per_worker) + options.servers
            ray.init(
                num_cpus=max(available_cores(), cpus),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _node_ip_address="127.0.0.1",
                _temp_dir=folder,
            )
            _require_gpus(options)
            with _stdout_is_ours():
                yield
        finally:
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


def _require_reachable(address: str) -> None:
    """Raise OSError where nobody listens: Ray would wait for a minute, and then end this process."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if separator and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()


def _is_loopback(address: str) -> bool:
    return address.startswith(("127.", "localhost:"))


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Have a cluster of this machine listen on loopback only.

    On Linux ray.init replaces 127.0.0.1 by an address that the network reaches, unless clusters of several machines are
    switched off, as they are on other systems; the switch is read from the environment when Ray is imported.
    """
    from ray._private import ray_constants

    before = getattr(ray_constants, "ENABLE_RAY_CLUSTER", None)
    if before is None:
        yield
        return
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def _stdout_is_ours() -> Iterator[None]:
    """Have what Ray says of its nodes (a worker was killed, memory is short) go to standard error.

    It prints that on standard output, even where the logs of workers are not shown; there stands what scripts read.
    """
    from ray._private import worker

    show = getattr(worker, "print_to_stdstream", None)
    if show is None:
        yield
        return
    worker.print_to_stdstream = lambda data, *rest, **named: show({**data, "is_err": True}, *rest, **named)
    try:
        yield
    finally:
        worker.print_to_stdstream = show


@contextmanager
def _set(environment: Mapping[str, str]) -> Iterator[None]:
    """Set what the environment does not hold, for the processes that are started in the block."""
    own = {name: value for name, value in environment.items() if name not in os.environ}
    os.environ.update(own)
    try:
        yield
    finally:
        for name in own:
            os.environ.pop(name, None)


def _require_gpus(options: RayOptions) -> None:
    import ray

    wanted, there = (options.gpus_per_worker or 0) * options.workers, ray.cluster_resources().get("GPU", 0)
    if wanted > there:
        raise RecipeError(
            f"--gpus-per-worker {options.gpus_per_worker:g} with --workers {options.workers} needs {wanted:g} GPUs, "
            f"and this machine has {there:g}; lower one of them, or give the --address of a cluster"
        )


def require_ray() -> None:
    """Refuse to go on without Ray.

    Raises:
        RecipeError: it is not installed; with what to install.
    """
    try:
        import ray.train.torch  # noqa: F401
    except ImportError as error:
        raise RecipeError(
            f"--ray needs the package ray with its train extra ({error}); install it: pip install 'selfdistill[ray]', "
            "or `make ray` in a checkout"
        ) from None
