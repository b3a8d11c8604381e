"""What giving weights to an engine needs of it: the same few operations over HTTP and in process.

The names of the last four methods are those of vLLM's trainer-side ``VLLMWeightSyncClient``, so that a control can be
handed to vLLM's own weight-transfer engines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Served:
    """The weights that an engine is to draw from."""

    version: str
    """Unique among all runs that may share an engine."""
    adapter: str | None
    """Name of the LoRA adapter on the engine's base weights; None: the engine's own weights are the policy's."""


class Control(Protocol):
    """One engine, as far as its weights are concerned.

    Every method blocks until the engine has done it, within a time limit, and raises
    :class:`~selfdistill.errors.RolloutError` naming the engine and the remedy.
    """

    @property
    def name(self) -> str:
        """What messages call it, for example its address."""
        ...

    def load_adapter(self, name: str, folder: Path) -> None:
        """Load the PEFT adapter in ``folder`` under a name that was not used before."""
        ...

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter; one that is not there is no error."""
        ...

    def pause(self) -> None:
        """Let running requests end, start no others."""
        ...

    def resume(self) -> None:
        """Serve again."""
        ...

    def reload(self, folder: Path) -> None:
        """Replace the base weights by those of a folder in transformers' format. To be called while paused."""
        ...

    def reset_prefix_cache(self) -> None:
        """Forget keys and values of earlier weights."""
        ...

    def set_version(self, version: str) -> None:
        """Name the weights; every response carries the name from now on."""
        ...

    def version(self) -> str:
        """Return the name of the weights."""
        ...

    def draw(self, prompts: Sequence[Sequence[int]], served: Served) -> list[tuple[int, float]]:
        """Draw one token behind each prompt at temperature 1 and return it with its log-probability (nats)."""
        ...

    def world_size(self) -> int:
        """Return how many workers hold the engine's weights."""
        ...

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Connect the engine's workers with the trainer (vLLM's weight transfer)."""
        ...

    def start_weight_update(self) -> None:
        """Announce new weights."""
        ...

    def update_weights(self, update_info: Any) -> None:
        """Receive weights."""
        ...

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Put the received weights to use."""
        ...
