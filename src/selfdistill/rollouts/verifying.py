"""Verifying while others are still being drawn: a step takes as long as the slower of the two, not as both together.

In: rollouts, one by one, as they finish. Out: their verdicts, in the order in which they came, or groups. A thread
verifies what has come in so far, several rollouts in one call; a verifier that wants whole batches is called in the
caller's own thread, when a batch is whole. What a verdict says depends on neither.
"""

from __future__ import annotations

import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from selfdistill.errors import DataError
from selfdistill.questions.question import Question
from selfdistill.rollouts.rollout import Rollout
from selfdistill.rollouts.sampler import Place
from selfdistill.verifiers.verdict import Group, Verdict, Verifier, wants_whole_batches

TOGETHER = 256
"""Rollouts that the thread has verified in one call at most. Few wait unless the verifier is slow; then a larger call
lets it use all cores. Verdicts, and a failure, show after every call."""
CLOSE_SECONDS = 10.0
"""How long a call of the verifier is waited for that nobody wants any more; one that hangs is left behind."""
_POLL_SECONDS = 0.2


Results = dict[Place, tuple[Rollout, Verdict]]
"""Verified rollouts by question and sibling."""


def for_others(results: Results) -> Results:
    """Return results to be sent to other processes, which know the questions: :func:`groups_of` puts them back."""
    nobody: Any = None
    return {place: (replace(rollout, question=nobody), verdict) for place, (rollout, verdict) in results.items()}


def joined(parts: Iterable[Results]) -> Results:
    """Return what several processes have verified, each its own places."""
    return {place: done for part in parts for place, done in part.items()}


def groups_of(results: Results, questions: Sequence[Question], siblings: int) -> list[Group]:
    """Return one group per question, in order.

    Raises:
        KeyError: a place lacks.
    """
    groups = []
    for index, question in enumerate(questions):
        rollouts, verdicts = zip(*(results[index, sibling] for sibling in range(siblings)), strict=True)
        own = (one if one.question is question else replace(one, question=question) for one in rollouts)
        groups.append(Group(question, tuple(own), verdicts))
    return groups


class Verifying(ABC):
    """The verifying of one round of sampling. Leaving its ``with`` block gives up what has not been verified."""

    def __init__(self, verifier: Verifier) -> None:
        self.seconds = 0.0
        """That the verifier has worked for."""
        self.tokens = 0
        """Of all responses that were added."""
        self._verifier = verifier
        self._rollouts: list[tuple[Place, Rollout]] = []
        self._verdicts: list[Verdict] = []  # of the first rollouts: they are verified in the order in which they came
        self._given = 0
        self._error: BaseException | None = None
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give up what has not been verified."""
        self._closed = True

    def add(self, place: Place, rollout: Rollout) -> None:
        """Take in a finished rollout that belongs to ``place`` (question, sibling).

        Raises:
            SelfDistillError: what the verifier raised for an earlier one.
        """
        self.check()
        self.tokens += len(rollout.response_ids)
        self._add(place, rollout)
        self.check()

    def watching(self, on_tokens: Callable[[int], None]) -> Callable[[int], None]:
        """Return ``on_tokens`` for the sampler, which so hears of a failure also while no rollout finishes."""

        def watch(tokens: int) -> None:
            self.check()
            on_tokens(tokens)

        return watch

    def check(self) -> None:
        """Raise what the verifier raised, if it did."""
        if self._error is not None:
            raise self._error

    def ready(self) -> list[tuple[Rollout, Verdict]]:
        """Return what has been verified since the last call, in the order in which it was added. Does not wait."""
        start, self._given = self._given, len(self._verdicts)
        rollouts = [rollout for _, rollout in self._rollouts[start : self._given]]
        return list(zip(rollouts, self._verdicts[start : self._given], strict=True))

    @abstractmethod
    def wait(self, meanwhile: Callable[[], None] | None = None) -> None:
        """Wait until everything that was added is verified, or the verifier has failed (see :meth:`check`).

        ``meanwhile`` is called every now and then, and may raise.
        """

    def groups(self, questions: int, siblings: int) -> list[Group]:
        """Wait, and return one group per question, in order; every place must have been added.

        Raises:
            SelfDistillError: what the verifier raised.
            DataError: the verifier did not return one verdict per response.
        """
        results = self.results()
        asked = [results[index, 0][0].question for index in range(questions)]
        return groups_of(results, asked, siblings)

    def results(self) -> Results:
        """Wait, and return everything that was added, by place. Raises as :meth:`groups`."""
        self.wait()
        self.check()
        pairs = zip(self._rollouts, self._verdicts, strict=True)
        return {place: (rollout, verdict) for (place, rollout), verdict in pairs}

    @abstractmethod
    def _add(self, place: Place, rollout: Rollout) -> None: ...

    @property
    def _waiting(self) -> int:
        """How many rollouts have not been verified."""
        return len(self._rollouts) - len(self._verdicts)

    def _verify(self, count: int) -> tuple[list[Verdict], BaseException | None]:
        """Return the verdicts of the next ``count`` rollouts, or the failure, which is for the caller's thread."""
        start, began = len(self._verdicts), time.monotonic()
        try:
            return verify([rollout for _, rollout in self._rollouts[start : start + count]], self._verifier), None
        except BaseException as error:
            return [], error
        finally:
            self.seconds += time.monotonic() - began


class InBackground(Verifying):
    """A thread of its own verifies whatever has come in.

    Args:
        verifier: checks the responses; called in that thread alone.
        backlog: :meth:`add` waits while more than these have not been verified, so that a stop finds few.
    """

    def __init__(self, verifier: Verifier, backlog: float = math.inf) -> None:
        super().__init__(verifier)
        self._backlog = backlog
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def wait(self, meanwhile: Callable[[], None] | None = None) -> None:
        """See :meth:`Verifying.wait`."""
        while not self._wait_until(lambda: self._waiting == 0, None if meanwhile is None else _POLL_SECONDS):
            assert meanwhile is not None
            meanwhile()

    def _add(self, place: Place, rollout: Rollout) -> None:
        with self._changed:
            self._rollouts.append((place, rollout))
            self._changed.notify_all()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="verifying", daemon=True)
            self._thread.start()
        self._wait_until(lambda: self._waiting <= self._backlog)

    def close(self) -> None:
        """Have the thread end after the call that it is in."""
        with self._changed:
            super().close()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(CLOSE_SECONDS)

    def _work(self) -> None:
        while self._error is None:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._waiting > 0)
                if self._closed:
                    return
                count = min(self._waiting, TOGETHER)
            verdicts, error = self._verify(count)
            with self._changed:
                self._verdicts += verdicts
                self._error = error
                self._changed.notify_all()

    def _wait_until(self, reached: Callable[[], bool], seconds: float | None = None) -> bool:
        """Wait until ``reached``, or the verifier has failed; False if ``seconds`` were not enough."""
        with self._changed:
            return self._changed.wait_for(lambda: self._error is not None or reached(), seconds)


class InWholeBatches(Verifying):
    """Whole batches are verified in the caller's thread.

    Args:
        verifier: checks the responses.
        batch: how many make a batch, in the order in which they came; infinite: all that there will be, in the order
            of their places, as if they had been drawn at once.
        patience: seconds that a rollout waits for the others of its batch.
    """

    def __init__(self, verifier: Verifier, batch: float = math.inf, patience: float = math.inf) -> None:
        super().__init__(verifier)
        self._batch, self._patience = batch, patience
        self._since = 0.0

    def ready(self) -> list[tuple[Rollout, Verdict]]:
        """See :meth:`Verifying.ready`; a batch that has waited long enough is verified first."""
        if self._waiting and time.monotonic() - self._since >= self._patience:
            self._verify_batch()
        return super().ready()

    def wait(self, meanwhile: Callable[[], None] | None = None) -> None:
        """Verify what has not been verified."""
        if self._batch == math.inf:
            self._rollouts.sort(key=lambda one: one[0])
        self._verify_batch()

    def _add(self, place: Place, rollout: Rollout) -> None:
        if not self._waiting:
            self._since = time.monotonic()
        self._rollouts.append((place, rollout))
        if self._waiting >= self._batch:
            self._verify_batch()

    def _verify_batch(self) -> None:
        if self._waiting and self._error is None:
            verdicts, self._error = self._verify(self._waiting)
            self._verdicts += verdicts


def verifying(
    verifier: Verifier, *, batch: float = math.inf, patience: float = math.inf, backlog: float = math.inf
) -> Verifying:
    """Return the way of verifying that suits ``verifier``; see :class:`InBackground` and :class:`InWholeBatches`."""
    if wants_whole_batches(verifier):
        return InWholeBatches(verifier, batch, patience)
    return InBackground(verifier, backlog)


def verify(rollouts: Sequence[Rollout], verifier: Verifier) -> list[Verdict]:
    """Check responses in one call and return one verdict each, in order.

    Raises:
        DataError: the verifier did not return one verdict per response.
    """
    verdicts = verifier.verify([rollout.question for rollout in rollouts], [rollout.text for rollout in rollouts])
    if len(verdicts) != len(rollouts):
        raise DataError(
            f"the verifier returned {len(verdicts)} verdicts for {len(rollouts)} responses; it must return one each"
        )
    return list(verdicts)
