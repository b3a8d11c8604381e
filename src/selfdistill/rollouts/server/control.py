"""One server's weights, under control: blocking calls, each within a time limit, over the client of :mod:`.http`."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from selfdistill.errors import RolloutError
from selfdistill.rollouts.control import Served
from selfdistill.rollouts.sampler import Completion, Sampling
from selfdistill.rollouts.server.answers import Expected
from selfdistill.rollouts.server.faults import Absent, Fault, Passing, Unreachable, shortened
from selfdistill.rollouts.server.http import Address, Client, refusal
from selfdistill.rollouts.server.requests import request_body

CALL_SECONDS = 120.0
"""For calls that need no more than a look into the server, or an adapter's files."""
WEIGHTS_SECONDS = 1800.0
"""For calls that move all weights, or wait for running requests."""
CACHE_SECONDS = 20.0
"""How long the prefix cache may be held by what has just ended."""
_DRAWN_AT_A_TIME = 32

Result = TypeVar("Result")


class ServerControl:
    """A :class:`~selfdistill.rollouts.control.Control` over HTTP.

    Errors that may pass (the server is not there, or answers 5xx) are :class:`~.faults.Unreachable`.
    """

    def __init__(self, address: Address) -> None:
        self._address = address

    @property
    def name(self) -> str:
        """The server's address."""
        return self._address.name

    def load_adapter(self, name: str, folder: Path) -> None:
        """Load the PEFT adapter in ``folder`` under a new name."""
        body = {"lora_name": name, "lora_path": str(folder)}
        self._post("/v1/load_lora_adapter", body, "the server must be able to read that folder")

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter; one that is not there is no error."""
        self._post("/v1/unload_lora_adapter", {"lora_name": name}, "check the server's log", absent=True)

    def pause(self) -> None:
        """Let running requests end, start no others."""
        self._post("/pause", None, "check the server's log", seconds=WEIGHTS_SECONDS, query={"mode": "wait"})

    def resume(self) -> None:
        """Serve again."""
        self._post("/resume", None, "check the server's log")

    def reload(self, folder: Path) -> None:
        """Replace the base weights by those in ``folder``."""
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        remedy = "the server must be able to read that folder, and serve the same architecture"
        self._post("/collective_rpc", body, remedy, seconds=WEIGHTS_SECONDS)

    def reset_prefix_cache(self) -> None:
        """Forget keys and values of earlier weights; blocks that requests still hold are waited for."""
        self._run(self._reset_prefix_cache)

    def set_version(self, version: str) -> None:
        """Name the weights."""
        self._post("/update_weight_version", {"new_version": version}, "use vLLM 0.32 or later")

    def version(self) -> str:
        """Return the name of the weights."""
        return self._run(weight_version)

    def draw(self, prompts: Sequence[Sequence[int]], served: Served) -> list[tuple[int, float]]:
        """Draw one token behind each prompt at temperature 1 and return it with its log-probability (nats)."""
        return self._run(lambda client: _draw(client, prompts, served.adapter))

    def world_size(self) -> int:
        """Return how many workers hold the weights."""
        found = self._run(lambda client: client.expect("GET", "/get_world_size", seconds=CALL_SECONDS)).get(
            "world_size"
        )
        if type(found) is not int or found < 1:
            raise RolloutError(
                f"the server {self.name} has the world size {shortened(repr(found))}; use vLLM 0.32 or later"
            )
        return found

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Connect the workers with the trainer."""
        remedy = (
            "start the server with its weight transfer configured (`selfdistill serve RECIPE`), or set sync: folder"
        )
        self._post("/init_weight_transfer_engine", {"init_info": init_info}, remedy, seconds=WEIGHTS_SECONDS)

    def start_weight_update(self) -> None:
        """Announce new weights."""
        self._post("/start_weight_update", None, "check the server's log", seconds=WEIGHTS_SECONDS)

    def update_weights(self, update_info: Any) -> None:
        """Receive weights."""
        body = {"update_info": update_info}
        self._post("/update_weights", body, "check the server's log", seconds=WEIGHTS_SECONDS)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Put the received weights to use."""
        body = {"weight_version": weight_version}
        self._post("/finish_weight_update", body, "check the server's log", seconds=WEIGHTS_SECONDS)

    def _post(
        self,
        path: str,
        body: Mapping[str, Any] | None,
        remedy: str,
        *,
        seconds: float = CALL_SECONDS,
        query: Mapping[str, str] | None = None,
        absent: bool = False,
    ) -> None:
        async def post(client: Client) -> None:
            status, answer = await client.call("POST", path, body=body, query=query, seconds=seconds)
            if not (200 <= status < 300 or (absent and status == 404)):
                raise refusal(path, status, answer)

        self._run(post, remedy)

    def _run(self, work: Callable[[Client], Coroutine[Any, Any, Result]], remedy: str | None = None) -> Result:
        async def run() -> Result:
            async with Client(self._address) as client:
                return await work(client)

        try:
            return blocking(run)
        except Passing as fault:
            if remedy is None or isinstance(fault, Absent):
                remedy = "see whether it runs, or start it with `selfdistill serve RECIPE`"
            raise Unreachable(f"the server {self.name} failed: {fault}; {remedy}") from fault
        except Fault as fault:
            raise RolloutError(
                f"the server {self.name} refused: {fault}; {remedy or 'start it with `selfdistill serve RECIPE`'}"
            ) from fault

    async def _reset_prefix_cache(self, client: Client) -> None:
        async def attempt() -> bool:
            answer = await client.expect("POST", "/reset_prefix_cache", seconds=CALL_SECONDS)
            return answer.get("success") is True

        clock = asyncio.get_running_loop().time
        end = clock() + CACHE_SECONDS
        while not await attempt():
            if clock() >= end:
                raise Passing(f"its prefix cache was in use for {CACHE_SECONDS:g} s, and still holds earlier weights'")
            await asyncio.sleep(0.1)


async def weight_version(client: Client) -> str:
    """Return the name of a server's weights.

    Raises:
        Passing: it does not say.
        Refusal: it does not know such names.
    """
    answer = await client.expect("GET", "/weight_info", seconds=CALL_SECONDS)
    found = answer.get("weight_version")
    if not isinstance(found, str):
        raise Passing(f"malformed answer: /weight_info has weight_version {shortened(repr(found))}")
    return found


def blocking(work: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
    """Run a coroutine to its end in a thread of its own: the caller's may have a running loop already.

    An interrupt of the caller cancels the coroutine.
    """
    outcome: list[Result | BaseException] = []
    loop = asyncio.new_event_loop()
    task: asyncio.Task[Result] = loop.create_task(work())

    def run() -> None:
        asyncio.set_event_loop(loop)
        try:
            outcome.append(loop.run_until_complete(task))
        except BaseException as error:  # handed to the caller, whatever it is
            outcome.append(error)
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    thread = threading.Thread(target=run, name="server-control", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(0.2)
    except BaseException:
        loop.call_soon_threadsafe(task.cancel)
        thread.join(5.0)
        raise
    (result,) = outcome
    if isinstance(result, BaseException):
        raise result
    return result


async def _draw(client: Client, prompts: Sequence[Sequence[int]], adapter: str | None) -> list[tuple[int, float]]:
    sampling = Sampling(temperature=1.0, max_new_tokens=1)
    expected = Expected(responses=1, new_tokens=1, ends=frozenset(), logprobs=True, versions=None)
    room = asyncio.Semaphore(_DRAWN_AT_A_TIME)
    drawn: dict[int, Completion] = {}

    async def one(place: int, prompt: Sequence[int]) -> None:
        body = request_body(prompt, place, 1, sampling, (), logprobs=True, adapter=adapter)
        async with room:
            await client.generate(
                body,
                expected,
                seconds=CALL_SECONDS,
                on_tokens=lambda _: None,
                on_completion=lambda _, completion: drawn.update({place: completion}),
            )

    try:
        async with asyncio.TaskGroup() as group:
            for place, prompt in enumerate(prompts):
                group.create_task(one(place, prompt))
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [(drawn[place].ids[0], (drawn[place].logprobs or (float("nan"),))[0]) for place in range(len(prompts))]
