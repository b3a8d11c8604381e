"""What is wanted becomes requests: siblings with consecutive seeds are one, and a request fits where it is sent.

In: prompts and seeds. Out: pieces of :class:`Work`, of which :func:`split` cuts the next request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from selfdistill.rollouts.sampler import Sampling

STREAM_INTERVAL = 32
"""Tokens of a response per line: one line each would cost the server more than the tokens."""


@dataclass(frozen=True, slots=True)
class Work:
    """Responses to one prompt that are still wanted."""

    prompt: int
    siblings: tuple[int, ...]
    """Indices of the wanted responses among the prompt's."""
    failures: int = 0
    """How often a request for them has failed."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: the responses ``siblings[i]`` from the seeds ``seed + i``."""

    work: Work
    seed: int

    @property
    def size(self) -> int:
        """How many responses it asks for."""
        return len(self.work.siblings)


def split(work: Work, seeds: Sequence[int], room: int, most: int) -> tuple[Ask | None, Work | None]:
    """Return the next request that there is room for, and what is left of the work.

    A prompt's siblings wait until all of them fit, unless they are so many (more than a quarter of ``most``) that the
    server would idle meanwhile.

    Args:
        work: what is wanted.
        seeds: of all responses to its prompt.
        room: how many more responses the server takes now.
        most: how many it takes at all.
    """
    run = 1
    while run < min(len(work.siblings), most) and (seeds[work.siblings[run]] == seeds[work.siblings[0]] + run):
        run += 1
    size = run if run <= room else room if run * 4 > most else 0
    if size <= 0:
        return None, work
    rest = replace(work, siblings=work.siblings[size:]) if size < len(work.siblings) else None
    return Ask(replace(work, siblings=work.siblings[:size]), seeds[work.siblings[0]]), rest


def request_body(
    prompt: Sequence[int],
    seed: int,
    responses: int,
    sampling: Sampling,
    ends: Sequence[int],
    *,
    logprobs: bool,
    adapter: str | None,
) -> dict[str, Any]:
    """Return what is posted for one request.

    ``ends`` are the only ids that end a response (``ignore_eos``): what the server would add of its own is not what
    the policy's chat format knows.
    """
    params: dict[str, Any] = {
        "n": responses,
        "seed": seed,
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or -1,
        "min_p": 0.0,
        "stop_token_ids": list(ends),
        "ignore_eos": True,
        "detokenize": False,
        "stream_interval": STREAM_INTERVAL,
    }
    if logprobs:
        params["logprobs"] = 0
    model = {} if adapter is None else {"model": adapter}
    return {"token_ids": list(prompt), "stream": True, "sampling_params": params, **model}
