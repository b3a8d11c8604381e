"""Running vLLM servers as the engine of a run.

In: a policy, whose weights the servers are given, and prompts. Out: completions as they finish. The servers are spoken
to in a background thread for as long as a stream lasts; the consumer's thread only takes what has arrived.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from selfdistill.errors import RecipeError, RolloutError
from selfdistill.models.loading import Policy
from selfdistill.rollouts.config import RolloutsConfig
from selfdistill.rollouts.control import Served
from selfdistill.rollouts.needs import Needs
from selfdistill.rollouts.sampler import Completion, Engine, Place, Sampling, SyncReport
from selfdistill.rollouts.server.control import ServerControl
from selfdistill.rollouts.server.dispatch import Dispatch, Means, Wanted
from selfdistill.rollouts.server.faults import Backoff
from selfdistill.rollouts.server.fleet import Server, connect, give_all
from selfdistill.rollouts.server.http import addresses
from selfdistill.rollouts.server.outbox import Outbox
from selfdistill.rollouts.sync import WeightSync, make_sync

_JOIN_SECONDS = 10.0
"""How long a closed stream's thread may take to close its connections."""


class ServerEngine(Engine):
    """Draws from running vLLM servers (``selfdistill serve`` starts one).

    :meth:`sync` must not be called while a stream is being consumed.

    Args:
        policy: whose weights the servers are given.
        config: ``server`` says where they are and how patient to be.
        needs: what they must be able to do.
        folder: where weights are put for them, unless ``config.server.folder`` names another.
        sync: how weights get there; None: as ``config`` says.
        backoff: pauses between attempts.

    Raises:
        RecipeError: the variable for the API key is not set.
        RolloutError: the weights cannot travel the way that ``config`` names.
    """

    def __init__(
        self,
        policy: Policy,
        config: RolloutsConfig,
        needs: Needs,
        folder: Path,
        *,
        sync: WeightSync | None = None,
        backoff: Backoff | None = None,
    ) -> None:
        self._servers = [Server(address, ServerControl(address)) for address in addresses(config.server)]
        self._ends = tuple(policy.chat.end_of_turn_ids)
        self._served: Served | None = None
        self._sync = make_sync(policy, config, folder) if sync is None else sync
        self._means = Means(self._servers, config.server, needs, self._sync, backoff or Backoff())

    def sync(self, version: str) -> SyncReport:
        """Give every server the policy's present weights.

        The first time, the servers are waited for and checked before. Later, one that is gone meanwhile is given them
        when it is back.

        Raises:
            RolloutError: a server is not there, cannot serve this run, or does not prove to have the weights.
        """
        means, recovery = self._means, self._means.config.recovery_seconds
        if self._served is None:
            connect(self._servers, means.needs, recovery, means.backoff)
        self._served = self._sync.export(version)
        for server in self._servers:
            server.has = None
        return give_all(self._servers, self._sync, self._served, recovery, means.backoff)

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        logprobs: bool = True,
        on_tokens: Callable[[int], None] | None = None,
    ) -> Iterator[tuple[Place, Completion]]:
        """Yield one completion per seed as it finishes. See :meth:`~selfdistill.rollouts.sampler.Sampler.stream`.

        While nothing comes, ``on_tokens`` is called with 0 a few times a second: a caller that wants to stop can raise
        in it, also where no server answers.

        Raises:
            RecipeError: a prompt leaves no room for ``max_new_tokens`` in a server's context; before any is sent.
            RolloutError: the servers fail for longer, or more often, than the settings allow.
        """
        if self._served is None:
            raise RolloutError("the servers have not been given any weights yet; call sync before drawing")
        ends = tuple(dict.fromkeys((*self._ends, *sampling.stop_token_ids)))
        self._check_lengths(prompts, sampling)
        wanted = Wanted(prompts, seeds, sampling, ends, logprobs, self._served)
        if wanted.size == 0:
            return
        outbox = Outbox(sum(map(self._means.room, self._servers)))
        background = _Background(wanted, self._means, outbox)
        try:
            while True:
                taken = outbox.take()
                if on_tokens is not None:
                    on_tokens(taken.tokens)
                yield from taken.completions
                if taken.ended:
                    return
        finally:
            background.stop()

    def close(self) -> None:
        """Remove what was written for the servers. They go on running."""
        self._sync.close()

    def _check_lengths(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> None:
        known = [server.description for server in self._servers if server.description is not None]
        if not known or not prompts:
            return
        tightest = min(known, key=lambda description: description.context)
        longest = max(range(len(prompts)), key=lambda index: len(prompts[index]))
        tokens = len(prompts[longest])
        if tokens + sampling.max_new_tokens > tightest.context:
            raise RecipeError(
                f"prompt {longest} has {tokens} tokens, and with max_new_tokens {sampling.max_new_tokens} that is more "
                f"than the context of the server {tightest.name} (max_model_len {tightest.context}); lower "
                "max_new_tokens or max_prompt_tokens, or start the server with a longer context"
            )


class _Background:
    """The thread in which a stream's event loop runs."""

    def __init__(self, wanted: Wanted, means: Means, outbox: Outbox) -> None:
        self._outbox = outbox
        self._loop = asyncio.new_event_loop()
        self._task = self._loop.create_task(Dispatch(wanted, means, outbox).run())
        self._thread = threading.Thread(target=self._run, name="server-stream", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Give up what still runs and wait until its connections are closed."""
        try:
            self._loop.call_soon_threadsafe(self._task.cancel)
        except RuntimeError:  # the loop is closed: it has ended by itself
            pass
        self._thread.join(_JOIN_SECONDS)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        error: BaseException | None = None
        try:
            self._loop.run_until_complete(self._task)
        except asyncio.CancelledError:
            pass
        except BaseException as caught:  # handed to the consumer, whatever it is
            error = caught
        finally:
            try:
                self._loop.run_until_complete(self._loop.shutdown_asyncgens())
                self._loop.close()
            finally:
                self._outbox.end(error)
