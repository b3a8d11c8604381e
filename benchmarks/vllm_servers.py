"""Real vLLM servers on loopback, and worker processes in the environment that has vLLM; ended with the block."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.machine import ROOT
from selfdistill.rollouts.vllm_arguments import as_flags
from selfdistill.rollouts.vllm_install import VllmInstall

START_SECONDS = 300.0
ENVIRONMENT = {
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


class Server:
    """One vLLM server that can be killed and started again on its port."""

    def __init__(self, install: VllmInstall, folder: str, arguments: Mapping[str, Any]) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        flags = as_flags({"host": "127.0.0.1", "port": self.port, **arguments})
        self._command = [*install.server_command(), folder, "--enable-scale-out", *flags]
        self._log = tempfile.TemporaryFile()
        self._process: subprocess.Popen[bytes] | None = None
        self.start()
        self.wait()

    @property
    def pid(self) -> int:
        """Of the server's first process."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it, without waiting."""
        self._process = subprocess.Popen(
            [*self._command, "--uvicorn-log-level", "warning"],
            env={**os.environ, **ENVIRONMENT},
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def wait(self) -> None:
        """Wait until it answers."""
        assert self._process is not None
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self._process.poll() is None:
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=2)
                return
            except (OSError, urllib.error.URLError):
                time.sleep(0.5)
        self._log.seek(0)
        raise RuntimeError(f"the server did not start:\n{self._log.read()[-3000:].decode(errors='replace')}")

    def kill(self) -> None:
        """End all of its processes at once, as a crash would."""
        assert self._process is not None
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()


@contextmanager
def server(install: VllmInstall, folder: str | Path, arguments: Mapping[str, Any]) -> Iterator[Server]:
    """Run a server while the block lasts."""
    running = Server(install, str(folder), arguments)
    try:
        yield running
    finally:
        running.kill()


class Worker:
    """:mod:`benchmarks.vllm_worker` in a process of the environment that has vLLM."""

    def __init__(self, install: VllmInstall, job: Mapping[str, Any]) -> None:
        path = os.pathsep.join([str(ROOT), str(ROOT / "src")])
        self._errors = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [str(install.python), "-m", "benchmarks.vllm_worker"],
            env={**os.environ, **ENVIRONMENT, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,
        )
        self._ask(json.dumps(job))

    def round(self) -> dict[str, float]:
        """Draw everything once; returns tokens and seconds."""
        return self._ask("go")

    def close(self) -> None:
        """Let it end; end it after a while."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)

    def _ask(self, line: str) -> dict[str, float]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            self._errors.seek(0)
            raise RuntimeError(f"the worker died:\n{self._errors.read()[-3000:].decode(errors='replace')}")
        result: dict[str, float] = json.loads(answer)
        return result


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port
