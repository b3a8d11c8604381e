"""Memory of one process, item by item and by part of a step; a pure function of a :class:`Setup`.

A step has four parts (sampling, the teacher's scoring, the update's micro-batches, the optimiser's step). Some items
stand in all of them and some in one, so what must fit is the largest sum, not the sum of all items. Sizes of weights,
gradients, optimizer and teacher are exact (tests compare them with what is allocated); activations are a formula
(:mod:`selfdistill.planning.activations`), the rest bounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from selfdistill.objectives.head_pass import LARGE_HEAD, LARGE_HEAD_ROWS, MINIMUM_TILES, TILE_BYTES
from selfdistill.objectives.linear_reference import CHUNK_ELEMENTS, MINIMUM_CHUNKS
from selfdistill.planning.activations import backward_bytes, forward_bytes, saved_bytes
from selfdistill.planning.setup import FULL, Setup

Part = Literal["sampling", "scoring", "update", "optimizer"]
PARTS: tuple[Part, ...] = ("sampling", "scoring", "update", "optimizer")

RUNTIME = {"cpu": 5 * 2**27, "cuda": 2**30}
"""What a process needs before it holds a model: Python and libraries (0.5 GiB were measured); on a GPU the context, the
kernels, and what the allocator cannot use (a rule of thumb)."""
CHOICE_BYTES = 24
"""Per logit, while tokens are drawn: log-probabilities, probabilities, a sorted copy or a float64 sum."""
READABLE_COPIES = 8
"""Matrices of a chunk's size that autograd keeps on the readable path: a rule of thumb."""


@dataclass(frozen=True, slots=True)
class Item:
    """Something that is held."""

    name: str
    bytes: int
    """Per process."""
    parts: tuple[Part, ...] = PARTS
    """When it is held."""
    detail: str = ""
    on_host: bool = False
    """Whether it is in CPU memory beside the device."""


@dataclass(frozen=True, slots=True)
class Memory:
    """All items of one process."""

    items: tuple[Item, ...]

    def at(self, part: Part) -> int:
        """Return the bytes that the device holds in a part of the step."""
        return sum(item.bytes for item in self.items if part in item.parts and not item.on_host)

    @property
    def peak_part(self) -> Part:
        """The part of the step that needs most."""
        return max(PARTS, key=self.at)

    @property
    def peak(self) -> int:
        """Bytes that the device must have."""
        return self.at(self.peak_part)

    @property
    def host(self) -> int:
        """Bytes of CPU memory beside the device."""
        return sum(item.bytes for item in self.items if item.on_host)


def memory(setup: Setup, capacity: int | None = None) -> Memory:
    """Return what one process holds.

    Args:
        setup: the run.
        capacity: bytes of the device, of which an engine in this process takes a share; None: not known.
    """
    state = _divided(setup) if setup.layout.is_parallel else _alone(setup)
    runtime = Item("runtime", RUNTIME[setup.device], detail="Python, libraries, device context; a rule of thumb")
    groups = (state, _hidden(setup), _update(setup), _sampling(setup, capacity))
    items = [*(item for group in groups for item in group), runtime]
    return Memory(tuple(item for item in items if item.bytes))


def _alone(setup: Setup) -> Iterator[Item]:
    """Weights, gradients, optimizer and teacher of a single process."""
    trained, rounded = setup.trained, setup.lora is None and setup.width < FULL
    own = setup.shape.parameters * setup.width + setup.adapters * FULL
    adapters = " + float32 adapters" if setup.lora else ""
    yield Item("weights", own, detail=f"{setup.dtype}{adapters}")
    yield Item("gradients", trained * (FULL if setup.lora else setup.width), ("update", "optimizer"))
    copies = ", float32 copies" if rounded else ""
    yield Item("optimizer", trained * (12 if rounded else 8), detail=f"AdamW: two float32 moments{copies}")
    yield Item("teacher", *_teacher_alone(setup))
    if setup.teacher == "moving_average" and rounded:
        yield Item("teacher in the model's dtype", trained * setup.width, ("scoring",))
    # Float32AdamW casts all gradients at once; on a GPU AdamW takes the square roots of all second moments at once.
    passing = trained * (FULL * rounded + FULL * (setup.device == "cuda"))
    yield Item("optimizer's own", passing, ("optimizer",), "float32 gradients, square roots; only during its step")


def _teacher_alone(setup: Setup) -> tuple[int, tuple[Part, ...], str]:
    match setup.teacher:
        case "moving_average":
            return setup.trained * FULL, PARTS, "float32 average of what is trained"
        case "initial" | "trust_region":
            if setup.lora:
                return 0, PARTS, "adapters off"
            return setup.shape.parameters * setup.width, PARTS, f"frozen copy, {setup.dtype}"
        case _:
            return 0, PARTS, ""


def _divided(setup: Setup) -> Iterator[Item]:
    """The same for several processes (:mod:`selfdistill.parallel.sharding`).

    Masters and gradients of what is trained are float32, frozen weights keep their dtype; all are divided, and what
    computes has whole weights in the model's dtype beside them.
    """
    layout, shape, trained = setup.layout, setup.shape, setup.trained
    share, away = layout.shard, layout.cpu_offload
    over = f"1/{share} of them" if share > 1 else "all of them"

    def divided(name: str, size: int, what: str, parts: tuple[Part, ...] = PARTS) -> Item:
        return Item(name, math.ceil(size / share), parts, f"{over}, {what}", on_host=away)

    yield divided("masters", trained * FULL, "float32")
    yield divided("frozen weights", shape.parameters * setup.width if setup.lora else 0, setup.dtype)
    yield divided("optimizer", trained * 8, "AdamW: two float32 moments")
    if setup.teacher == "moving_average" or (setup.teacher in ("initial", "trust_region") and not setup.lora):
        yield divided("teacher", trained * FULL, "float32")
    if setup.teacher_passes:
        yield Item("teacher's head", shape.head_parameters * setup.width, ("scoring", "update"), "a copy of its own")
    yield from _by_layer(setup, divided) if layout.reshard == "layer" else _by_step(setup, divided)
    if setup.device == "cuda" and not away:
        yield divided("optimizer's own", trained * FULL, "square roots; only during its step", ("optimizer",))


def _by_step(setup: Setup, divided: Callable[..., Item]) -> Iterator[Item]:
    whole = setup.parameters * setup.width
    yield Item("whole weights", whole, ("sampling", "scoring", "update"), f"{setup.dtype}, while they are used")
    yield Item("whole gradients", setup.trained * FULL, ("update",), "float32, until they are brought together")
    yield divided("gradients", setup.trained * FULL, "float32", ("optimizer",))


def _by_layer(setup: Setup, divided: Callable[..., Item]) -> Iterator[Item]:
    shape = setup.shape
    # To draw, and to hand them to an engine, all weights stand whole.
    yield Item("whole weights", setup.parameters * setup.width, ("sampling",), setup.dtype)
    edges = shape.head_parameters * (1 if shape.tied else 2)
    own = setup.adapters // max(1, shape.layers) + shape.layer_parameters
    whole = (2 * own + edges) * setup.width
    yield Item("layers' weights", whole, ("scoring", "update"), "two at a time, embedding and head")
    trained = setup.adapters // max(1, shape.layers) if setup.lora else max(shape.layer_parameters, edges)
    yield Item("a layer's gradients", trained * (FULL + setup.width), ("update",), "before they are divided")
    yield divided("gradients", setup.trained * FULL, "float32", ("update", "optimizer"))


def _hidden(setup: Setup) -> Iterator[Item]:
    """Hidden states that stay on the device between the passes."""
    state = setup.shape.hidden * setup.width
    sides = setup.teacher_passes
    yield Item(
        "teacher's hidden states",
        setup.update_rows * setup.lengths.response * state * sides,
        ("scoring", "update"),
        "of every response token of an update",
    )
    # The student's, their gradient, and the teacher's of the same rows joined.
    pieces = setup.micro_batch_responses * state * (2 + sides) + 2 * setup.micro_batch * state
    yield Item("student's hidden states", pieces, ("update",), "of a micro-batch, with their gradients")
    if setup.teacher_passes:
        held = max(min(setup.micro_batch_tokens, setup.update_rows * setup.teacher_row), setup.teacher_row)
        shared = 2 * setup.shape.layers * setup.shape.kv_width * setup.width if setup.reuse_prefix else 0
        passing = forward_bytes(setup, held) + (held * shared if setup.group_size > 1 else 0)
        yield Item("teacher's forward pass", passing, ("scoring",))


def _update(setup: Setup) -> Iterator[Item]:
    positions = setup.micro_batch
    saved = saved_bytes(setup, positions, setup.student_row) + backward_bytes(setup, positions)
    kept = "one layer's, and every layer's input" if setup.gradient_checkpointing else "every layer's"
    yield Item("activations", saved, ("update",), f"{positions:,} positions; {kept}")
    yield Item("tile of the head", tile_bytes(setup), ("update",), f"logits; {setup.head} path")
    if setup.lora is None:
        weights = setup.shape.head_parameters
        made = weights * (FULL + (setup.width if setup.width < FULL else 0))
        yield Item("head's gradient", made, ("update",), "in float32, before it is added to the gradients")


def tile_bytes(setup: Setup) -> int:
    """Return the bytes of logits that exist at a time (:func:`selfdistill.objectives.head_pass.tile_rows`)."""
    shape, tokens = setup.shape, setup.micro_batch_responses
    sides = 2 if setup.teacher_passes else 1
    if setup.head == "readable":
        elements = min(CHUNK_ELEMENTS, math.ceil(tokens / MINIMUM_CHUNKS) * shape.vocabulary)
        cast = shape.head_parameters * FULL if setup.width < FULL else 0
        return elements * FULL * READABLE_COPIES + cast
    row = shape.vocabulary * FULL * sides + (shape.vocabulary * setup.width if setup.device == "cuda" else 0)
    share = math.ceil(tokens / MINIMUM_TILES)
    if shape.vocabulary * shape.hidden >= LARGE_HEAD:
        share = max(share, LARGE_HEAD_ROWS)
    most = max(1, min(TILE_BYTES[setup.device] // row, share))
    return math.ceil(tokens / math.ceil(tokens / most)) * row if tokens else row


def _sampling(setup: Setup, capacity: int | None) -> Iterator[Item]:
    """What drawing responses holds: the cache of keys and values, and the logits of one step."""
    if setup.engine == "vllm":
        size = int(setup.engine_share * (capacity or 0))
        parts: tuple[Part, ...] = PARTS if setup.device == "cpu" else ("sampling",)
        yield Item("vLLM", size, parts, f"rollouts.vllm.memory={setup.engine_share:g} of the device")
        return
    if setup.engine != "transformers":
        return
    drawn = [(rows, new) for rows, new in _drawn(setup) if rows]
    if not drawn:
        return
    shape = setup.shape
    per_token = 2 * shape.layers * shape.kv_width * setup.width
    cache, rows, new = max((rows * (setup.lengths.prompt + new) * per_token, rows, new) for rows, new in drawn)
    yield Item("sampling cache", cache, ("sampling",), f"{rows} rows of up to {setup.lengths.prompt + new:,} tokens")
    most = max(rows for rows, _ in drawn)
    logits = most * shape.vocabulary * (CHOICE_BYTES + setup.width)
    prompts = forward_bytes(setup, min(most, setup.own_questions) * setup.lengths.prompt)
    yield Item("logits and prompts' pass", logits + prompts, ("sampling",), f"{most} rows side by side")


def _drawn(setup: Setup) -> Iterator[tuple[int, int]]:
    """Yield rows side by side and their new tokens: in training, and in evaluations."""
    if setup.samples:
        yield side_by_side(setup, setup.own_questions * setup.group_size, setup.lengths.response)
    if setup.evaluation_tokens is not None:
        yield side_by_side(setup, setup.max_rows, setup.evaluation_tokens)


def side_by_side(setup: Setup, rows: int, new_tokens: int) -> tuple[int, int]:
    """Return how many rows are decoded at a time, at least one, and their new tokens."""
    held = setup.batch_tokens // (setup.lengths.prompt + new_tokens)
    return max(1, min(rows, setup.max_rows, held)), new_tokens
