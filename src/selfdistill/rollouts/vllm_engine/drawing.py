"""One round of requests through vLLM's engine, step by step, so that responses come out as they finish.

In: prompts with vLLM's sampling parameters. Out: ids, log-probabilities and the finish reason of each response. What
the engine returns is checked before anyone reads it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast

from selfdistill.errors import RolloutError
from selfdistill.rollouts.rollout import FinishReason

IDS = 2**31
"""Token ids are below."""

_names = itertools.count()


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One prompt and how it is answered."""

    prompt: Sequence[int]
    params: Any
    """vLLM's ``SamplingParams``; ``params.n`` responses are drawn."""
    adapter: Any
    """vLLM's ``LoRARequest``, or None for the base weights."""


@dataclass(slots=True)
class Response:
    """What one response consists of so far."""

    ids: list[int] = field(default_factory=list)
    logprobs: list[float] | None = None
    """Nats; None if they were not asked for."""
    finish_reason: FinishReason | None = None
    """None while it is being drawn."""


def run_requests(
    engine: Any, requests: Sequence[EngineRequest], on_tokens: Callable[[int], None] | None = None
) -> Iterator[tuple[int, int, Response]]:
    """Yield index of the request, index of the response and the finished response.

    What is still being drawn is given up when the iterator is closed, or when the consumer or ``on_tokens`` raises.

    Args:
        engine: vLLM's ``LLMEngine``, idle.
        requests: all of them are handed over at once; the engine decides how many it draws side by side.
        on_tokens: called with the number of tokens that have just been drawn.

    Raises:
        RolloutError: the engine refuses a request, fails, or returns what is no response.
    """
    names = {f"selfdistill-{next(_names)}": index for index in range(len(requests))}
    counts = [request.params.n for request in requests]
    open_responses = {(index, place): Response() for index, n in enumerate(counts) for place in range(n)}
    try:
        for name, request in zip(names, requests, strict=True):
            _add(engine, name, request)
        while open_responses:
            drawn, finished = _step(engine, names, open_responses)
            for index, place in finished:
                yield index, place, open_responses.pop((index, place))
            if drawn and on_tokens is not None:
                on_tokens(drawn)
    finally:
        unfinished = {index for index, _ in open_responses}
        if unfinished:
            with suppress(Exception):  # an engine that is gone draws nothing any more
                engine.abort_request([name for name, index in names.items() if index in unfinished])


def _add(engine: Any, name: str, request: EngineRequest) -> None:
    prompt = {"type": "token", "prompt_token_ids": list(request.prompt)}
    try:
        engine.add_request(name, prompt, request.params, lora_request=request.adapter)
    except Exception as error:
        raise RolloutError(
            f"vLLM refuses a prompt of {len(request.prompt)} tokens ({first_line(error)}); check rollouts.vllm.options"
        ) from error


def _step(
    engine: Any, names: dict[str, int], responses: dict[tuple[int, int], Response]
) -> tuple[int, list[tuple[int, int]]]:
    """Let the engine take one step; return the number of new tokens and the keys of the responses that finished."""
    try:
        outputs = engine.step()
    except Exception as error:
        raise RolloutError(
            f"vLLM failed while it drew responses ({first_line(error)}); read what it printed above, lower "
            "rollouts.vllm.memory if memory ran out, and go on with --resume"
        ) from error
    drawn, finished = 0, []
    for output in outputs:
        index = names.get(output.request_id)
        for part in () if index is None else output.outputs:
            key = (cast(int, index), part.index)
            if key not in responses:
                continue
            drawn += _extend(responses[key], part)
            if responses[key].finish_reason is not None:
                finished.append(key)
    return drawn, finished


def _extend(response: Response, part: Any) -> int:
    """Add what was newly drawn of a response; return the number of tokens."""
    ids = list(part.token_ids)
    if not all(type(token) is int and 0 <= token < IDS for token in ids):
        raise RolloutError("vLLM returned token ids that are none; check that its version is 0.32")
    response.ids += ids
    if part.logprobs is not None:
        response.logprobs = [*(response.logprobs or ()), *_logprobs(ids, part.logprobs)]
    if part.finish_reason is not None:
        if part.finish_reason not in ("stop", "length"):
            raise RolloutError(
                f"vLLM ended a response after {len(response.ids)} tokens with {part.finish_reason!r}; "
                "read what it printed above"
            )
        response.finish_reason = part.finish_reason
    return len(ids)


def _logprobs(ids: Sequence[int], entries: Any) -> list[float]:
    """Return the log-probability of each drawn id from vLLM's mappings, which may hold other ids too."""
    if len(entries) != len(ids):
        raise RolloutError(f"vLLM returned {len(entries)} log-probabilities for {len(ids)} tokens; check its version")
    values = [float(entry[token].logprob) for token, entry in zip(ids, entries, strict=True)]
    if not all(map(math.isfinite, values)):
        raise RolloutError(
            "vLLM's log-probabilities are not finite; check the model's weights, and its precision (try bfloat16)"
        )
    return values


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, shortened."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return text if len(text) <= 200 else f"{text[:197]}..."
