"""The whole plan of a recipe: shape, memory, tokens, advice, and the measurement where it can be made."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from selfdistill.errors import SelfDistillError
from selfdistill.models.loading import resolve_device, resolve_source
from selfdistill.planning.advice import Change, advise
from selfdistill.planning.estimate import StepTime, step_time
from selfdistill.planning.layout import Layout, layout_of
from selfdistill.planning.lengths import lengths_of, local_chat, local_data
from selfdistill.planning.measure import Measurement, measure
from selfdistill.planning.memory import Memory, memory
from selfdistill.planning.setup import DeviceType, Setup, setup_of
from selfdistill.planning.shape import read_shape
from selfdistill.planning.tokens import Tokens, tokens_of
from selfdistill.questions import LoadedData
from selfdistill.training.recipe import Recipe

GIB = 2**30
MEASURE_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked about, beside the recipe."""

    gpus: int = 1
    """Processes, one per GPU of one node."""
    gpu_memory: float | None = None
    """GiB of one GPU; None: what this machine's device has."""
    seconds: float | None = None
    """To measure for; 0: no measurement; None: the default, and only if the model is here and fits here."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is known of a run before it starts."""

    recipe: Recipe
    setup: Setup
    memory: Memory
    capacity: int
    """Bytes of the device."""
    capacity_source: str
    tokens: Tokens
    changes: tuple[Change, ...]
    """Empty if it fits."""
    batches: tuple[Measurement, ...]
    """What was measured, the largest last."""
    step: StepTime | None
    unmeasured: str
    """Why there is no measurement; empty if there is one."""

    @property
    def fits(self) -> bool:
        """Whether the part of a step that needs most fits the device."""
        return self.memory.peak <= self.capacity


def make_plan(recipe: Recipe, request: Request) -> Plan:
    """Return the plan of a recipe; measures if asked for.

    Raises:
        SelfDistillError: no configuration of the model can be had, or the recipe does not go with it.
    """
    shape = read_shape(recipe.model)
    data, chat = local_data(recipe), local_chat(recipe)
    lengths = lengths_of(recipe, shape.context, data, chat)
    device: DeviceType = "cuda" if request.gpu_memory is not None else _device(recipe)
    setup = setup_of(recipe, shape, lengths, layout_of(recipe, request.gpus), device)
    if request.gpu_memory is not None:
        capacity, source = int(request.gpu_memory * GIB), "--gpu-memory"
    else:
        capacity, source = _capacity(device)
        capacity //= request.gpus if device == "cpu" else 1
    held = memory(setup, capacity)
    here = setup_of(recipe, shape, lengths, Layout(), _device(recipe))
    batches, unmeasured = _measured(recipe, data, request, here)
    return Plan(
        recipe=recipe,
        setup=setup,
        memory=held,
        capacity=capacity,
        capacity_source=source,
        tokens=tokens_of(setup, recipe),
        changes=() if held.peak <= capacity else advise(setup, capacity),
        batches=batches,
        step=step_time(here, batches) if batches else None,
        unmeasured=unmeasured,
    )


def _device(recipe: Recipe) -> DeviceType:
    """Return the recipe's device; a GPU that is not here counts as asked for."""
    if recipe.model.device == "cuda":
        return "cuda"
    return "cuda" if resolve_device(recipe.model.device).type == "cuda" else "cpu"


def _capacity(device: DeviceType) -> tuple[int, str]:
    """Return the bytes of this machine's device, and which that is.

    Raises:
        SelfDistillError: a GPU is asked for and there is none.
    """
    if device == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "this machine's memory"
    if not torch.cuda.is_available():
        raise SelfDistillError(
            "model.device is cuda and there is no CUDA device here; say with --gpu-memory GIB what the GPU has"
        )
    _, total = torch.cuda.mem_get_info()
    return total, torch.cuda.get_device_name()


def _measured(
    recipe: Recipe, data: LoadedData | None, request: Request, here: Setup
) -> tuple[tuple[Measurement, ...], str]:
    """Return what was measured, or why nothing was."""
    seconds = MEASURE_SECONDS if request.seconds is None else request.seconds
    if seconds <= 0:
        return (), "not asked for (--no-measure)"
    if data is None or not data.train:
        return (), "the questions are not on this machine"
    if request.seconds is None and (reason := _not_here(recipe, here)):
        return (), f"{reason}; --measure {MEASURE_SECONDS:g} tries all the same"
    try:
        return measure(recipe, data, seconds), ""
    except torch.OutOfMemoryError:
        return (), "this machine's device ran out of memory"


def _not_here(recipe: Recipe, here: Setup) -> str:
    """Say why the model should not be loaded here without being asked to; nothing if it can be."""
    folder = Path(resolve_source(recipe.model.path))
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        return "the model's weights are not in a folder on this machine"
    if here.device == "cuda" and not torch.cuda.is_available():
        return "there is no GPU here"
    capacity, _ = _capacity(here.device)
    return "" if memory(here, capacity).peak <= capacity else "it would not fit this machine"
