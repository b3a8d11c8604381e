"""Where a step on several processes spends its time: stopwatches around the parts that one process does not have.

They are put around functions of the library, and count own time only: what a watched function calls and is watched too
counts there. Before every exchange all processes wait for each other, so that waiting and sending are told apart.
"""

from __future__ import annotations

import functools
import importlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

WAITING = "waiting for the slower process"
SENDING = "objects sent (World.gather)"
WATCHED: dict[str, tuple[tuple[str, str], ...]] = {
    "FSDP hooks of layers": (
        ("torch.distributed.fsdp._fully_shard._fsdp_state", "FSDPState._pre_forward"),
        ("torch.distributed.fsdp._fully_shard._fsdp_state", "FSDPState._post_forward"),
        ("torch.distributed.fsdp._fully_shard._fsdp_state", "FSDPState._pre_backward"),
    ),
    "weights made whole (gather)": (("selfdistill.parallel.sharding", "Sharding.gather"),),
    "weights let go (divide)": (("selfdistill.parallel.sharding", "Sharding.divide"),),
    "gradients reduced": (
        ("torch.distributed.fsdp._fully_shard._fsdp_param_group", "FSDPParamGroup.post_backward"),
        ("torch.distributed.fsdp._fully_shard._fsdp_state", "FSDPState._root_post_backward_final_callback"),
    ),
    "optimizer": (("selfdistill.training.optimizer", "Float32AdamW.step"),),
    "gradient norm and clip": (("selfdistill.training.loop", "gradient_norm"),),
    "teacher follows": (("selfdistill.teachers.self_teacher", "MovingAverageTeacher._follow"),),
    "plan of all rows, on each process": (("selfdistill.training.loop", "Trainer.plan"),),
    "metrics and rollouts written": (("selfdistill.training.run", "_write_step"),),
    "teacher's passes": (("selfdistill.training.update", "_Passes.teach"),),
    "student's passes": (("selfdistill.training.update", "_Passes.learn"),),
    "sampling": (
        ("selfdistill.rollouts.decoding", "Decoder._enter"),
        ("selfdistill.rollouts.decoding", "Decoder._advance"),
    ),
}
"""By label, module and name of what is watched."""
REST = "all else"


class Stopwatches:
    """Own seconds by label."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self._inside: list[float] = []
        """Per watched call under way: seconds of watched calls inside it."""

    def watch(self, label: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with a stopwatch around it."""

        @functools.wraps(function)
        def watched(*arguments: Any, **named: Any) -> Any:
            with self.running(label):
                return function(*arguments, **named)

        return watched

    @contextmanager
    def running(self, label: str) -> Iterator[None]:
        """Count a block."""
        self._inside.append(0.0)
        started = time.perf_counter()
        try:
            yield
        finally:
            taken = time.perf_counter() - started
            self.seconds[label] += taken - self._inside.pop()
            self.calls[label] += 1
            if self._inside:
                self._inside[-1] += taken

    def reset(self) -> None:
        """Forget what was counted."""
        self.seconds.clear()
        self.calls.clear()

    def install(self) -> None:
        """Watch all of it from now on; before models are divided, because hooks are registered then."""
        for label, places in WATCHED.items():
            for module, path in places:
                owner: Any = importlib.import_module(module)
                *parents, name = path.split(".")
                for parent in parents:
                    owner = getattr(owner, parent)
                setattr(owner, name, self.watch(label, getattr(owner, name)))
        self._watch_exchanges()

    def _watch_exchanges(self) -> None:
        import torch.distributed as dist

        from selfdistill.parallel.world import World

        exchange = World.gather

        def gather(world: World, value: Any) -> Any:
            if world.size == 1:
                return [value]
            with self.running(WAITING):
                dist.barrier(group=world.group)
            with self.running(SENDING):
                return exchange(world, value)

        setattr(World, "gather", gather)  # noqa: B010  # of a frozen class, for all of its values
