"""A stand-in for vLLM's package: it answers like vLLM's engine, one token per step and request, and notes the calls."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest


@dataclass
class SamplingParams:
    n: int = 1
    seed: int = 0
    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop_token_ids: list[int] = field(default_factory=list)
    ignore_eos: bool = False
    logprobs: int | None = None
    detokenize: bool = True
    output_kind: str = "cumulative"
    stream_interval: int = 1


@dataclass(frozen=True)
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str


@dataclass
class Running:
    name: str
    prompt: list[int]
    params: SamplingParams
    adapter: LoRARequest | None
    index: int
    drawn: int = 0


class FakeEngine:
    """Draws the tokens seed, seed + 1 ... modulo 50 at log-probability -1; every third token ends what may end."""

    def __init__(self) -> None:
        self.running: list[Running] = []
        self.requests: list[tuple[str, list[int], SamplingParams, LoRARequest | None]] = []
        self.aborted: list[str] = []
        self.loras: dict[int, LoRARequest] = {}
        self.weights = "default"
        self.fail: Exception | None = None
        self.reason = "stop"
        self.logprob = -1.0
        self.engine_core = SimpleNamespace(shutdown=lambda: setattr(self, "shut", True))
        self.shut = False

    def add_request(self, name, prompt, params, lora_request=None) -> str:
        ids = prompt["prompt_token_ids"]
        if 49 in ids:
            raise ValueError("Token id 49 is out of vocabulary\nmore")
        self.requests.append((name, ids, params, lora_request))
        self.running += [Running(name, ids, params, lora_request, index) for index in range(params.n)]
        return name

    def abort_request(self, names) -> None:
        self.aborted += names
        self.running = [running for running in self.running if running.name not in names]

    def step(self) -> list[Any]:
        if self.fail is not None:
            raise self.fail
        outputs = []
        for running in list(self.running):
            token = (running.params.seed + running.index + running.drawn) % 49
            running.drawn += 1
            ended = token in running.params.stop_token_ids
            full = running.drawn == running.params.max_tokens
            reason = self.reason if ended else "length" if full else None
            if reason is not None:
                self.running.remove(running)
            entry = {48: SimpleNamespace(logprob=-9.0), token: SimpleNamespace(logprob=self.logprob)}
            part = SimpleNamespace(
                index=running.index,
                token_ids=[token],
                logprobs=None if running.params.logprobs is None else [entry],
                finish_reason=reason,
            )
            outputs.append(SimpleNamespace(request_id=running.name, outputs=[part]))
        return outputs

    def add_lora(self, request) -> bool:
        if "missing" in request.lora_path:
            raise ValueError("there is no adapter")
        self.loras[request.lora_int_id] = request
        return True

    def remove_lora(self, number) -> bool:
        return self.loras.pop(number, None) is not None

    def set_weight_version(self, version) -> None:
        self.weights = version

    def get_weight_version(self) -> str:
        return self.weights


class FakeLLM:
    """vLLM's ``LLM``."""

    made: ClassVar[list[FakeLLM]] = []
    refuse: ClassVar[Exception | None] = None

    def __init__(self, **arguments: Any) -> None:
        if FakeLLM.refuse is not None:
            raise FakeLLM.refuse
        self.arguments = arguments
        self.calls: list[tuple[Any, ...]] = []
        self.llm_engine = FakeEngine()
        self.model_config = SimpleNamespace(max_model_len=64)
        FakeLLM.made.append(self)

    def collective_rpc(self, method, timeout=None, args=(), kwargs=None) -> None:
        self.calls.append((method, timeout, kwargs))

    def reset_prefix_cache(self) -> bool:
        self.calls.append(("reset_prefix_cache",))
        return not self.llm_engine.running

    def sleep(self, level) -> None:
        self.calls.append(("sleep", level))

    def wake_up(self) -> None:
        self.calls.append(("wake_up",))

    def get_world_size(self) -> int:
        return 1

    def update_weights(self, request) -> None:
        self.calls.append(("update_weights", request))

    def finish_weight_update(self, version) -> None:
        self.llm_engine.set_weight_version(version)


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> type[FakeLLM]:
    """Put the stand-in in vLLM's place; return its ``LLM``, which lists the engines that were made."""
    FakeLLM.made, FakeLLM.refuse = [], None
    package, params, lora, request = (
        ModuleType(name) for name in ("vllm", "vllm.sampling_params", "vllm.lora", "vllm.lora.request")
    )
    package.LLM, package.SamplingParams = FakeLLM, SamplingParams
    params.RequestOutputKind = SimpleNamespace(DELTA="delta")
    request.LoRARequest = LoRARequest
    for module in (package, params, lora, request):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return FakeLLM
