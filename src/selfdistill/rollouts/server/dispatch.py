"""One stream of responses over several servers: who draws what, and what happens when one of them fails.

A prompt's siblings go to one server, whose prefix cache then holds the prompt; prompts go, in order, to the server with
the fewest outstanding responses. What has finished is kept, whatever happens to the rest: that is asked for again, with
the same seeds, a little later each time. A server that fails is looked at before it gets another request: is it there,
and does it still have the weights? One that is gone is polled; one that came back is given the weights again.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from selfdistill.errors import RolloutError
from selfdistill.rollouts.config import ServerConfig
from selfdistill.rollouts.control import Served
from selfdistill.rollouts.needs import Needs, has_logprobs
from selfdistill.rollouts.sampler import Completion, Sampling
from selfdistill.rollouts.server.answers import Expected
from selfdistill.rollouts.server.control import weight_version
from selfdistill.rollouts.server.faults import REMEDY, Backoff, Fault, Passing, Refusal, StaleServer, Unreachable
from selfdistill.rollouts.server.fleet import Pusher, Server, give, inspect
from selfdistill.rollouts.server.http import Client
from selfdistill.rollouts.server.outbox import Outbox
from selfdistill.rollouts.server.requests import Ask, Work, request_body, split

HEALTH_SECONDS = 10.0
"""For a sign of life."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be drawn, and from which weights."""

    prompts: Sequence[Sequence[int]]
    seeds: Sequence[Sequence[int]]
    sampling: Sampling
    ends: tuple[int, ...]
    logprobs: bool
    served: Served

    @property
    def size(self) -> int:
        """How many responses."""
        return sum(map(len, self.seeds))


@dataclass(frozen=True, slots=True)
class Means:
    """What a stream works with."""

    servers: Sequence[Server]
    config: ServerConfig
    needs: Needs
    sync: Pusher
    backoff: Backoff

    def request_seconds(self, sampling: Sampling) -> float:
        """Return the time limit of one request."""
        limit = self.config.request_seconds
        return 60.0 + 0.1 * sampling.max_new_tokens if limit is None else limit

    def room(self, server: Server) -> int:
        """Return how many responses may be outstanding at a server."""
        outstanding = self.config.outstanding
        return outstanding if server.description is None else min(outstanding, server.description.side_by_side)


class _State(enum.Enum):
    READY = enum.auto()
    DOUBTED = enum.auto()
    """Being looked at: what runs goes on, nothing is started."""
    OUT = enum.auto()


@dataclass(slots=True, eq=False)
class _Lane:
    """One server within a stream."""

    server: Server
    client: Client
    state: _State
    outstanding: int = 0
    backlog: deque[Work] = field(default_factory=deque)
    requests: set[asyncio.Task[None]] = field(default_factory=set)
    dropped: Fault | None = None
    """Why its running requests are being cancelled."""
    given: int = 0
    """How often it was given the weights again."""


class Dispatch:
    """Draws what is wanted. ``await Dispatch(...).run()`` in a loop of its own; results go to the outbox."""

    def __init__(self, wanted: Wanted, means: Means, outbox: Outbox) -> None:
        self._wanted = wanted
        self._means = means
        self._outbox = outbox
        self._waiting = deque(Work(prompt, tuple(range(len(own)))) for prompt, own in enumerate(wanted.seeds) if own)
        self._left = wanted.size
        self._lanes: list[_Lane] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._fatal: BaseException | None = None
        self._wake = asyncio.Event()
        self._alive = 0.0

    async def run(self) -> None:
        """Draw until everything was handed over.

        Raises:
            RolloutError: a server refuses, or attempts or time have run out.
        """
        loop = asyncio.get_running_loop()
        self._alive = loop.time()

        def room_again() -> None:
            loop.call_soon_threadsafe(self._wake.set)

        self._outbox.notify_takes(room_again)
        async with contextlib.AsyncExitStack() as stack:
            for server in self._means.servers:
                lane = _Lane(server, await stack.enter_async_context(Client(server.address)), _State.READY)
                self._lanes.append(lane)
                if server.has != self._wanted.served.version:
                    self._doubt(lane, StaleServer("it has not been given the weights yet"))
            try:
                while self._left and self._fatal is None:
                    self._start()
                    await self._wake.wait()
                    self._wake.clear()
            finally:
                self._outbox.notify_takes(None)
                await self._give_up()
        if self._fatal is not None:
            raise self._fatal

    # Who draws what

    def _start(self) -> None:
        """Start every request that there is room for."""
        for lane in self._lanes:
            self._drain(lane)
        while self._waiting:
            free = [
                lane
                for lane in self._lanes
                if lane.state is _State.READY and not lane.backlog and lane.outstanding < self._means.room(lane.server)
            ]
            if not free or self._outbox.full():
                return
            lane = min(free, key=lambda lane: lane.outstanding)
            lane.backlog.append(self._waiting.popleft())
            self._drain(lane)

    def _drain(self, lane: _Lane) -> None:
        """Start what a server's own prompts still want of it, as far as there is room."""
        while lane.backlog and lane.state is _State.READY and not self._outbox.full():
            work, most = lane.backlog[0], self._means.room(lane.server)
            ask, rest = split(work, self._wanted.seeds[work.prompt], most - lane.outstanding, most)
            if ask is None:
                return
            lane.backlog.popleft()
            if rest is not None:
                lane.backlog.appendleft(rest)
            lane.outstanding += ask.size
            task = self._spawn(self._request(lane, ask))
            lane.requests.add(task)
            task.add_done_callback(lane.requests.discard)

    async def _request(self, lane: _Lane, ask: Ask) -> None:
        """See one request to its end, and what is missing of it to another attempt."""
        missing = list(ask.work.siblings)

        def finished(index: int, completion: Completion) -> None:
            sibling = ask.work.siblings[index]
            missing.remove(sibling)
            lane.outstanding -= 1
            self._left -= 1
            self._outbox.put((ask.work.prompt, sibling), completion)
            self._wake.set()

        fault: Fault | None = None
        try:
            await self._generate(lane, ask, finished)
        except Fault as error:
            fault = error
        except asyncio.CancelledError:
            if lane.dropped is None:
                raise
            fault = lane.dropped
        finally:
            lane.outstanding -= len(missing)
            self._wake.set()
        if isinstance(fault, Refusal):
            self._fail(lane, fault)
        elif fault is not None:
            if lane.dropped is None:
                self._doubt(lane, fault)
            rest = replace(ask.work, siblings=tuple(missing), failures=ask.work.failures + 1)
            self._spawn(self._again(lane, rest, fault))

    async def _generate(self, lane: _Lane, ask: Ask, finished: Callable[[int, Completion], None]) -> None:
        wanted, description = self._wanted, lane.server.description
        assert description is not None
        logprobs = wanted.logprobs and has_logprobs(wanted.sampling, description.logprobs_mode)
        body = request_body(
            wanted.prompts[ask.work.prompt],
            ask.seed,
            ask.size,
            wanted.sampling,
            wanted.ends,
            logprobs=logprobs,
            adapter=wanted.served.adapter,
        )
        expected = Expected(
            responses=ask.size,
            new_tokens=wanted.sampling.max_new_tokens,
            ends=frozenset(wanted.ends),
            logprobs=logprobs,
            versions=(wanted.served.version,),
        )

        def arrived(tokens: int) -> None:
            self._alive = asyncio.get_running_loop().time()
            self._outbox.count(tokens)

        seconds = self._means.request_seconds(wanted.sampling)
        await lane.client.generate(body, expected, seconds=seconds, on_tokens=arrived, on_completion=finished)

    async def _again(self, lane: _Lane, work: Work, fault: Fault) -> None:
        """Queue what a failed request left, after a pause; at its own server if that is still in play."""
        if not work.siblings:
            return
        if work.failures > self._means.config.retries:
            self._fail(lane, f"{fault} (after {work.failures} attempts)")
            return
        await asyncio.sleep(self._means.backoff.seconds(work.failures))
        (self._waiting if lane.state is _State.OUT else lane.backlog).appendleft(work)
        self._wake.set()

    # What happens when one of them fails

    def _doubt(self, lane: _Lane, fault: Fault) -> None:
        """Look at a server before it gets another request."""
        if lane.state is _State.READY:
            lane.state = _State.DOUBTED
            self._alive = asyncio.get_running_loop().time()  # it was in play until now
            self._spawn(self._recover(lane, fault))
        elif isinstance(fault, StaleServer):
            lane.server.has = None  # whoever looks at it sees that

    async def _recover(self, lane: _Lane, fault: Fault) -> None:
        """Bring a server back into play, or give up when none has been there for too long."""
        loop, recovery, failures = asyncio.get_running_loop(), self._means.config.recovery_seconds, 0
        if isinstance(fault, StaleServer):
            lane.server.has = None
        while True:
            try:
                await self._look_at(lane)
                break
            except Passing as passing:
                failures += 1
                await self._drop(lane, passing)
                pause, left = self._means.backoff.seconds(failures), self._alive + recovery - loop.time()
                if all(other.state is _State.OUT for other in self._lanes):
                    if left <= 0:
                        self._fail(lane, f"{passing}, and no server has answered for {recovery:g} s")
                        return
                    pause = min(pause, left)
                await asyncio.sleep(pause)
            except Refusal as refusal:
                self._fail(lane, refusal)
                return
            except RolloutError as error:
                self._fail(lane, error)
                return
        self._alive = loop.time()
        lane.state, lane.dropped = _State.READY, None
        self._wake.set()

    async def _look_at(self, lane: _Lane) -> None:
        """Check that a server is there and has the weights; give it these if it has not.

        Raises:
            Fault: it is not there, or refuses.
            RolloutError: it does not take the weights.
        """
        server, client, served = lane.server, lane.client, self._wanted.served
        health = min(HEALTH_SECONDS, self._means.config.silent_seconds)
        await client.expect("GET", "/health", seconds=health)
        if (
            server.has == served.version
            and lane.state is _State.DOUBTED
            and await weight_version(client) == served.version
        ):
            return
        await self._drop(lane, StaleServer("it does not have the step's weights"))
        server.has, server.description = None, await inspect(client, self._means.needs)
        if lane.given > self._means.config.retries:
            raise Refusal(f"it was given the weights {lane.given} times and lost them each time")
        try:
            await in_thread(lambda: give(server, self._means.sync, served))
        except Unreachable as error:
            raise Passing(str(error)) from error
        lane.given += 1

    async def _drop(self, lane: _Lane, fault: Fault) -> None:
        """Take a server out: what runs there is cancelled, what waits for it goes to the others."""
        lane.state, lane.dropped = _State.OUT, fault
        self._waiting.extendleft(reversed(lane.backlog))
        lane.backlog.clear()
        requests = tuple(lane.requests)
        for task in requests:
            task.cancel()
        await asyncio.gather(*requests, return_exceptions=True)
        self._wake.set()

    def _fail(self, lane: _Lane, reason: object) -> None:
        """End the stream with an error."""
        wanted = self._wanted.size
        remedy = "correct that" if isinstance(reason, Refusal) else REMEDY
        error = RolloutError(
            f"the server {lane.server.name} failed: {reason}; {wanted - self._left} of {wanted} responses were "
            f"finished; {remedy}"
        )
        if isinstance(reason, BaseException):
            error.__cause__ = reason
        self._fatal = self._fatal or error
        self._wake.set()

    # Tasks

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fatal = self._fatal or error  # a bug: it keeps its traceback
        self._wake.set()

    async def _give_up(self) -> None:
        """Cancel whatever still runs; closed connections tell the servers."""
        for lane in self._lanes:
            lane.dropped = None
        while self._tasks:  # one that ends may still leave another behind
            for task in tuple(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)


async def in_thread(call: Callable[[], object]) -> None:
    """Make a blocking call in a thread that nobody waits for when the stream is closed meanwhile."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def settle(error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def run() -> None:
        error: BaseException | None = None
        try:
            call()
        except BaseException as caught:  # handed over, whatever it is
            error = caught
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, error)

    threading.Thread(target=run, name="server-push", daemon=True).start()
    await done
