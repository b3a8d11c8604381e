"""One vLLM server over HTTP: plain JSON calls, and the stream of a request's responses. Every wait has a limit.

In: an address, and what to ask. Out: JSON objects, completions as they finish, or a :class:`Fault`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import aiohttp

from selfdistill.errors import RecipeError
from selfdistill.rollouts.config import ServerConfig
from selfdistill.rollouts.sampler import Completion
from selfdistill.rollouts.server.answers import Answer, Expected, Lines, parsed, server_words
from selfdistill.rollouts.server.faults import Absent, Passing, Refusal, StaleServer, shortened

CONNECT_SECONDS = 10.0
BODY_BYTES = 64 * 2**20
"""Longest plain answer that is read."""
GENERATE = "/inference/v1/generate"
_MAY_PASS = frozenset({408, 425, 429})


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is, and what it takes to be let in."""

    url: str
    key: str | None
    silent_seconds: float

    @property
    def name(self) -> str:
        """The address without a password that may stand in it."""
        parts = urlsplit(self.url)
        return self.url.replace(f"{parts.netloc}", parts.netloc.rpartition("@")[2], 1)


def addresses(config: ServerConfig) -> list[Address]:
    """Return the servers that a recipe names.

    Raises:
        RecipeError: the variable for the API key is not set, or holds no key.
    """
    variable, key = config.api_key_variable, None
    if variable is not None:
        key = os.environ.get(variable, "").strip()
        if not key or not key.isascii() or not key.isprintable():
            raise RecipeError(
                f"rollouts.server.api_key_variable: the environment variable {variable!r} "
                f"{'is not a key' if key else 'is not set'}; export it with the servers' API key, or set null"
            )
    return [Address(url, key, config.silent_seconds) for url in config.urls]


class Client:
    """Talks to one server, within one event loop: ``async with Client(address) as client``."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.heard = float("-inf")
        """When (on the loop's clock) the last bytes of a stream came."""
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Get ready. Every request has a connection of its own: the server closes idle ones just when one is needed."""
        key = self.address.key
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
            headers={} if key is None else {"Authorization": f"Bearer {key}"},
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all connections; the server aborts what it is drawing for them."""
        if self._session is not None:
            await self._session.close()

    async def call(
        self,
        method: str,
        path: str,
        *,
        seconds: float,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> tuple[int, dict[str, Any]]:
        """Return the status and the JSON object of a plain call; ``{}`` for a body that is none.

        Raises:
            Passing: no answer within ``seconds``, a broken connection, or a status that may pass (5xx, 408, 425, 429).
        """
        async with self._limit(seconds), self._request(method, path, body, query) as response:
            text = await _read(response)
            answer = _object(text)
            if response.status >= 500 or response.status in _MAY_PASS:
                raise Passing(f"{path} answers {response.status}: {server_words(answer) if answer else 'no reason'}")
            return response.status, answer

    async def expect(
        self,
        method: str,
        path: str,
        *,
        seconds: float,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Like :meth:`call`, for calls that have to succeed.

        Raises:
            Passing: as :meth:`call`.
            Refusal: any status but 2xx.
        """
        status, answer = await self.call(method, path, seconds=seconds, body=body, query=query)
        if not 200 <= status < 300:
            raise refusal(path, status, answer)
        return answer

    async def generate(
        self,
        body: Mapping[str, Any],
        expected: Expected,
        *,
        seconds: float,
        on_tokens: Callable[[int], None],
        on_completion: Callable[[int, Completion], None],
    ) -> None:
        """Draw the responses to one request; each is handed to ``on_completion`` with its index as it finishes.

        Returns when all have finished.

        Args:
            body: what is posted, with ``stream`` set.
            expected: what the responses must be like.
            seconds: time limit for all of them.
            on_tokens: called with the number of tokens that have just come.
            on_completion: called with each finished response.

        Raises:
            Passing: a failure that may pass; responses that were handed over are good.
            StaleServer: the server has other weights, or does not know the adapter.
            Refusal: the server does not accept the request.
        """
        answer, lines = Answer(expected), Lines()
        async with self._limit(seconds), self._request("POST", GENERATE, body) as response:
            if response.status != 200:
                raise _rejected(response.status, _object(await _read(response)), body.get("model"))
            started = asyncio.get_running_loop().time()
            while not answer.ended and (data := await self._chunk(response, started)):
                for line in lines.feed(data):
                    tokens, done = answer.add(line)
                    if tokens:
                        on_tokens(tokens)
                    for index, completion in done:
                        on_completion(index, completion)
        if not answer.complete:
            raise Absent("the answer broke off before its end")

    async def _chunk(self, response: aiohttp.ClientResponse, started: float) -> bytes:
        """Return the next bytes, b"" at the end. The server is silent only if no other stream of it brings anything."""
        clock = asyncio.get_running_loop().time
        while True:
            limit = max(self.heard, started) + self.address.silent_seconds
            try:
                async with asyncio.timeout_at(limit):
                    data = await response.content.readany()
            except TimeoutError:
                if clock() >= max(self.heard, started) + self.address.silent_seconds:
                    raise Absent(f"it sent nothing for {self.address.silent_seconds:g} s") from None
                continue
            self.heard = clock()
            return data

    @contextlib.asynccontextmanager
    async def _request(
        self, method: str, path: str, body: Mapping[str, Any] | None, query: Mapping[str, str] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Open a request; whatever the HTTP library raises meanwhile becomes a fault."""
        if self._session is None:
            raise RuntimeError("a Client is used inside `async with`")
        data = None if body is None else json.dumps(body, separators=(",", ":")).encode()
        headers = {} if body is None else {"Content-Type": "application/json"}
        url = self.address.url + path
        options: dict[str, Any] = {"data": data, "headers": headers, "params": query, "allow_redirects": False}
        try:
            async with contextlib.AsyncExitStack() as stack:
                silent = self.address.silent_seconds
                try:
                    async with asyncio.timeout(silent if path == GENERATE else None):
                        response = await stack.enter_async_context(self._session.request(method, url, **options))
                except aiohttp.ServerTimeoutError as error:
                    raise Absent(f"no connection within {CONNECT_SECONDS:g} s") from error
                except TimeoutError:
                    raise Absent(f"it sent nothing for {silent:g} s") from None
                try:
                    yield response
                except BaseException:
                    response.close()  # not back to the pool: the server has to notice
                    raise
        except aiohttp.ClientConnectorError as error:
            raise Absent(f"no connection ({shortened(error.os_error.strerror or error)})") from error
        except (aiohttp.ClientError, OSError) as error:
            if isinstance(error, TimeoutError):
                raise
            raise Absent(f"the connection broke ({shortened(str(error) or type(error).__name__)})") from error

    @contextlib.asynccontextmanager
    async def _limit(self, seconds: float) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError:
            raise Absent(f"not done within {seconds:g} s") from None


def refusal(path: str, status: int, answer: dict[str, Any]) -> Refusal:
    """Return what to say about a status that asking again would not change."""
    if status == 401:
        return Refusal(f"{path} answers 401; name the variable that holds its key in rollouts.server.api_key_variable")
    return Refusal(f"{path} answers {status}: {server_words(answer) if answer else 'no reason'}")


def _rejected(status: int, answer: dict[str, Any], adapter: Any) -> Exception:
    words = server_words(answer) if answer else "no reason"
    if status >= 500 or status in _MAY_PASS:
        return Passing(f"{GENERATE} answers {status}: {words}")
    if status == 404 and adapter is not None and str(adapter) in words:
        return StaleServer(f"it does not know the adapter {adapter!r}")
    return refusal(GENERATE, status, answer)


async def _read(response: aiohttp.ClientResponse) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > BODY_BYTES:
            raise Passing(f"malformed answer: more than {BODY_BYTES} bytes")
    return b"".join(parts)


def _object(text: bytes) -> dict[str, Any]:
    try:
        return parsed(text)
    except Passing:
        return {}
