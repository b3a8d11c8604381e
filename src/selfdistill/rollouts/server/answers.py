"""The answer to one request: lines of a server-sent event stream become completions, and nothing is believed unchecked.

In: the bytes of the stream, line by line. Out: how many tokens came, and each completion as it finishes. Whatever does
not fit (types, lengths, ends, weights) is a :class:`Fault` that names it.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from selfdistill.rollouts.rollout import FinishReason
from selfdistill.rollouts.sampler import Completion
from selfdistill.rollouts.server.faults import Passing, StaleServer, shortened

LINE_BYTES = 16 * 2**20
"""Longest line that is accepted: one chunk with the log-probabilities of a hundred thousand tokens."""
IDS = range(2**31)
NOT_FINITE = -9000.0
"""vLLM writes -9999 where a log-probability is not finite; a drawn token's cannot be as low otherwise."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What the responses to one request must be like."""

    responses: int
    new_tokens: int
    """A response that no end id ends has exactly so many tokens."""
    ends: frozenset[int]
    logprobs: bool
    versions: Collection[str] | None
    """Names that the weights may have; None: any."""


@dataclass(slots=True)
class _Choice:
    """A response that is on its way: twelve bytes a token."""

    ids: array[int] = field(default_factory=lambda: array("i"))
    logprobs: array[float] = field(default_factory=lambda: array("d"))
    finished: bool = False


class Lines:
    """Cuts a stream of bytes into lines."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines that ``data`` completes, without their ends.

        Raises:
            Passing: a line is longer than :data:`LINE_BYTES`.
        """
        self._rest += data
        *lines, self._rest = self._rest.split(b"\n")
        if any(len(line) > LINE_BYTES for line in (*lines, self._rest)):
            raise Passing(f"malformed answer: a line of more than {LINE_BYTES} bytes")
        return [bytes(line.rstrip(b"\r")) for line in lines]


class Answer:
    """The responses to one request, put together as they come."""

    def __init__(self, expected: Expected) -> None:
        self._expected = expected
        self._choices = [_Choice() for _ in range(expected.responses)]
        self.ended = False
        """Whether the server said that nothing more comes."""

    @property
    def complete(self) -> bool:
        """Whether every response has finished."""
        return all(choice.finished for choice in self._choices)

    def add(self, line: bytes) -> tuple[int, list[tuple[int, Completion]]]:
        """Take in one line; return how many tokens it brought, and the responses that it finished by their index.

        Raises:
            Passing: the server reports a failure, or the line is not what was expected.
            StaleServer: a response was drawn from other weights.
        """
        if not line.startswith(b"data:"):
            return 0, []  # blank lines and comments
        data = line[len(b"data:") :].strip()
        if data == b"[DONE]":
            self.ended = True
            return 0, []
        chunk = parsed(data)
        if "error" in chunk:
            raise Passing(f"it reports: {server_words(chunk)}")
        tokens, done = 0, []
        for choice in _list(chunk, "choices"):
            arrived, finished = self._take(_dict(choice, "a choice"))
            tokens += arrived
            done += finished
        return tokens, done

    def _take(self, choice: dict[str, Any]) -> tuple[int, list[tuple[int, Completion]]]:
        index = choice.get("index")
        if type(index) is not int or not 0 <= index < len(self._choices):
            raise Passing(f"malformed answer: a choice has the index {shortened(repr(index))}")
        own = self._choices[index]
        if own.finished:
            raise Passing(f"malformed answer: choice {index} goes on after its end")
        ids = token_ids(choice.get("token_ids") or [])
        if len(own.ids) + len(ids) > self._expected.new_tokens:
            raise Passing(f"malformed answer: more than max_tokens {self._expected.new_tokens} tokens")
        own.ids.extend(ids)
        if self._expected.logprobs:
            own.logprobs.extend(token_logprobs(choice.get("logprobs"), ids))
        reason = choice.get("finish_reason")
        if reason is None:
            return len(ids), []
        if reason not in ("stop", "length"):
            raise Passing(f"a response ended with the finish reason {shortened(repr(reason))}")
        completion = self._completion(own, cast(FinishReason, reason))
        self._check_weights(choice.get("weight_versions"))
        own.finished = True
        own.ids, own.logprobs = array("i"), array("d")
        return len(ids), [(index, completion)]

    def _completion(self, own: _Choice, reason: FinishReason) -> Completion:
        ids, ends = tuple(own.ids), self._expected.ends
        if not ids:
            raise Passing("malformed answer: a response without a token")
        if not ends.isdisjoint(ids[:-1]):
            raise Passing("malformed answer: a response goes on behind an end-of-turn id")
        if reason != ("stop" if ids[-1] in ends else "length"):
            raise Passing(f"malformed answer: finish reason {reason!r}, but the last id is {ids[-1]}")
        if reason == "length" and len(ids) < self._expected.new_tokens:
            raise Passing(f"a response was cut after {len(ids)} of {self._expected.new_tokens} tokens")
        return Completion(ids, tuple(own.logprobs) if self._expected.logprobs else None, reason)

    def _check_weights(self, spans: Any) -> None:
        wanted = self._expected.versions
        if wanted is None:
            return
        if not isinstance(spans, list) or not spans:
            raise Passing("malformed answer: a response without weight_versions (vLLM 0.32 or later has them)")
        for span in spans:
            version = span.get("version") if isinstance(span, dict) else None
            if not isinstance(version, str) or version not in wanted:
                raise StaleServer(f"a response was drawn from the weights {shortened(repr(version))}")


def parsed(data: bytes) -> dict[str, Any]:
    """Return a JSON object.

    Raises:
        Passing: it is none.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise Passing(f"malformed answer: no JSON: {shortened(data[:80].decode('utf-8', 'replace'))!r}") from None
    return _dict(value, "the answer")


def token_ids(value: Any) -> list[int]:
    """Return a list of token ids.

    Raises:
        Passing: it is none.
    """
    if not isinstance(value, list) or not all(type(token) is int and 0 <= token < IDS.stop for token in value):
        raise Passing(f"malformed answer: token_ids is {shortened(repr(value)[:80])}")
    return value


def token_logprobs(value: Any, ids: Sequence[int]) -> list[float]:
    """Return the log-probabilities of ``ids`` out of vLLM's record of them.

    Raises:
        Passing: they are not those of ``ids``, or not finite.
    """
    content = value.get("content") if isinstance(value, dict) else None
    content = [] if content is None and not ids else content
    if not isinstance(content, list) or len(content) != len(ids):
        raise Passing(f"malformed answer: no log-probability for each of {len(ids)} tokens")
    found = []
    for entry, token in zip(content, ids, strict=True):
        record = _dict(entry, "a log-probability")
        number = record.get("logprob")
        if record.get("token_id") != token or isinstance(number, bool) or not isinstance(number, float | int):
            raise Passing(f"malformed answer: {shortened(repr(entry)[:80])} is no log-probability of token {token}")
        if not NOT_FINITE < number < 1e-3 or math.isnan(number):
            raise Passing(f"a log-probability is {number}; the server's logits are not finite")
        found.append(float(number))
    return found


def server_words(body: dict[str, Any]) -> str:
    """Return the message of a server's error report, shortened."""
    error = body.get("error", body.get("detail"))
    message = error.get("message") if isinstance(error, dict) else error
    return shortened(message if message else body)


def _dict(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Passing(f"malformed answer: {what} is no JSON object: {shortened(repr(value)[:80])}")
    return value


def _list(chunk: dict[str, Any], name: str) -> list[Any]:
    value = chunk.get(name)
    if not isinstance(value, list):
        raise Passing(f"malformed answer: {name} is no list: {shortened(repr(value)[:80])}")
    return value
