"""vLLM's engine arguments for a recipe: the same whether the engine runs in process or as a server.

In: the recipe's model and rollout settings, and what it needs of an engine. Out: arguments by vLLM's Python names, or
as flags of its command line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, Literal

from selfdistill.errors import RecipeError
from selfdistill.models.loading import ModelConfig
from selfdistill.rollouts.config import RolloutsConfig
from selfdistill.rollouts.needs import Needs

ADAPTER_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM takes for ``max_lora_rank``."""
ADAPTERS = 2
"""Adapters that are loaded at a time: the present one, and while it is replaced the one before."""
GIB = 2**30
CPU_CACHE = 4
"""Most GiB for keys and values on a CPU, where the cache shares its memory with everything else."""

Transfer = Literal["nccl", "ipc"]
"""How full weights reach the engine without going through a folder."""


def engine_arguments(
    model: ModelConfig, config: RolloutsConfig, needs: Needs, *, cpu: bool, transfer: Transfer | None = None
) -> dict[str, Any]:
    """Return every argument but the model's folder; those of ``rollouts.vllm.options`` win.

    The context is the model's own, unless ``options`` holds a ``max_model_len``.

    Args:
        model: dtype, adapters, whether its own code may run.
        config: the recipe's ``rollouts`` section.
        needs: what is asked of the engine.
        cpu: whether the engine computes on a CPU.
        transfer: the engine takes full weights this way.

    Raises:
        RecipeError: an option is no engine argument's name, or the adapters' rank is beyond vLLM's largest.
    """
    arguments: dict[str, Any] = {
        "dtype": model.dtype,
        # Without it the sampling defaults and end ids of the model's folder would be put on top of ours.
        "generation_config": "vllm",
        "logprobs_mode": needs.logprobs_mode,
        "max_num_seqs": config.max_rows,
    }
    if model.trust_remote_code:
        arguments["trust_remote_code"] = True
    if needs.lora_rank is not None and model.lora is not None:
        arguments |= {
            "enable_lora": True,
            "max_lora_rank": _served_rank(needs.lora_rank),
            "max_loras": ADAPTERS,
            # All linear layers and the head otherwise: slower, and nothing is trained there.
            "lora_target_modules": list(model.lora.targets),
        }
    if transfer is not None:
        arguments["weight_transfer_config"] = {"backend": transfer}
    if cpu:
        arguments |= {"enforce_eager": True, "kv_cache_memory_bytes": _cpu_cache(config.vllm.memory) * GIB}
        # A prompt that is read in parts winds its seeded generator back, which vLLM 0.32 cannot do on a CPU: it dies.
        arguments["enable_chunked_prefill"] = False
    else:
        arguments["gpu_memory_utilization"] = config.vllm.memory
    return arguments | _checked(config.vllm.options)


def weight_transfer(config: RolloutsConfig, needs: Needs, *, cpu: bool, in_process: bool) -> Transfer | None:
    """Return the weight transfer that an engine is started for; None: adapters, or weights that go by folder."""
    if cpu or needs.lora_rank is not None or config.server.sync == "folder":
        return None
    if config.server.sync == "auto":
        return "ipc" if in_process else "nccl"
    return config.server.sync


def as_flags(arguments: Mapping[str, Any]) -> list[str]:
    """Return the arguments as words of vLLM's command line: switches, lists as words, mappings as JSON."""
    words: list[str] = []
    for name, value in arguments.items():
        flag = "--" + name.replace("_", "-")
        match value:
            case None:
                continue
            case bool():
                words.append(flag if value else "--no-" + flag[2:])
            case list() | tuple() | set():
                words += [flag, *(_word(item) for item in value)]
            case _:
                words += [flag, _word(value)]
    return words


def devices_per_engine(arguments: Mapping[str, Any]) -> int:
    """Return how many devices one engine with these arguments takes."""
    count = 1
    for name in ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"):
        size = arguments.get(name, 1)
        count *= size if isinstance(size, int) and size > 0 else 1
    return count


def _checked(options: dict[str, Any]) -> dict[str, Any]:
    for name in options:
        python = name.strip("-").replace("-", "_")
        if name != python or not name.isidentifier():
            hint = f" (did you mean {python!r}?)" if python.isidentifier() else ""
            raise RecipeError(f"rollouts.vllm.options: {name!r} is no engine argument's Python name{hint}")
    return options


def _served_rank(rank: int) -> int:
    for served in ADAPTER_RANKS:
        if rank <= served:
            return served
    raise RecipeError(
        f"model.lora.r is {rank}, but vLLM serves adapters of rank {ADAPTER_RANKS[-1]} at most; lower it, or set "
        "rollouts.engine=transformers"
    )


def _cpu_cache(share: float) -> int:
    """Return whole GiB for keys and values: the share of the machine's memory, within bounds."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(CPU_CACHE, int(share * memory / GIB)))


def _word(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict | list | tuple) else str(value)
