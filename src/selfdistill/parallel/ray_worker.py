"""What runs inside a Ray cluster: the workers of a run, and the actor through which they speak with the user.

In: plain settings, with the recipe as text. Out: a run in its folder, which has to be on storage that all nodes share;
progress, failures and the result go through a :class:`Relay`. Nothing here imports Ray before Ray runs it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfdistill.errors import TrainingError
from selfdistill.parallel.failures import Failure, describe, tell_through

if TYPE_CHECKING:
    from selfdistill.training.progress import Progress
    from selfdistill.training.recipe import Recipe
    from selfdistill.training.run import RunResult

FLUSH_SECONDS = 0.25
"""How often a worker sends what it has to show, and asks whether it is to stop."""
TELL_SECONDS = 10.0
"""How long a failing worker tries to say why."""

Event = tuple[Any, ...]
"""A call of :class:`~selfdistill.training.progress.Progress`: its name and arguments; ``end`` ends a phase."""


class Relay:
    """An actor between the workers and the user's process."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._failures: list[dict[str, Any]] = []
        self._stopping = False
        self._attempts = 0
        self._result: RunResult | None = None

    @property
    def _hopeless(self) -> bool:
        return any(failure["kind"] == "input" for failure in self._failures)

    def begin(self) -> int:
        """Count an attempt of the first worker; return how many there were before, -1 if none is to be made."""
        if self._hopeless:
            return -1
        self._attempts += 1
        if self._attempts > 1:
            self._events.append(("restart", self._failures, self._attempts - 1))
            self._failures = []
        return self._attempts - 1

    def exchange(self, events: Sequence[Event]) -> bool:
        """Take what a worker shows; return whether it is to stop."""
        self._events.extend(events)
        return self._stopping

    def fail(self, failure: dict[str, Any]) -> None:
        """Take a worker's :class:`~selfdistill.parallel.failures.Failure`."""
        self._failures.append(failure)

    def finish(self, result: RunResult) -> None:
        """Take the result of the run."""
        self._result = result

    def take(self) -> tuple[list[Event], int, bool]:
        """Hand over what there is to show, how many attempts have begun, and whether another would be in vain."""
        events, self._events = self._events, []
        return events, self._attempts, self._hopeless

    def outcome(self) -> tuple[RunResult | None, list[dict[str, Any]]]:
        """Hand over the result and the failures of the last attempt."""
        return self._result, self._failures

    def stop(self) -> None:
        """Have the workers stop where they can go on later."""
        self._stopping = True


class RelayProgress:
    """Collects what is to be shown; amounts that add up, or replace one another, become one event."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._lock = threading.Lock()

    def take(self) -> list[Event]:
        """Hand over the events since the last call."""
        with self._lock:
            events, self._events = self._events, []
        return events

    @contextmanager
    def phase(self, name: str, total: int | None = None, unit: str = "tokens") -> Iterator[None]:
        """Begin and end a phase."""
        self._add("phase", name, total, unit)
        try:
            yield
        finally:
            self._add("end")

    def advance(self, n: int) -> None:
        """Count units."""
        with self._lock:
            if self._events and self._events[-1][0] == "advance":
                n += self._events.pop()[1]
            self._events.append(("advance", n))

    def responses(self, done: int, total: int, tokens: int) -> None:
        """Count responses."""
        self._add("responses", done, total, tokens)

    def step_line(self, metrics: Mapping[str, Any], total: int | None = None) -> None:
        """Show a step."""
        self._add("step_line", dict(metrics), total)

    def evaluation(self, step: int, mean: float) -> None:
        """Show an evaluation."""
        self._add("evaluation", step, mean)

    def message(self, text: str) -> None:
        """Show a line."""
        self._add("message", text)

    def warning(self, text: str) -> None:
        """Show a warning."""
        self._add("warning", text)

    def _add(self, *event: Any) -> None:
        with self._lock:
            self._events.append(event)


class Replay:
    """Shows a worker's events on this process's display."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._phases: list[Any] = []

    def show(self, events: Sequence[Event]) -> None:
        """Show events in their order."""
        for name, *arguments in events:
            if name == "phase":
                phase = self._progress.phase(*arguments)
                phase.__enter__()
                self._phases.append(phase)
            elif name == "end":
                self._leave()
            elif name == "restart":
                while self._phases:  # of workers that are gone
                    self._leave()
            else:
                getattr(self._progress, name)(*arguments)

    def _leave(self) -> None:
        if self._phases:
            self._phases.pop().__exit__(None, None, None)


def train_worker(settings: Mapping[str, Any]) -> None:
    """Take part in a run: Ray calls this in every worker, and again in new ones after a failure.

    Raises:
        TrainingError: the run failed; the relay has been told why.
    """
    import ray

    relay, rank = settings["relay"], int(os.environ.get("RANK", "0"))

    def teller(failure: Failure) -> None:
        with suppress(ray.exceptions.RayError, ray.exceptions.GetTimeoutError):
            ray.get(relay.fail.remote(asdict(failure)), timeout=TELL_SECONDS)

    tell_through(teller)
    with _connected(relay) as progress:
        try:
            result = _train(settings, rank, progress)
        except Exception as error:
            teller(describe(error, rank))
            raise TrainingError(f"rank {rank} failed; the relay knows why") from None
    if rank == 0:
        ray.get(relay.finish.remote(result))


def _train(settings: Mapping[str, Any], rank: int, progress: RelayProgress) -> RunResult:
    import ray

    from selfdistill.training.auto_resume import finished_result, has_run
    from selfdistill.training.progress import NullProgress
    from selfdistill.training.run import train

    enter_folder(settings)
    recipe = travelled_recipe(settings)
    decision: list[Any] = [None]
    if rank == 0:
        attempts = ray.get(settings["relay"].begin.remote())
        automatic = settings["automatic"] or attempts > 0
        finished = finished_result(recipe) if automatic and attempts >= 0 else None
        decision = [(attempts, has_run(recipe) if automatic else settings["resume"], finished)]
    attempts, resume, finished = _from_first(decision)
    if attempts < 0:
        raise TrainingError("the run cannot be started again")
    if finished is not None:
        return finished  # type: ignore[no-any-return]
    return train(recipe, resume=resume, progress=progress if rank == 0 else NullProgress())


def _from_first(decision: list[Any]) -> Any:
    """Return what the first worker has decided: another one may see the folder as it was before, or after."""
    import torch.distributed as dist

    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.broadcast_object_list(decision, src=0)
    return decision[0]


def travelled_recipe(settings: Mapping[str, Any]) -> Recipe:
    """Return the recipe of the settings as it holds on this node."""
    import yaml

    from selfdistill.training.recipe import overridden_recipe

    recipe = overridden_recipe(yaml.safe_load(settings["recipe"]), settings["overrides"])
    if settings["own_servers"] and recipe.rollouts.server.master_address == "127.0.0.1":
        import ray

        here = f"rollouts.server.master_address={ray.util.get_node_ip_address()}"
        recipe = overridden_recipe(yaml.safe_load(settings["recipe"]), [*settings["overrides"], here])
    return recipe


def enter_folder(settings: Mapping[str, Any]) -> None:
    """Go to the folder that the command was given in, so that relative paths mean what they meant there.

    Raises:
        TrainingError: it is not there on this node, and the recipe has relative paths.
    """
    os.environ.update(settings["secrets"])
    try:
        os.chdir(settings["folder"])
    except OSError as error:
        if settings["relative"]:
            import socket

            raise TrainingError(
                f"{settings['relative'][0]!r} in the recipe is relative to {settings['folder']!r}, which cannot be "
                f"entered on the node {socket.gethostname()} ({error.strerror}); give absolute paths on storage that "
                "all nodes share"
            ) from None


@contextmanager
def _connected(relay: Any) -> Iterator[RelayProgress]:
    """Send what is to be shown, and learn of a wish to stop, while the block runs."""
    import ray

    from selfdistill.training.interruption import request_stop

    progress, over = RelayProgress(), threading.Event()

    def flush() -> None:
        if ray.get(relay.exchange.remote(progress.take())):
            request_stop()

    def keep_flushing() -> None:
        with suppress(ray.exceptions.RayError):  # the user's process is gone: Ray ends us
            while not over.wait(FLUSH_SECONDS):
                flush()

    thread = threading.Thread(target=keep_flushing, name="relay", daemon=True)
    thread.start()
    try:
        yield progress
    finally:
        over.set()
        thread.join()
        with suppress(ray.exceptions.RayError):
            flush()


def relative_paths(recipe: Recipe, folder: Path) -> list[str]:
    """Return the recipe's values that name something relative to ``folder``."""

    def strings(value: Any) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping):
            for item in value.values():
                yield from strings(item)
        elif isinstance(value, list | tuple):
            for item in value:
                yield from strings(item)

    def there(text: str) -> bool:
        with suppress(OSError, ValueError):
            return bool(text.strip()) and not Path(text).is_absolute() and (folder / text).exists()
        return False

    data = recipe.model_dump(mode="json", exclude={"output", "notes", "name"})
    return [text for text in strings(data) if len(text) < 4096 and there(text)]
