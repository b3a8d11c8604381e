"""An engine for these tests: a real model that loads what was exported, draws for real, and can be made to fail."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from selfdistill.errors import RolloutError
from selfdistill.models.loading import LoraConfig, ModelConfig, Policy, load_policy
from selfdistill.rollouts.control import Served


class FakeControl:
    """A :class:`~selfdistill.rollouts.control.Control` over a transformers model of its own."""

    def __init__(self, base: Path, name: str = "http://engine:8000") -> None:
        self.name = name
        self.base = base
        self.calls: list[str] = []
        self.fails: set[str] = set()
        """Methods that raise."""
        self.kept: Callable[[str], bool] = lambda name: False
        """Weights that a reload leaves as they were."""
        self.tampered: Callable[[list[tuple[int, float]]], Any] = lambda drawn: drawn
        self.deaf = False
        """Whether names of weights are not taken."""
        self.generator = torch.Generator().manual_seed(0)
        self.running = True
        self.restart()

    def restart(self) -> None:
        self.weights = "default"
        self.adapters: dict[str, Any] = {}
        self.model = _load(self.base)

    def _note(self, method: str, what: str = "") -> None:
        self.calls.append(f"{method} {what}".strip())
        if method in self.fails:
            raise RolloutError(f"{self.name} fails to {method}; mend it")

    def load_adapter(self, name: str, folder: Path) -> None:
        self._note("load_adapter", name)
        if name in self.adapters:
            raise RolloutError(f"{self.name} has {name} already; unload it")
        assert folder.is_absolute()
        with _LOADING, torch.random.fork_rng(devices=[]):  # an engine is another process
            self.adapters[name] = PeftModel.from_pretrained(_load(self.base), str(folder)).eval()

    def unload_adapter(self, name: str) -> None:
        self._note("unload_adapter", name)
        self.adapters.pop(name, None)

    def pause(self) -> None:
        self._note("pause")
        self.running = False

    def resume(self) -> None:
        self._note("resume")
        self.running = True

    def reload(self, folder: Path) -> None:
        self._note("reload", folder.name)
        assert not self.running and folder.is_absolute()
        new = _load(folder).state_dict()
        with torch.no_grad():
            for name, weight in self.model.state_dict().items():
                if not self.kept(name):
                    weight.copy_(new[name])

    def reset_prefix_cache(self) -> None:
        self._note("reset_prefix_cache")

    def set_version(self, version: str) -> None:
        self._note("set_version", version)
        if not self.deaf:
            self.weights = version

    def version(self) -> str:
        return self.weights

    def draw(self, prompts: Sequence[Sequence[int]], served: Served) -> Any:
        self._note("draw")
        assert self.running
        if served.adapter is not None and served.adapter not in self.adapters:
            raise RolloutError(f"{self.name} does not know the adapter {served.adapter}; load it")
        model = self.model if served.adapter is None else self.adapters[served.adapter]
        drawn = []
        for prompt in prompts:
            with torch.no_grad():
                logprobs = torch.log_softmax(model(torch.tensor([list(prompt)])).logits[0, -1].float(), -1)
            token = int(torch.multinomial(logprobs.exp(), 1, generator=self.generator))
            drawn.append((token, float(logprobs[token])))
        return self.tampered(drawn)

    def world_size(self) -> int:
        return 2

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._note("init_weight_transfer_engine")
        self.received: dict[str, torch.Tensor] = {}

    def start_weight_update(self) -> None:
        self._note("start_weight_update")

    def update_weights(self, update_info: Any) -> None:
        self._note("update_weights")
        assert not self.running
        with torch.no_grad():
            for name, weight in self.model.state_dict().items():
                if not self.kept(name):
                    weight.copy_(update_info[name])

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._note("finish_weight_update", str(weight_version))
        assert weight_version is not None
        self.weights = weight_version


_LOADING = threading.RLock()
"""transformers loads by replacing functions of its own for a while, which two threads must not do at a time: the ties
between weights would be off for good."""


def _load(folder: Path) -> Any:
    with _LOADING:
        return AutoModelForCausalLM.from_pretrained(str(folder), local_files_only=True).eval()


def _change(policy: Policy, seed: int, size: float = 0.05) -> None:
    """Change every trained weight, as an optimiser does: in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in policy.model.parameters():
            if weight.requires_grad:
                weight.add_(size * torch.randn(weight.shape, generator=generator))


@pytest.fixture
def fake_control() -> type[FakeControl]:
    return FakeControl


@pytest.fixture
def change() -> Callable[..., None]:
    return _change


@pytest.fixture
def model_folder(tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path) -> Path:
    """The tiny model with its head tied to the embeddings."""
    folder = tmp_path / "model"
    tiny_model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def full_policy(model_folder: Path) -> Policy:
    return load_policy(ModelConfig(path=str(model_folder), device="cpu"), seed=0)


@pytest.fixture
def lora_policy(model_folder: Path) -> Policy:
    return load_policy(ModelConfig(path=str(model_folder), device="cpu", lora=LoraConfig(r=4, alpha=8)), seed=0)


@pytest.fixture
def logits() -> Callable[[Any], torch.Tensor]:
    """Return a model's logits over a fixed row."""

    def compute(model: Any) -> torch.Tensor:
        with torch.no_grad():
            result: torch.Tensor = model(torch.arange(4, 40)[None]).logits
        return result

    return compute
