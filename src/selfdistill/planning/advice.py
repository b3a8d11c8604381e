"""What to change so that a run fits: settings in the order in which one would try them, each with what it saves.

Every change is tried on the same model of memory that the plan is made with, on top of those before it. First what
leaves the result as it is (up to rounding), then precision and where things are held, then what changes what is
trained, last more GPUs. As soon as it fits, what has turned out not to be needed is taken back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from selfdistill.models.loading import ATTENTION_AND_MLP, LoraConfig
from selfdistill.planning.layout import Layout
from selfdistill.planning.memory import PARTS, Part, memory
from selfdistill.planning.setup import Setup

WORTH = 0.01
"""A change that saves less than this share of the device is not named."""
GPUS = (2, 4, 8, 16, 32, 64)
STEP = 256
"""Budgets of tokens are multiples of this."""


@dataclass(frozen=True, slots=True)
class Change:
    """One setting."""

    override: str
    """As it is written on the command line."""
    saves: int
    """Bytes, in the part of a step where that is most, on top of the changes before it."""
    part: Part
    """That part."""
    peak: int
    """What is needed then, in the part that needs most."""


@dataclass(frozen=True, slots=True)
class Option:
    """One value of a setting that might be changed."""

    override: str
    apply: Callable[[Setup], Setup]


def advise(setup: Setup, capacity: int) -> tuple[Change, ...]:
    """Return the changes after which a run fits; all that help, if it does not fit with all of them.

    Args:
        setup: the run as it is.
        capacity: bytes of the device.
    """
    taken: list[tuple[Option, list[Option]]] = []  # with the milder options of the same setting
    changed = setup
    for candidate in _CANDIDATES:
        before = _excess(changed, capacity)
        options = candidate(changed, capacity)
        if before == 0:
            break
        if not options:
            continue
        left = [_excess(option.apply(changed), capacity) for option in options]
        place = left.index(min(left))  # no lower than it has to be
        if before - left[place] >= WORTH * capacity:
            taken.append((options[place], options[:place]))
            changed = options[place].apply(changed)
    chosen = [option for option, _ in taken]
    if _excess(changed, capacity) == 0:
        chosen = _relaxed(setup, taken, capacity)
    return _changes(setup, chosen, capacity)


def _relaxed(setup: Setup, taken: Sequence[tuple[Option, list[Option]]], capacity: int) -> list[Option]:
    """Take back each change that the others make superfluous, or make it milder; the last ones first."""
    chosen: list[Option | None] = [option for option, _ in taken]
    for place, (_, milder) in reversed(list(enumerate(taken))):
        for instead in (None, *milder):
            trial = [*chosen[:place], instead, *chosen[place + 1 :]]
            if _excess(_applied(setup, [one for one in trial if one]), capacity) == 0:
                chosen = trial
                break
    return [option for option in chosen if option]


def _applied(setup: Setup, options: Sequence[Option]) -> Setup:
    for option in options:
        setup = option.apply(setup)
    return setup


def _changes(setup: Setup, options: Sequence[Option], capacity: int) -> tuple[Change, ...]:
    changes = []
    for option in options:
        after = option.apply(setup)
        old, new = memory(setup, capacity), memory(after, capacity)
        over = [part for part in PARTS if old.at(part) > capacity] or PARTS
        part = max(over, key=lambda one: old.at(one) - new.at(one))
        changes.append(Change(option.override, old.at(part) - new.at(part), part, new.peak))
        setup = after
    return tuple(changes)


def _excess(setup: Setup, capacity: int) -> int:
    """Return by how much the parts of a step together exceed the device; 0: it fits."""
    held = memory(setup, capacity)
    return sum(max(0, held.at(part) - capacity) for part in PARTS)


def _setting(override: str, **changes: Any) -> Option:
    """Return the option of replacing fields of the setup."""
    return Option(override, lambda setup: replace(setup, **changes))


def _layout(override: str, **changes: Any) -> Option:
    """Return the option of replacing fields of the layout."""
    return Option(override, lambda setup: replace(setup, layout=replace(setup.layout, **changes)))


def _halved(value: int, least: int) -> list[int]:
    """Return ``value`` halved again and again, down to ``least``."""
    values = []
    while value > least:
        value = max(least, value // 2)
        values.append(value)
    return values


def _rounded_up(value: int) -> int:
    return -(-value // STEP) * STEP


def _micro_batches(setup: Setup, capacity: int) -> list[Option]:
    values = _halved(min(setup.micro_batch_tokens, _rounded_up(setup.micro_batch)), _rounded_up(setup.student_row))
    return [_setting(f"train.micro_batch_tokens={one}", micro_batch_tokens=one) for one in values]


def _rows_side_by_side(setup: Setup, capacity: int) -> list[Option]:
    if setup.engine != "transformers":
        return []
    row = setup.lengths.prompt + max(setup.lengths.response, setup.evaluation_tokens or 0)
    values = _halved(setup.batch_tokens, _rounded_up(row))
    return [_setting(f"rollouts.batch_tokens={one}", batch_tokens=one) for one in values]


def _checkpointing(setup: Setup, capacity: int) -> list[Option]:
    if setup.gradient_checkpointing:
        return []
    return [_setting("model.gradient_checkpointing=true", gradient_checkpointing=True)]


def _engine_share(setup: Setup, capacity: int) -> list[Option]:
    shares = (0.4, 0.3, 0.2) if setup.engine == "vllm" else ()
    return [_setting(f"rollouts.vllm.memory={one}", engine_share=one) for one in shares if one < setup.engine_share]


def _bfloat16(setup: Setup, capacity: int) -> list[Option]:
    return [] if setup.dtype == "bfloat16" else [_setting("model.dtype=bfloat16", dtype="bfloat16")]


def _server(setup: Setup, capacity: int) -> list[Option]:
    """Servers have to be on other GPUs: here they hold nothing."""
    return [] if setup.engine == "vllm_server" else [_setting("rollouts.engine=vllm_server", engine="vllm_server")]


def _shard(setup: Setup, capacity: int) -> list[Option]:
    layout = setup.layout
    return [_layout("parallel.shard=null", shard=layout.processes)] if layout.shard < layout.processes else []


def _reshard(setup: Setup, capacity: int) -> list[Option]:
    possible = setup.layout.is_parallel and setup.layout.reshard == "step"
    return [_layout("parallel.reshard=layer", reshard="layer")] if possible else []


def _offload(setup: Setup, capacity: int) -> list[Option]:
    possible = setup.layout.is_parallel and not setup.layout.cpu_offload
    return [_layout("parallel.cpu_offload=true", cpu_offload=True)] if possible else []


def _adapters(setup: Setup, capacity: int) -> list[Option]:
    if setup.lora is not None or not set(ATTENTION_AND_MLP) <= set(setup.shape.linears):
        return []
    return [_setting("model.lora={r: 64, alpha: 128}", lora=LoraConfig())]


def _smaller_rank(setup: Setup, capacity: int) -> list[Option]:
    lora = setup.lora
    if lora is None:
        return []
    ranks = [one for one in (64, 32, 16, 8) if one < lora.r]
    return [_setting(f"model.lora.r={one}", lora=lora.model_copy(update={"r": one})) for one in ranks]


def _more_gpus(setup: Setup, capacity: int) -> list[Option]:
    """The smallest number with which it fits, first with whole weights, then layer by layer."""
    words = {"step": "", "layer": " with parallel.reshard=layer"}
    for sharding in ("step", "layer"):
        for count in (one for one in GPUS if one > setup.layout.processes):
            layout = Layout(count, count, sharding, setup.layout.cpu_offload)
            option = _setting(f"--gpus {count}{words[sharding]}", layout=layout)
            if _excess(option.apply(setup), capacity) == 0:
                return [option]
    return []


_CANDIDATES: tuple[Callable[[Setup, int], list[Option]], ...] = (
    _micro_batches,
    _rows_side_by_side,
    _engine_share,
    _checkpointing,
    _shard,
    _reshard,
    _bfloat16,
    _server,
    _offload,
    _adapters,
    _smaller_rank,
    _more_gpus,
)
