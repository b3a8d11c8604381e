"""Weights for vLLM in this process: :class:`~selfdistill.rollouts.control.Control` over vLLM's ``LLM``."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selfdistill.errors import RolloutError
from selfdistill.rollouts.control import Control, Served
from selfdistill.rollouts.vllm_engine.drawing import EngineRequest, first_line, run_requests

RELOAD_SECONDS = 600.0
"""Longest time for reading weights from a folder."""


class LlmControl(Control):
    """The operations on weights, directly on an engine that nobody else uses.

    Args:
        llm: vLLM's ``LLM``, idle and awake.
    """

    def __init__(self, llm: Any) -> None:
        self._llm = llm
        self._engine: Any = llm.llm_engine
        self._adapters: dict[str, Any] = {}
        self._ids = itertools.count(1)
        self.closed = False
        """Set when the engine is about to go, maybe asleep: nothing is asked of it any more."""

    @property
    def name(self) -> str:
        """What messages call it."""
        return "vLLM in this process"

    def adapter(self, name: str | None) -> Any:
        """Return vLLM's handle of a loaded adapter; None for the base weights.

        Raises:
            RolloutError: no adapter of that name is loaded.
        """
        if name is None:
            return None
        if name not in self._adapters:
            raise RolloutError(f"{self.name} has no adapter {name!r}; it was not loaded, or has been unloaded")
        return self._adapters[name]

    def load_adapter(self, name: str, folder: Path) -> None:
        """Load the PEFT adapter in ``folder``, under a number of its own: vLLM knows adapters by their numbers."""
        if name in self._adapters:
            raise RolloutError(f"{self.name} already has an adapter {name!r}; every version needs a name of its own")
        from vllm.lora.request import LoRARequest

        request = LoRARequest(lora_name=name, lora_int_id=next(self._ids), lora_path=str(folder))
        with self._errors(f"could not load the adapter in {folder}"):
            self._engine.add_lora(request)
        self._adapters[name] = request

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter, if it is there."""
        request = self._adapters.pop(name, None)
        if request is not None:
            with self._errors(f"could not unload the adapter {name!r}"):
                self._engine.remove_lora(request.lora_int_id)

    def pause(self) -> None:
        """Do nothing: requests run only while a caller of ours waits for them."""

    def resume(self) -> None:
        """Do nothing; see :meth:`pause`."""

    def reload(self, folder: Path) -> None:
        """Read the base weights from a folder."""
        with self._errors(f"could not reload the weights in {folder}"):
            self._llm.collective_rpc("reload_weights", timeout=RELOAD_SECONDS, kwargs={"weights_path": str(folder)})

    def reset_prefix_cache(self) -> None:
        """Forget keys and values of earlier weights."""
        with self._errors("could not forget its prefix cache"):
            if not self._llm.reset_prefix_cache():
                raise RuntimeError("blocks are still in use")

    def set_version(self, version: str) -> None:
        """Name the weights."""
        with self._errors("could not name its weights"):
            self._engine.set_weight_version(version)

    def version(self) -> str:
        """Return the name of the weights."""
        with self._errors("could not say which weights it has"):
            return str(self._engine.get_weight_version())

    def draw(self, prompts: Sequence[Sequence[int]], served: Served) -> list[tuple[int, float]]:
        """Draw one token behind each prompt at temperature 1, with its log-probability (nats)."""
        from vllm import SamplingParams

        params = SamplingParams(temperature=1.0, max_tokens=1, logprobs=0, seed=0, detokenize=False)
        requests = [EngineRequest(prompt, params, self.adapter(served.adapter)) for prompt in prompts]
        drawn = {index: response for index, _, response in run_requests(self._engine, requests)}
        tokens = []
        for index in range(len(prompts)):
            response = drawn[index]
            if len(response.ids) != 1 or response.logprobs is None:
                raise RolloutError(f"{self.name} returned {len(response.ids)} tokens where one was asked for")
            tokens.append((response.ids[0], response.logprobs[0]))
        return tokens

    def world_size(self) -> int:
        """Return how many workers hold the weights."""
        return int(self._llm.get_world_size())

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Connect the workers with the trainer."""
        with self._errors("could not connect its workers for weight transfer"):
            self._llm.init_weight_transfer_engine({"init_info": init_info})

    def start_weight_update(self) -> None:
        """Announce new weights."""
        with self._errors("did not accept a weight update"):
            self._llm.start_weight_update()

    def update_weights(self, update_info: Any) -> None:
        """Receive weights."""
        with self._errors("did not receive the weights"):
            self._llm.update_weights({"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Put the received weights to use."""
        with self._errors("could not put the received weights to use"):
            self._llm.finish_weight_update(weight_version)

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        """Turn whatever vLLM raises into one sentence."""
        if self.closed:
            raise RolloutError(f"{self.name} {what}: it has been closed; make a new engine")
        try:
            yield
        except Exception as error:
            raise RolloutError(
                f"{self.name} {what} ({first_line(error)}); read what it printed above, and go on with --resume"
            ) from error
