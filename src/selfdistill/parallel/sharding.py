"""Weights, gradients, optimizer and teacher divided over processes by FSDP2 (``fully_shard``).

In: a policy whose weights are whole on every process. Out: the same policy, whose parameters are DTensors on a device
mesh (replicas x shards), and three blocks in which its weights can be used: :func:`whole`, :func:`scoring` and
:func:`accumulating`. For a policy that is not divided, all three do nothing.

Trained parameters become float32 masters; forward and backward passes see them in the model's own dtype, and gradients
are accumulated and reduced in float32. Frozen weights (under LoRA) keep their dtype and are divided as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from types import MethodType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor

from selfdistill.errors import RecipeError
from selfdistill.models.head import BACKBONE, backbone_of, run_backbone, unwrapped
from selfdistill.models.loading import Policy
from selfdistill.parallel.config import ParallelConfig
from selfdistill.parallel.watchdog import watching
from selfdistill.parallel.world import World, losing_peers

ONE_MESSAGE = 2**22
"""A model of fewer parameters is brought together at once, not layer by layer: messages cost by their number then."""


@dataclass(slots=True, eq=False)
class Sharding:
    """How one model is divided."""

    world: World
    by_layer: bool
    """Whether only one layer's weights stand whole at a time."""
    modules: list[FSDPModule]
    """The layers, and last the model itself, which holds the rest (embeddings, last norm, head)."""
    dtype: torch.dtype
    """That passes are made in, and whole models are written in."""
    adapters: bool
    """Whether only adapters are trained: those are written in float32, and the rest is not written."""
    depth: int = 0
    """Blocks inside which all weights stand whole."""
    exported: dict[tuple[int, str], torch.Tensor] | None = None
    """Inside :func:`exporting`, on the main process: values by module (its id) and parameter."""

    @property
    def rest(self) -> FSDPModule:
        """What is no layer."""
        return self.modules[-1]

    def gather(self) -> None:
        """Make all weights stand whole, until :meth:`divide`. All processes take part."""
        with watching("bringing weights together", self.world.timeout_seconds), losing_peers():
            under_way = []
            for module in self.modules:
                module.set_reshard_after_forward(False, recurse=False)
                module.set_reshard_after_backward(False, recurse=False)
                under_way.append(module.unshard(async_op=True))
            for one in under_way:
                if one is not None:
                    one.wait()

    def divide(self) -> None:
        """Let go of all that belongs to other processes, and send nothing."""
        for module in self.modules:
            by_itself = self.by_layer and module is not self.rest
            module.set_reshard_after_forward(by_itself, recurse=False)
            module.set_reshard_after_backward(by_itself, recurse=False)
            module.reshard()


_DIVIDED: WeakKeyDictionary[nn.Module, Sharding] = WeakKeyDictionary()


def sharding_of(model: nn.Module) -> Sharding | None:
    """Return how ``model`` is divided; None: it is not."""
    return _DIVIDED.get(unwrapped(model)) if _DIVIDED else None


def shard(policy: Policy, world: World, config: ParallelConfig, device: torch.device) -> Policy:
    """Divide the policy's weights over the processes and return it, now on ``device``; alone, it stays as it is.

    Raises:
        RecipeError: the processes cannot be divided as the recipe asks.
    """
    if world.size == 1:
        return policy
    mesh = make_mesh(world, config, device.type)
    causal = unwrapped(policy.model)
    small = config.reshard == "step" and sum(one.numel() for one in causal.parameters()) < ONE_MESSAGE
    layers = [] if small else _layers(causal)
    trained = torch.float32
    settings: dict[str, Any] = {
        "mesh": mesh,
        "mp_policy": MixedPrecisionPolicy(
            param_dtype=getattr(torch, policy.config.dtype), reduce_dtype=trained, cast_forward_inputs=False
        ),
        "offload_policy": CPUOffloadPolicy(pin_memory=device.type == "cuda") if config.cpu_offload else OffloadPolicy(),
    }
    for module in [*layers, causal]:
        # One after the other, so that never more than one layer is there in float32 and whole.
        for parameter in module.parameters():
            if parameter.requires_grad and not isinstance(parameter, DTensor):
                parameter.data = parameter.data.to(trained)
        fully_shard(module, **settings)
    for buffer in causal.buffers():
        buffer.data = buffer.data.to(device)
    modules: list[Any] = [*layers, causal]
    for module in modules:
        module.set_gradient_divide_factor(1.0)  # every row carries its share of the global loss: gradients add up
        module.set_force_sum_reduction_for_comms(True)
        if hasattr(module, "set_reduce_scatter_unused_params"):
            module.set_reduce_scatter_unused_params(True)
    setattr(causal, BACKBONE, MethodType(_states, causal))
    register_fsdp_forward_method(causal, BACKBONE)
    sharding = Sharding(
        world, config.reshard == "layer", modules, getattr(torch, policy.config.dtype), policy.has_adapters
    )
    _DIVIDED[causal] = sharding
    sharding.divide()
    with torch.no_grad():
        empty_pass(policy.model, device)  # what runs first becomes the root of all: the model, not one of its layers
    sharding.divide()
    return replace(policy, device=device)


def make_mesh(world: World, config: ParallelConfig, device_type: str) -> DeviceMesh:
    """Return the mesh: shards side by side (on a node), replicas of them across; one dimension if one is enough.

    Raises:
        RecipeError: ``parallel.shard`` does not divide the number of processes.
    """
    shards = min(world.local_size, world.size) if config.shard is None else config.shard
    if world.size % shards:
        raise RecipeError(
            f"parallel.shard is {shards}, which does not divide the {world.size} processes; choose a divisor"
        )
    if shards == world.size:
        return init_device_mesh(device_type, (shards,), mesh_dim_names=("shard",))
    return init_device_mesh(device_type, (world.size // shards, shards), mesh_dim_names=("replica", "shard"))


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """Let every process have all weights inside the block: to draw, to export. All processes enter it together.

    Passes inside it send nothing, so processes may make as many as their own data ask for.
    """
    sharding = sharding_of(model)
    if sharding is None or sharding.depth:
        yield
        return
    sharding.depth += 1
    try:
        sharding.gather()
        yield
    finally:
        sharding.depth -= 1
        sharding.divide()


@contextmanager
def drawing(model: nn.Module) -> Iterator[None]:
    """:func:`whole`, for very many small passes without gradient: those are spared FSDP's look at each layer.

    Decoding spends a fifth to a third of its time there on a small model.
    """
    sharding = sharding_of(model)
    with whole(model), ExitStack() as stack:
        if sharding is not None:
            for module in sharding.modules:
                stack.enter_context(_hooks_off(module))
        yield


@contextmanager
def _hooks_off(module: Any) -> Iterator[None]:
    """Take FSDP's own hooks off a module inside the block, and put them back where they were."""
    state = module._get_fsdp_state()
    own = {
        handle.id
        for name in ("_pre_forward_hook_handle", "_post_forward_hook_handle")
        if (handle := getattr(state, name, None)) is not None
    }
    before = module._forward_pre_hooks, module._forward_hooks
    module._forward_pre_hooks, module._forward_hooks = (
        type(hooks)((key, hook) for key, hook in hooks.items() if key not in own) for hooks in before
    )
    try:
        yield
    finally:
        module._forward_pre_hooks, module._forward_hooks = before


@contextmanager
def scoring(model: nn.Module) -> Iterator[Callable[[int], int] | None]:
    """Let passes without gradient be made inside the block. All processes enter it together.

    Yields:
        None if each may make as many passes as it likes. Otherwise (``reshard: layer``) what turns the number of passes
        that this process has to make into the number that all make: the others are :func:`empty_pass`.
    """
    sharding = sharding_of(model)
    if sharding is None or not sharding.by_layer:
        with whole(model):
            yield None
        return
    try:
        sharding.rest.unshard()
        yield lambda count: max(sharding.world.gather(count))
    finally:
        sharding.divide()


@contextmanager
def accumulating(model: nn.Module, device: torch.device) -> Iterator[Callable[[int], int] | None]:
    """Let passes with gradient be made inside the block; after it, gradients are those of all processes together.

    All processes enter it together, also those that have nothing to do. Yields the same as :func:`scoring`.
    """
    sharding = sharding_of(model)
    if sharding is None:
        yield None
        return
    with ExitStack() as stack:
        if sharding.by_layer:
            stack.enter_context(watching("passes that all processes make together", sharding.world.timeout_seconds))
            stack.enter_context(losing_peers())
            stack.callback(sharding.divide)
            sharding.rest.unshard()
            yield lambda count: max(sharding.world.gather(count))
        else:
            stack.enter_context(whole(model))
            _reduce(sharding, False)
            stack.callback(_reduce, sharding, True)
            yield None
            _reduce(sharding, True)
            with watching("adding up gradients", sharding.world.timeout_seconds), losing_peers():
                empty_pass(model, device).backward()


@contextmanager
def exporting(model: nn.Module) -> Iterator[None]:
    """Let the main process have all trained values inside the block, for :func:`state_of`. All processes enter it."""
    sharding = sharding_of(model)
    if sharding is None:
        yield
        return
    values: dict[tuple[int, str], torch.Tensor] = {}
    known: dict[int, torch.Tensor] = {}  # tied parameters are sent once
    for module in unwrapped(model).modules():
        for name, parameter in module._parameters.items():
            if parameter is None or (sharding.adapters and not parameter.requires_grad):
                continue
            if id(parameter) not in known:
                value = parameter.detach()
                value = value.full_tensor() if isinstance(value, DTensor) else value
                known[id(parameter)] = (
                    value.to("cpu", value.dtype if sharding.adapters else sharding.dtype, copy=True)
                    if sharding.world.is_main
                    else torch.empty(0)
                )
            values[id(module), name] = known[id(parameter)]
    sharding.exported = values
    try:
        yield
    finally:
        sharding.exported = None


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return ``model.state_dict()``; of a divided model, or a part of one, what :func:`exporting` has brought together.

    The latter has trained values only if only adapters are trained.
    """
    sharding = sharding_of(model)
    if sharding is None:
        return model.state_dict()
    if sharding.exported is None:
        raise RuntimeError("the weights of a divided model have to be brought together first")
    state: dict[str, torch.Tensor] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        for name in module._parameters:
            if (id(module), name) in sharding.exported:
                state[prefix + name] = sharding.exported[id(module), name]
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                state[prefix + name] = buffer
    return state


def empty_pass(model: nn.Module, device: torch.device) -> torch.Tensor:
    """Make a pass over one token and return 0, which depends on every parameter that stands whole.

    It reduces what has been accumulated, and keeps a process in step that has nothing to do. Every parameter must get a
    gradient from it: processes reduce the same parameters, or wait for each other for ever.
    """
    inputs = torch.zeros(1, 1, dtype=torch.long, device=device)
    states = run_backbone(model, input_ids=inputs, use_cache=False).last_hidden_state
    total: torch.Tensor = states.float().sum() * 0
    if torch.is_grad_enabled():
        for parameter in unwrapped(model).parameters():
            if parameter.requires_grad and not isinstance(parameter, DTensor):
                total = total + parameter.sum().float() * 0
    return total


def _reduce(sharding: Sharding, wanted: bool) -> None:
    for module in sharding.modules:
        module.set_requires_gradient_sync(wanted, recurse=False)


def _states(causal: nn.Module, **inputs: Any) -> Any:
    return backbone_of(causal)(**inputs)


def _layers(causal: nn.Module) -> list[nn.Module]:
    """Return the blocks of a model: the longest list of modules below its backbone.

    Raises:
        RecipeError: there is none.
    """
    lists: list[nn.ModuleList] = [
        module for module in backbone_of(causal).modules() if isinstance(module, nn.ModuleList)
    ]
    if not lists:
        raise RecipeError(f"{type(causal).__name__} has no list of layers to divide; train it with one process")
    longest: nn.ModuleList = max(lists, key=lambda one: sum(value.numel() for value in one.parameters()))
    return list(longest)
