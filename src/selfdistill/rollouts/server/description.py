"""What a server says about itself, and whether it can serve a run. Everything is checked before the first response.

Whether its base weights are the policy's is not asked here: the handshake of the weight sync proves it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from selfdistill.errors import RolloutError
from selfdistill.rollouts.needs import Needs, has_logprobs
from selfdistill.rollouts.server.answers import server_words
from selfdistill.rollouts.server.faults import Passing, Refusal
from selfdistill.rollouts.server.http import GENERATE, Client, refusal

DESCRIBE_SECONDS = 60.0
"""vLLM collects facts about its machine for the first of these calls, which takes a while."""
_RESTART = "start it with `selfdistill serve RECIPE`"


@dataclass(frozen=True, slots=True)
class Description:
    """One server's limits and modes."""

    name: str
    model: str
    """What its base weights were loaded from, as it was started."""
    context: int
    """Most tokens of prompt and response together (``max_model_len``)."""
    side_by_side: int
    """Most responses that it decodes at a time (``max_num_seqs``)."""
    lora_rank: int | None
    """Highest rank of an adapter; None: it takes none."""
    lora_updates: bool
    """Whether adapters can be loaded while it runs."""
    logprobs_mode: str
    generates: bool
    """Whether the endpoint for token ids is open (``--enable-scale-out``)."""


async def describe(client: Client) -> Description:
    """Ask a server for its description.

    Raises:
        Passing: it is not there, or not yet.
        Refusal: it is none that could serve, for example without vLLM's development endpoints.
    """
    name = client.address.name
    status, answer = await client.call("GET", "/server_info", query={"config_format": "json"}, seconds=DESCRIBE_SECONDS)
    if status == 404:
        raise Refusal(
            f"it has no /server_info: it is no vLLM server, or was started without VLLM_SERVER_DEV_MODE=1; {_RESTART}"
        )
    if status != 200:
        raise refusal("/server_info", status, answer)
    config = _section(answer, "vllm_config")
    model, lora = _section(config, "model_config"), config.get("lora_config")
    environment = answer.get("vllm_env")
    updates = environment.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING") if isinstance(environment, dict) else None
    return Description(
        name=name,
        model=str(model.get("model")),
        context=_count(model, "max_model_len"),
        side_by_side=_count(_section(config, "scheduler_config"), "max_num_seqs"),
        lora_rank=_count(lora, "max_lora_rank") if isinstance(lora, dict) else None,
        lora_updates=updates not in (None, False, 0, "0", ""),
        logprobs_mode=str(model.get("logprobs_mode")),
        generates=await _generates(client),
    )


def check(description: Description, needs: Needs) -> None:
    """Check that a server can do what a run needs.

    Raises:
        RolloutError: it cannot; with the remedy.
    """
    found, name = description, f"the server {description.name}"
    if not found.generates:
        raise RolloutError(f"{name} was started without --enable-scale-out, which lets token ids in; {_RESTART}")
    if found.context < needs.new_tokens + 1:
        raise RolloutError(
            f"{name} has a context of {found.context} tokens (max_model_len), and responses of {needs.new_tokens} new "
            f"tokens are wanted behind their prompts; {_RESTART}, or lower max_new_tokens"
        )
    if needs.lora_rank is not None:
        if found.lora_rank is None:
            raise RolloutError(f"{name} was started without --enable-lora, and LoRA adapters are trained; {_RESTART}")
        if found.lora_rank < needs.lora_rank:
            raise RolloutError(
                f"{name} takes adapters up to rank {found.lora_rank} (--max-lora-rank), and model.lora.r is "
                f"{needs.lora_rank}; {_RESTART}, or lower model.lora.r"
            )
        if not found.lora_updates:
            raise RolloutError(
                f"{name} was started without VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, and a new adapter has to be loaded "
                f"after every step; {_RESTART}"
            )
    if has_logprobs(needs.training, needs.logprobs_mode) and not has_logprobs(needs.training, found.logprobs_mode):
        raise RolloutError(
            f"{name} has logprobs_mode {found.logprobs_mode}, in which the log-probabilities that training needs are "
            f"not to be had; {_RESTART}, or with --logprobs-mode {needs.logprobs_mode}"
        )


async def _generates(client: Client) -> bool:
    """Ask for nothing: an open endpoint complains about the request, a closed one forbids it."""
    status, answer = await client.call("POST", GENERATE, body={}, seconds=DESCRIBE_SECONDS)
    if status == 404:
        raise Refusal(f"it has no {GENERATE}; it takes vLLM 0.32 or later, {_RESTART}")
    if status == 401:
        raise refusal(GENERATE, status, answer)
    if status == 403 and "scale-out" not in server_words(answer).lower():
        raise refusal(GENERATE, status, answer)
    return status != 403


def _section(value: dict[str, Any], name: str) -> dict[str, Any]:
    found = value.get(name)
    if not isinstance(found, dict):
        raise Passing(f"malformed answer: /server_info has no {name}")
    return found


def _count(value: dict[str, Any], name: str) -> int:
    found = value.get(name)
    if type(found) is not int or found < 1:
        raise Passing(f"malformed answer: /server_info has {name} {str(found)[:40]!r}")
    return found
