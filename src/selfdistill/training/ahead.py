"""One step ahead: the next batch is sampled in a thread of its own while this one trains.

In: what a batch asks of the engine (prompt ids, seeds, settings). Out: a sampler that yields those completions as they
arrive. Only the engine's stream runs in the thread: no tokenizer, no model, no display is touched there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from selfdistill.errors import TrainingError
from selfdistill.rollouts.journal import Journaled
from selfdistill.rollouts.sampler import Completion, Place, Sampler, Sampling

CANCEL_SECONDS = 10.0
"""How long a sampling thread that is told to stop is waited for; one that hangs in a request is left behind."""
_POLL_SECONDS = 0.2
"""Between two looks at what the thread has counted."""


class Cancelled(Exception):
    """The batch is not wanted any more."""


class Ahead(Sampler):
    """A batch that is being sampled in the background.

    The first :meth:`stream` starts the thread and yields nothing; every later one yields the completions, waiting for
    those that have not finished. In this way the same code that asks for a batch now can ask for it ahead of time.

    Args:
        source: draws in the thread, and keeps a journal.
    """

    def __init__(self, source: Journaled) -> None:
        self.source = source
        self.seconds = 0.0
        """That the thread has sampled for."""
        self._thread: threading.Thread | None = None
        self._cancelled = threading.Event()
        self._finished: SimpleQueue[tuple[Place, Completion] | None] = SimpleQueue()
        self._tokens, self._told = 0, 0
        self._error: BaseException | None = None

    @property
    def step(self) -> int:
        """Whose batch it is."""
        return self.source.step

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        logprobs: bool = True,
        on_tokens: Callable[[int], None] | None = None,
    ) -> Iterator[tuple[Place, Completion]]:
        """Start, or yield one completion per seed; see :meth:`selfdistill.rollouts.sampler.Sampler.stream`.

        ``on_tokens`` is told in the caller's thread what was drawn while the caller waits.

        Raises:
            RolloutError: the thread's; and whatever else ended it.
        """
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._draw, args=(prompts, seeds, sampling, logprobs), name="sampling-ahead", daemon=True
            )
            self._thread.start()
            return iter(())
        return self._arriving(on_tokens)

    def wait(self, check: Callable[[], None]) -> None:
        """Wait until the thread has ended, however it did; ``check`` is called meanwhile and may raise."""
        while self._thread is not None and self._thread.is_alive():
            check()
            self._thread.join(_POLL_SECONDS)

    def cancel(self) -> bool:
        """Give up what has not finished; False if the thread does not end in time."""
        self._cancelled.set()
        if self._thread is None:
            return True
        self._thread.join(CANCEL_SECONDS)
        return not self._thread.is_alive()

    def _draw(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]], sampling: Sampling, logprobs: bool
    ) -> None:
        clock = self.source.clock
        started = clock()
        try:
            drawn = self.source.stream(prompts, seeds, sampling, logprobs=logprobs, on_tokens=self._count)
            with closing(drawn):
                for done in drawn:
                    self._finished.put(done)
                    self._count(0)
        except BaseException as error:  # raised again where the batch is wanted
            self._error = error
        finally:
            self.seconds = clock() - started
            self._finished.put(None)

    def _count(self, tokens: int) -> None:
        if self._cancelled.is_set():
            raise Cancelled
        self._tokens += tokens

    def _arriving(self, on_tokens: Callable[[int], None] | None) -> Iterator[tuple[Place, Completion]]:
        self._told = self._tokens  # what was drawn while nobody waited is not this phase's speed
        while True:
            try:
                done = self._finished.get(timeout=_POLL_SECONDS)
            except Empty:
                self._tell(on_tokens)
                continue
            self._tell(on_tokens)
            if done is None:
                break
            yield done
        if self._error is not None:
            error, self._error = self._error, TrainingError("this batch has failed before")
            raise error

    def _tell(self, on_tokens: Callable[[int], None] | None) -> None:
        drawn = self._tokens
        if on_tokens is not None and drawn > self._told:
            on_tokens(drawn - self._told)
        self._told = drawn


@dataclass(slots=True)
class Pending:
    """The batch that is being sampled ahead, if there is one."""

    batch: Ahead | None = None

    def take(self, step: int) -> Ahead | None:
        """Return the batch of ``step`` if it has been begun; one of another step is given up."""
        batch, self.batch = self.batch, None
        if batch is None or batch.step == step:
            return batch
        batch.cancel()
        return None

    def wait(self, check: Callable[[], None]) -> None:
        """Wait until nothing is being sampled; ``check`` is called meanwhile and may raise."""
        if self.batch is not None:
            self.batch.wait(check)

    def cancel(self) -> None:
        """Give up what has not finished; what has stays in the journal."""
        batch, self.batch = self.batch, None
        if batch is not None:
            batch.cancel()
