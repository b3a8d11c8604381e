"""Real vLLM servers on loopback, one of each kind per session, started when a test first asks for it.

vLLM has an environment of its own, as a rule: `make vllm`. Without it, what needs it is skipped, with the reason.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from selfdistill.models.loading import Policy, load_policy
from selfdistill.models.smollm2 import cache_folder
from selfdistill.rollouts.serve import ServeCommand, serve_commands, served_model
from selfdistill.rollouts.server import ServerEngine
from selfdistill.rollouts.vllm_install import ENVIRONMENT, VARIABLE, VllmInstall, probe
from selfdistill.training.recipe import Recipe, load_recipe

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 180.0
CACHE = "rollouts.vllm.options.kv_cache_memory_bytes=536870912"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class RunningServer:
    """A vLLM server as `selfdistill serve` would start it for a recipe."""

    recipe: Recipe
    command: ServeCommand
    log: Path
    process: subprocess.Popen[bytes] | None = field(default=None)

    def start(self) -> None:
        environment = {**os.environ, **self.command.environment}
        # What pytest and its runner set is not vLLM's business, nor is the one thread that `make test` sets.
        for name in ("OMP_NUM_THREADS", "PYTEST_CURRENT_TEST", "PYTEST_XDIST_WORKER"):
            environment.pop(name, None)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command.words, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0
            )

    def wait(self) -> None:
        assert self.process is not None
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            with suppress(OSError, urllib.error.URLError):
                if urllib.request.urlopen(f"{self.command.url}/health", timeout=5).status == 200:
                    return
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(0.2)
                break
        tail = self.log.read_text(errors="replace")[-4000:]
        self.stop()
        pytest.fail(f"the server at {self.command.url} did not start within {START_SECONDS:.0f} s:\n{tail}")

    def kill(self) -> None:
        """Kill the server itself, by its process id; what it started has to notice."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(10)

    def stop(self) -> None:
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(20)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)
        self.process = None

    def engine(self, policy: Policy, folder: Path) -> ServerEngine:
        return ServerEngine(policy, self.recipe.rollouts, self.recipe.needs(), folder)


@pytest.fixture(scope="session")
def vllm_install() -> VllmInstall:
    named = os.environ.get(VARIABLE)
    beside = ROOT / ENVIRONMENT / "bin" / "python"
    candidates = [Path(named)] if named else [path for path in (beside, Path(sys.executable)) if path.exists()]
    found = next((install for install in map(probe, candidates) if install is not None), None)
    if found is None:
        pytest.skip("vLLM is not installed; make vllm")
    return found


@pytest.fixture(scope="session")
def start_server(vllm_install: VllmInstall, tmp_path_factory: pytest.TempPathFactory):
    """Return a function that starts a server for the embedded recipe with overrides; all end with the session."""
    servers: list[RunningServer] = []

    def start(*overrides: str) -> RunningServer:
        folder = tmp_path_factory.mktemp("vllm")
        recipe = load_recipe(
            ROOT / "recipes" / "embedded" / "sc_sdpo.yaml",
            [
                "rollouts.engine=vllm_server",
                "model.device=cpu",
                f"rollouts.server.urls=http://127.0.0.1:{free_port()}",
                "rollouts.max_rows=64",
                CACHE,
                *overrides,
            ],
        )
        (command,) = serve_commands(
            recipe.model,
            recipe.rollouts,
            recipe.needs(),
            source=served_model(recipe.model, recipe.train.seed, folder / "served"),
            seed=0,
            install=vllm_install,
        )
        server = RunningServer(recipe, command, folder / "server.log")
        servers.append(server)
        server.start()
        server.wait()
        return server

    try:
        yield start
    finally:
        for server in servers:
            server.stop()


@pytest.fixture(scope="session")
def lora_server(start_server: Callable[..., RunningServer]) -> RunningServer:
    """The embedded model, adapters of rank 16 on it."""
    return start_server("model.lora.r=16", "model.lora.alpha=32")


@pytest.fixture(scope="session")
def full_server(start_server: Callable[..., RunningServer]) -> RunningServer:
    """The embedded model, whose weights are all replaced."""
    return start_server()


@pytest.fixture(scope="session")
def smollm2_server(start_server: Callable[..., RunningServer]) -> RunningServer:
    """SmolLM2-135M-Instruct, adapters on it."""
    if not (cache_folder() / "smollm2" / "config.json").is_file():
        pytest.skip("SmolLM2 is not prepared; make smollm2")
    return start_server("model.path=smollm2", "model.lora.r=8", "rollouts.vllm.options.max_model_len=512")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def policy_of() -> Callable[[RunningServer], Policy]:
    def load(server: RunningServer) -> Policy:
        return load_policy(server.recipe.model, server.recipe.train.seed)

    return load


@pytest.fixture
def change() -> Callable[[Policy, int], None]:
    """Return a function that does to a policy what a large training step would."""

    def change(policy: Policy, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in policy.model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)

    return change


@pytest.fixture
def rescored() -> Callable[[Policy, Sequence[int], Sequence[int]], list[float]]:
    """Return a function: the trainer's log-probabilities (nats, temperature 1) of a response."""

    def score(policy: Policy, prompt: Sequence[int], response: Sequence[int]) -> list[float]:
        model: Any = policy.model
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*prompt, *response]]), use_cache=False).logits[0].float()
        rows = torch.log_softmax(logits[len(prompt) - 1 : -1], dim=-1)
        return rows.gather(1, torch.tensor(response)[:, None])[:, 0].tolist()

    return score


@pytest.fixture
def prompts_of() -> Callable[[Policy, int], list[tuple[int, ...]]]:
    """Return a function: so many different sums as prompts."""

    def render(policy: Policy, count: int) -> list[tuple[int, ...]]:
        questions = [f"What is {first} + {2 * first + 3}?" for first in range(11, 11 + count)]
        return [policy.chat.render([{"role": "user", "content": question}]) for question in questions]

    return render
