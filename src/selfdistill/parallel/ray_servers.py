"""vLLM servers as Ray actors: put where the cluster has room, waited for, started again when one dies, ended together.

In: the recipe, and how many. Out: their addresses, for ``rollouts.server.urls``. Each is started with the command that
``selfdistill serve`` would print for it, and keeps its address when it is started again.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from selfdistill.errors import RolloutError, SelfDistillError
from selfdistill.parallel.failures import one_line
from selfdistill.parallel.ray_worker import enter_folder, travelled_recipe

START_SECONDS = 900.0
"""How long servers may take to load their model."""
POLL_SECONDS = 1.0
END_SECONDS = 20.0
RESTARTS = 5
"""How often one server is started again."""
ENDS_WITH_PARENT = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 15); "  # PR_SET_PDEATHSIG, SIGTERM: vLLM ends its processes
    "os.getppid() == int(sys.argv[1]) or sys.exit(1); os.execvp(sys.argv[2], sys.argv[2:])"
)
"""Python that becomes the server, asked by the system to end when the actor is gone."""


class ServerActor:
    """One server, as a child of an actor."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        enter_folder(settings)
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None

    def place(self) -> tuple[str, str]:
        """Return an address that is free on this node, and the node."""
        import ray

        host = ray.util.get_node_ip_address()
        with socket.socket() as probe:
            probe.bind((host, 0))
            return f"http://{host}:{probe.getsockname()[1]}", ray.get_runtime_context().get_node_id()

    def source(self) -> str:
        """Return what servers are started from; it is written if need be.

        Raises:
            ModelError: the model cannot be loaded or written.
        """
        from selfdistill.rollouts.serve import served_model

        recipe = travelled_recipe(self._settings)
        return served_model(recipe.model, recipe.train.seed, recipe.folder / "served")

    def start(self, url: str, source: str, log: str) -> int:
        """Start the server; return its process number.

        Raises:
            SelfDistillError: there is no vLLM here, or it cannot be started.
        """
        words, environment = self._command(url, source)
        Path(log).parent.mkdir(parents=True, exist_ok=True)
        with Path(log).open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-c", ENDS_WITH_PARENT, str(os.getpid()), *words],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        return self._process.pid

    def poll(self) -> int | None:
        """Return the exit code of a server that has ended."""
        return None if self._process is None else self._process.poll()

    def end(self) -> None:
        """Ask the server to end; kill what is left of it."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def _command(self, url: str, source: str) -> tuple[list[str], dict[str, str]]:
        from selfdistill.rollouts.serve import serve_commands
        from selfdistill.rollouts.serve_processes import _environment
        from selfdistill.rollouts.vllm_install import REMEDY, find_vllm

        program = self._settings["server_program"]
        if program:
            address = urlsplit(url)
            words = [*program, source, "--host", str(address.hostname), "--port", str(address.port)]
            return words, dict(os.environ)
        install = find_vllm(None)
        if install is None:
            raise RolloutError(f"vLLM is not installed on the node {socket.gethostname()}; {REMEDY}")
        recipe = travelled_recipe(self._settings)
        rollouts = recipe.rollouts.model_copy(
            update={"server": recipe.rollouts.server.model_copy(update={"urls": (url,)})}
        )
        (command,) = serve_commands(
            recipe.model, rollouts, recipe.needs(), source=source, seed=recipe.train.seed, install=install
        )
        return list(command.words), _environment(command)


@dataclass(frozen=True, slots=True)
class _Server:
    actor: Any
    url: str
    node: str
    log: str
    restarts: int = 0


class Servers:
    """The servers of a run. Leaving its ``with`` block ends them.

    Args:
        settings: of the workers, with ``server_program`` (None: vLLM).
        count: how many.
        gpus: of each.
        logs: folder of what they print, on storage that all nodes share.
        say: shows a line to the user.
        start_seconds: how long they may take to answer.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        count: int,
        *,
        gpus: float,
        logs: Path,
        say: Callable[[str], None],
        start_seconds: float = START_SECONDS,
    ) -> None:
        self._settings, self._count, self._gpus, self._logs, self._say = settings, count, gpus, logs, say
        self._start_seconds = start_seconds
        self._servers: list[_Server] = []
        self._source = ""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="servers", daemon=True)

    @property
    def urls(self) -> tuple[str, ...]:
        """Where they are."""
        return tuple(server.url for server in self._servers)

    def __enter__(self) -> Servers:
        """Start all and wait until they answer.

        Raises:
            SelfDistillError: one cannot be started, ends, or takes too long.
        """
        import ray

        try:
            for number in range(self._count):
                actor = self._actor()
                url, node = self._ask(actor.place.remote())
                self._source = self._source or self._ask(actor.source.remote())
                self._servers.append(_Server(actor, url, node, str(self._logs / f"server-{number}.log")))
                self._ask(actor.start.remote(url, self._source, self._servers[-1].log))
            self._await_healthy()
        except ray.exceptions.RayError as error:
            self.__exit__()
            raise RolloutError(f"the vLLM servers could not be started on the cluster: {_line(error)}") from error
        except BaseException:
            self.__exit__()
            raise
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        import ray

        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        with suppress(ray.exceptions.RayError, ray.exceptions.GetTimeoutError):
            ray.get([server.actor.end.remote() for server in self._servers], timeout=END_SECONDS + 10)
        for server in self._servers:
            with suppress(ray.exceptions.RayError):
                ray.kill(server.actor)
        self._servers = []

    def _actor(self, node: str | None = None) -> Any:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        strategy = "SPREAD" if node is None else NodeAffinitySchedulingStrategy(node_id=node, soft=False)
        remote = ray.remote(num_cpus=1, num_gpus=self._gpus, scheduling_strategy=strategy)(ServerActor)
        return remote.remote(self._settings)

    def _ask(self, reference: Any) -> Any:
        import ray

        try:
            return ray.get(reference, timeout=self._start_seconds)
        except ray.exceptions.GetTimeoutError:
            raise RolloutError(
                f"the cluster had no room for {self._count} vLLM servers with {self._gpus:g} GPUs each within "
                f"{self._start_seconds:g} s; lower --servers, or add nodes"
            ) from None
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, SelfDistillError):
                raise type(error.cause)(str(error.cause)) from None
            raise

    def _await_healthy(self) -> None:
        deadline = time.monotonic() + self._start_seconds
        self._say(f"waiting for {self._count} vLLM servers: {', '.join(self.urls)}")
        for server in self._servers:
            while not _answers(server.url):
                code = self._ask(server.actor.poll.remote())
                if code is not None:
                    raise RolloutError(f"the server at {server.url} ended with exit code {code}; see {server.log}")
                if time.monotonic() >= deadline:
                    raise RolloutError(
                        f"the server at {server.url} did not answer within {self._start_seconds:g} s; see {server.log}"
                    )
                time.sleep(POLL_SECONDS / 4)

    def _watch(self) -> None:
        """Start what has ended again, at the address that the workers know."""
        while not self._over.wait(POLL_SECONDS):
            for number, server in enumerate(self._servers):
                try:
                    self._servers[number] = self._revived(server)
                except Exception as error:  # the workers say what it means for the run when they miss the server
                    self._say(f"the server at {server.url} could not be started again: {_line(error)}")
                    self._servers[number] = replace(server, restarts=server.restarts + 1)

    def _revived(self, server: _Server) -> _Server:
        import ray

        if server.restarts >= RESTARTS:
            return server
        try:
            code = ray.get(server.actor.poll.remote())
            if code is None:
                return server
            actor, how = server.actor, f"ended with exit code {code}"
        except ray.exceptions.RayActorError:
            actor, how = self._actor(server.node), "is gone with its actor"
        self._say(f"the server at {server.url} {how}; starting it again ({server.restarts + 1} of {RESTARTS} times)")
        revived = replace(server, actor=actor, restarts=server.restarts + 1)
        ray.get(actor.start.remote(server.url, self._source, server.log), timeout=self._start_seconds)
        return revived


def with_urls(overrides: Sequence[str], urls: Sequence[str]) -> list[str]:
    """Return a recipe's overrides with the servers' addresses."""
    return [*overrides, "rollouts.engine=vllm_server", f"rollouts.server.urls=[{', '.join(urls)}]"]


def _answers(url: str) -> bool:
    # Not through a proxy: the address is one of the cluster's.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _line(error: BaseException) -> str:
    return one_line(str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__)
