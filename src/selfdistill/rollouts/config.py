"""The recipe's ``rollouts`` section: how the student answers during training."""

from __future__ import annotations

from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, field_validator, model_validator

from selfdistill.rollouts.sampler import Sampling
from selfdistill.validation import SECTION


class VllmConfig(BaseModel):
    """The vLLM engine, in process (``engine: vllm``) or as ``selfdistill serve`` starts it."""

    model_config = SECTION

    memory: float = Field(default=0.5, gt=0, le=1)
    """Share of the device's memory that the engine takes (vLLM's ``gpu_memory_utilization``); weights and cache."""
    options: dict[str, Any] = Field(default_factory=dict)
    """More of vLLM's engine arguments by their Python names, for example ``{tensor_parallel_size: 2}``."""


class ServerConfig(BaseModel):
    """Running vLLM servers (``engine: vllm_server``)."""

    model_config = SECTION

    urls: tuple[str, ...] = Field(default=("http://127.0.0.1:8000",), min_length=1)
    """One server each; requests go to the least loaded."""
    api_key_variable: str | None = None
    """Environment variable that holds the servers' API key."""
    sync: Literal["auto", "nccl", "ipc", "folder"] = "auto"
    """How full weights travel: through vLLM's weight transfer (between GPUs, or within one), or by way of a folder.
    ``auto``: nccl where trainer and servers have GPUs, else folder. LoRA adapters always go by folder."""
    folder: str | None = Field(default=None, min_length=1)
    """Where weights are put for the servers to read, on a file system that they share; null: in the run folder."""
    master_address: str = "127.0.0.1"
    """Where the servers reach the trainer for nccl."""
    request_seconds: float | None = Field(default=None, gt=0)
    """Longest time for one request, all of its responses; null: a minute, and a tenth of a second per new token."""
    silent_seconds: float = Field(default=120.0, gt=0)
    """A server that sends nothing at all for so long while it has requests counts as hung."""
    retries: int = Field(default=4, ge=0)
    """How often a request is sent again after a failure that may pass, a little later each time."""
    recovery_seconds: float = Field(default=120.0, ge=0)
    """How long servers that are all gone are waited for before the run is given up."""
    outstanding: int = Field(default=256, ge=1)
    """Most responses that are wanted from one server at a time; never more than it decodes side by side."""

    @field_validator("urls", mode="before")
    @classmethod
    def _listed(cls, urls: Any) -> Any:
        return (urls,) if isinstance(urls, str) else urls

    @field_validator("urls")
    @classmethod
    def _addresses(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        for url in urls:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError(f"{url!r} is no server's address; write for example http://127.0.0.1:8000")
        if len({url.rstrip("/") for url in urls}) < len(urls):
            raise ValueError(f"urls names a server twice: {', '.join(urls)}; name each once")
        return tuple(url.rstrip("/") for url in urls)


class RolloutsConfig(BaseModel):
    """How rollouts are sampled."""

    model_config = SECTION

    engine: Literal["transformers", "vllm", "vllm_server"] = "transformers"
    """Which sampler: the trained model itself, vLLM in this process, or vLLM servers (``selfdistill serve``)."""
    sampling: Sampling = Sampling(temperature=1.0, max_new_tokens=1024)
    """Temperature, top-p, top-k and the budget of a response."""
    max_prompt_tokens: int | None = Field(None, ge=1)
    """A longer prompt is an error that names the question; null: whatever the model's context leaves."""
    thinking: bool | None = None
    """Passed to the chat template as ``enable_thinking``; null: the template's own default."""
    ahead: Literal[0, 1] = 0
    """1 (vllm_server only): the next batch is sampled while this one trains, from weights one step old. The importance
    ratio corrects for that; both papers are strictly on-policy, hence 0."""
    mismatch_warning: float = Field(default=0.05, gt=0)
    """Warn when the engine's log-probabilities differ from the trainer's by more than this (nats, mean per token)."""
    handshake_tolerance: float | None = Field(default=None, gt=0)
    """Largest mean difference (nats) between engine and trainer on the fixed text that proves a sync; null: 1e-3 in
    float32, 0.2 in bfloat16."""
    batch_tokens: int = Field(65_536, ge=1)
    """transformers: bounds the cache: responses generated side by side x (prompt + new tokens)."""
    max_rows: int = Field(256, ge=1)
    """transformers and vllm: most responses generated side by side."""
    vllm: VllmConfig = Field(default_factory=VllmConfig)
    """How vLLM is started, in this process or by ``selfdistill serve``."""
    server: ServerConfig = Field(default_factory=ServerConfig)
    """Where vLLM servers are, how they get the weights, and how long they are waited for."""

    @field_validator("sampling")
    @classmethod
    def _random(cls, sampling: Sampling) -> Sampling:
        if sampling.temperature == 0:
            raise ValueError("temperature 0 draws the same response every time; training needs a temperature above 0")
        if sampling.thinking_budget is not None:
            raise ValueError(
                "thinking_budget puts tokens into responses that the student did not draw; "
                "set it in evaluation.sampling only"
            )
        return sampling

    @model_validator(mode="after")
    def _ahead_needs_servers(self) -> RolloutsConfig:
        if self.ahead and self.engine != "vllm_server":
            raise ValueError(
                f"ahead is {self.ahead}, but the engine {self.engine!r} shares the trainer's device or weights; "
                "set ahead=0, or engine=vllm_server"
            )
        return self
