"""A proxy on loopback that breaks connections on purpose: between our client and a real server.

In: the server's port, and what shall go wrong with the next so many requests for responses. Everything else passes.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Literal, Self

Fault = Literal["error 500", "silence", "stall", "cut off", "garbage"]
"""Answer 500; accept and never answer; answer half, then go silent; answer half, then close; answer nonsense."""

FAILURE = b'{"error":{"message":"broken on purpose"}}'
NONSENSE = b'data: {"choices": [{"index": "x", "token_ids": [-7.5]}]}\n\n'
GENERATE = b"POST /inference/v1/generate"
PIECE = 65_536
HALF = 4_000
"""Bytes of an answer that still pass before it stalls or is cut off."""


class FaultProxy:
    """Listens on a port of its own while the ``with`` block lasts."""

    def __init__(self, server_port: int) -> None:
        self.port = 0
        self.broken = 0
        """Requests that were broken so far."""
        self._server_port = server_port
        self._fault: Fault | None = None
        self._left = 0
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def url(self) -> str:
        """Where clients connect to."""
        return f"http://127.0.0.1:{self.port}"

    def break_next(self, fault: Fault, requests: int) -> None:
        """Let the next ``requests`` requests for responses go wrong."""
        self._fault, self._left = fault, requests

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait(10)
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            first = await reader.read(PIECE)
            fault = self._take(first)
            if fault == "silence":
                await asyncio.sleep(3600)
            elif fault == "error 500":
                await _answer(writer, b"HTTP/1.1 500 Internal Server Error", FAILURE)
            elif fault == "garbage":
                await _answer(writer, b"HTTP/1.1 200 OK", NONSENSE)
            else:
                await self._forward(first, reader, writer, fault)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    def _take(self, first: bytes) -> Fault | None:
        if self._left == 0 or not first.startswith(GENERATE):
            return None
        self._left -= 1
        self.broken += 1
        return self._fault

    async def _forward(
        self, first: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, fault: Fault | None
    ) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._server_port)
        back.write(_without_reuse(first))
        upload = asyncio.create_task(_copy(reader, back, lambda sent: False))
        try:
            await _copy(there, writer, lambda sent: fault is not None and sent >= HALF)
            if fault == "stall":
                await asyncio.sleep(3600)
        finally:
            upload.cancel()
            back.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, enough: Callable[[int], bool]) -> None:
    sent = 0
    while not enough(sent) and (piece := await reader.read(PIECE)):
        writer.write(piece)
        await writer.drain()
        sent += len(piece)


def _without_reuse(request: bytes) -> bytes:
    """Ask for a connection that serves one request, so that every request comes by here."""
    head, separator, body = request.partition(b"\r\n\r\n")
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")]
    return b"\r\n".join([*lines, b"Connection: close"]) + separator + body


async def _answer(writer: asyncio.StreamWriter, status: bytes, body: bytes) -> None:
    head = b"\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: " + str(len(body)).encode()
    writer.write(status + head + b"\r\n\r\n" + body)
    await writer.drain()
