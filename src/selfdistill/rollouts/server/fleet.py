"""The servers of a run between two streams: what is known about each, and how they are given the policy's weights."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from selfdistill.errors import RolloutError
from selfdistill.rollouts.control import Control, Served
from selfdistill.rollouts.needs import Needs
from selfdistill.rollouts.sampler import SyncReport
from selfdistill.rollouts.server.control import ServerControl, blocking
from selfdistill.rollouts.server.description import Description, check, describe
from selfdistill.rollouts.server.faults import REMEDY, Backoff, Passing, Refusal, Unreachable
from selfdistill.rollouts.server.http import Address, Client


class Pusher(Protocol):
    """The part of a weight sync that gives one engine the exported weights."""

    def push(self, control: Control) -> SyncReport:
        """Give them and prove it."""
        ...


@dataclass(slots=True)
class Server:
    """One server, as far as it is known."""

    address: Address
    control: ServerControl
    description: Description | None = None
    has: str | None = None
    """Version that it was given last and proved; None: it has to be given the weights."""
    pushing: threading.Lock = field(default_factory=threading.Lock)

    @property
    def name(self) -> str:
        """Its address."""
        return self.address.name


async def inspect(client: Client, needs: Needs) -> Description:
    """Describe a server and check that it will do.

    Raises:
        Passing: it is not there.
        RolloutError: it will not do.
    """
    try:
        description = await describe(client)
    except Refusal as fault:
        raise RolloutError(f"the server {client.address.name} cannot be used: {fault}") from fault
    check(description, needs)
    return description


def connect(servers: Sequence[Server], needs: Needs, recovery_seconds: float, backoff: Backoff) -> None:
    """Wait until every server is there, and check each.

    Raises:
        RolloutError: one is not there after ``recovery_seconds``, or will not do.
    """

    async def one(server: Server, deadline: float) -> None:
        failures = 0
        async with Client(server.address) as client:
            while True:
                try:
                    server.description = await inspect(client, needs)
                    return
                except Passing as fault:
                    failures += 1
                    left = deadline - asyncio.get_running_loop().time()
                    if left <= 0:
                        raise RolloutError(
                            f"the server {server.name} cannot be used after {recovery_seconds:g} s of waiting: "
                            f"{fault}; {REMEDY}"
                        ) from fault
                    await asyncio.sleep(min(left, backoff.seconds(failures)))

    async def everyone() -> None:
        deadline = asyncio.get_running_loop().time() + recovery_seconds
        try:
            async with asyncio.TaskGroup() as group:
                for server in servers:
                    group.create_task(one(server, deadline))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None

    blocking(everyone)


def give(server: Server, sync: Pusher, served: Served) -> SyncReport:
    """Give one server the weights, however often that was done before. Blocks; safe from several threads.

    Raises:
        Unreachable: it cannot be talked to.
        RolloutError: it does not take them, or does not prove to have them.
    """
    with server.pushing:
        server.has = None
        report = sync.push(server.control)
        server.has = served.version
    return report


def give_all(
    servers: Sequence[Server], sync: Pusher, served: Served, recovery_seconds: float, backoff: Backoff
) -> SyncReport:
    """Give every server that is there the weights. One that is not gets them when it is back.

    Returns:
        The slowest server's and the largest differences.

    Raises:
        RolloutError: none was reached within ``recovery_seconds``, or one refuses.
    """
    deadline, failures = time.monotonic() + recovery_seconds, 0
    first: BaseException | None = None
    while True:
        outcomes = in_parallel([lambda server=server: give(server, sync, served) for server in servers])  # type: ignore[misc]
        reports = [outcome for outcome in outcomes if isinstance(outcome, SyncReport)]
        errors = [outcome for outcome in outcomes if not isinstance(outcome, SyncReport)]
        for error in errors:
            if not isinstance(error, Unreachable):
                raise error
        if reports:
            return SyncReport(
                served.version,
                max(report.bytes for report in reports),
                max(report.seconds for report in reports),
                max(report.mean_difference for report in reports),
                max(report.max_difference for report in reports),
            )
        failures += 1
        first = first or errors[0]
        left = deadline - time.monotonic()
        if left <= 0:
            # What failed first may have broken the server, and then it is the cause.
            before = "" if str(first) == str(errors[0]) else f" (at first: {first})"
            raise RolloutError(f"{errors[0]}; given up after {recovery_seconds:g} s{before}") from errors[0]
        time.sleep(min(left, backoff.seconds(failures)))


def in_parallel(calls: Sequence[Callable[[], SyncReport]]) -> list[SyncReport | BaseException]:
    """Make each call in a thread of its own and return what it returned or raised."""
    outcomes: dict[int, SyncReport | BaseException] = {}

    def run(place: int, call: Callable[[], SyncReport]) -> None:
        try:
            outcomes[place] = call()
        except BaseException as error:  # handed to the caller, whatever it is
            outcomes[place] = error

    threads = [
        threading.Thread(target=run, args=(place, call), name=f"push-{place}", daemon=True)
        for place, call in enumerate(calls)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(0.2)
    return [outcomes[place] for place in range(len(calls))]
