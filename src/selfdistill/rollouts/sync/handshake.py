"""The handshake: an engine draws behind a fixed text, and the trainer knows what log-probabilities it should report.

In: the policy, when its weights are exported; later an engine's :class:`~selfdistill.rollouts.control.Control`.
Out: how far engine and trainer are apart, or :class:`Stale`.

The engine draws instead of scoring a prompt, because drawing is what rollouts do: the proof takes their very path, with
adapter and prefix cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from selfdistill.errors import RolloutError
from selfdistill.models.loading import Policy
from selfdistill.rollouts.config import RolloutsConfig
from selfdistill.rollouts.control import Control, Served

PASSAGE = (
    "To add 27 and 58, add the ones first: 7 + 8 = 15, so write 5 and carry 1. Then add the tens: 2 + 5 + 1 = 8. "
    "The sum is 85. To check it, go back: 85 - 58 = 27, which is the number that we began with. A train that covers "
    "120 kilometres in 1.5 hours has a mean speed of 120 / 1.5 = 80 kilometres per hour. If x + 3 = 10, then x = 7, "
    "because 7 + 3 = 10. The area of a rectangle is the product of its sides, thus a garden of 6 by 9 metres has 54 "
    "square metres, and a fence around it needs 2 * (6 + 9) = 30 metres. Half of 54 is 27, and a third of it is 18."
)
"""Neutral English and arithmetic; any tokenizer makes more than enough tokens of it."""
PREFIXES = 16
"""After how many prefixes of the passage a token is drawn."""
_SHORT, _LONG = 48, 144
"""Tokens: all prefixes but one lie within the first; the last is longer than a block of vLLM's prefix cache (16 tokens
on GPUs, 128 on CPUs), so that a cache with other weights' keys would show."""
_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.2}
"""Nats. In bfloat16 two correct engines differ by 0.03 to 0.06 on average (SmolLM2, with and without adapters)."""


class Stale(RolloutError):
    """An engine answers, but draws from other weights than it should."""


@dataclass(frozen=True, slots=True, eq=False)
class FixedText:
    """What the trainer expects of an engine."""

    prefixes: tuple[tuple[int, ...], ...]
    logprobs: Float[Tensor, "prefixes vocab"]
    """Of every token behind each prefix, nats at temperature 1; float32 on the CPU."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Between the log-probabilities (nats) of engine and trainer, absolute."""

    mean: float
    max: float


def tolerance_of(policy: Policy, config: RolloutsConfig) -> float:
    """Return the largest mean difference (nats) that proves a sync."""
    asked = config.handshake_tolerance
    return _TOLERANCE[policy.config.dtype] if asked is None else asked


def fixed_text(policy: Policy) -> FixedText:
    """Return prefixes of the passage and the policy's log-probabilities behind them.

    In evaluation mode and with its adapters on. The prefixes are nested, so that one row holds them all. Neither the
    model's modes nor a random generator are changed.
    """
    ids = policy.chat.encode(PASSAGE)[:_LONG]
    model: Any = policy.model
    context = getattr(model.config, "max_position_embeddings", None)
    if isinstance(context, int):
        ids = ids[: max(1, context - 1)]
    lengths = _lengths(len(ids))
    row = torch.tensor([ids], device=model.get_input_embeddings().weight.device)
    with _evaluating(model), torch.no_grad():
        logits = model(input_ids=row, use_cache=False).logits[0, [length - 1 for length in lengths]]
    logprobs = torch.log_softmax(logits.float(), dim=-1).cpu()
    return FixedText(tuple(tuple(ids[:length]) for length in lengths), logprobs)


def shake_hands(control: Control, served: Served, text: FixedText, tolerance: float) -> Difference:
    """Have an engine prove that it draws from the weights that ``text`` was scored with.

    Args:
        control: the engine.
        served: what it is to draw from.
        text: the trainer's side of the proof.
        tolerance: largest mean difference, nats.

    Raises:
        Stale: its version or its log-probabilities are others.
        RolloutError: the engine does not answer, or not what it was asked.
    """
    found = control.version()
    if found != served.version:
        raise Stale(
            f"{control.name} calls its weights {found!r:.120} and not {served.version!r}: it restarted, or another run "
            "changes them; sync again, or give each run servers of its own"
        )
    drawn = control.draw(text.prefixes, served)
    if len(drawn) != len(text.prefixes):
        raise RolloutError(
            f"{control.name} drew {len(drawn)} tokens behind {len(text.prefixes)} prompts; restart it with vLLM 0.32"
        )
    difference = _difference(control, drawn, text)
    if not difference.mean <= tolerance:
        raise Stale(
            f"{control.name} calls its weights {served.version!r}, but its log-probabilities of a fixed text differ "
            f"from the trainer's by {difference.mean:.2g} nats on average ({tolerance:g} is allowed): they are stale, "
            "half updated, or another model's or dtype's; start the server anew for this recipe (selfdistill serve)"
        )
    return difference


def _difference(control: Control, drawn: list[tuple[int, float]], text: FixedText) -> Difference:
    """Compare what was drawn with what the trainer expects; a value that is no log-probability is an error."""
    vocabulary = text.logprobs.shape[-1]
    differences = []
    for row, (token, logprob) in enumerate(drawn):
        if not 0 <= token < vocabulary:
            raise Stale(
                f"{control.name} drew the token {token}, and the trainer's vocabulary has {vocabulary}: it serves "
                "another model; start the server anew for this recipe (selfdistill serve)"
            )
        if not math.isfinite(logprob):
            raise Stale(
                f"{control.name} drew a token with the log-probability {logprob}: its weights are damaged; "
                "start the server anew for this recipe (selfdistill serve)"
            )
        differences.append(abs(logprob - float(text.logprobs[row, token])))
    return Difference(sum(differences) / len(differences), max(differences))


def _lengths(tokens: int) -> list[int]:
    """Return the lengths of the prefixes of so many tokens, ascending and all different."""
    short = min(_SHORT, tokens)
    steps = PREFIXES - 1
    return sorted({max(1, round(short * index / steps)) for index in range(1, steps + 1)} | {tokens})


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode, and give every module's mode back."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode
