"""A server that answers like vLLM's, in a thread, and breaks when it is told to; and engines that talk to it."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web

from selfdistill.randomness import python_random
from selfdistill.rollouts.config import RolloutsConfig
from selfdistill.rollouts.control import Control, Served
from selfdistill.rollouts.needs import Needs
from selfdistill.rollouts.sampler import Completion, Sampling, SyncReport
from selfdistill.rollouts.server import ServerEngine
from selfdistill.rollouts.server.faults import Backoff

END = 2


def response(prompt: Sequence[int], seed: int, new_tokens: int) -> Completion:
    """What the fake answers to one prompt and seed: a function of both."""
    source = python_random(seed, *prompt)
    ended = source.random() < 0.6
    length = source.randint(1, new_tokens) if ended else new_tokens
    ids = [source.randrange(10, 2**31) for _ in range(length)]
    if ended:
        ids[-1] = END
    return Completion(tuple(ids), tuple(-source.random() for _ in ids), "stop" if ended else "length")


class FakeServer:
    """vLLM's endpoints on loopback. Everything that a test sets or reads is a plain attribute."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.version = "default"
        self.adapters: set[str] = set()
        self.context, self.side_by_side = 1000, 64
        self.lora: dict[str, Any] | None = {"max_lora_rank": 16, "max_loras": 2, "target_modules": None}
        self.lora_updates, self.scale_out, self.development = True, True, True
        self.logprobs_mode = "processed_logprobs"
        self.key: str | None = None
        self.faults: deque[str] = deque()
        """Taken by the next requests for responses, one each; "" is none."""
        self.every: str | None = None
        """A fault of every request."""
        self.broken_calls: dict[str, Any] = {}
        """Path -> (status, text) or "hang"."""
        self.requests: list[dict[str, Any]] = []
        self.calls: list[str] = []
        self.paused = 0
        self.outstanding = self.most_outstanding = 0
        self.closed_by_client = threading.Event()
        self.arrived = threading.Semaphore(0)
        self.on_request: Callable[[dict[str, Any]], None] = lambda body: None
        self.hold_after: int | None = None
        """Finished choices of a request after which it waits for :meth:`release`."""
        self._loop = asyncio.new_event_loop()
        self._released = asyncio.Event()
        self._runner: web.AppRunner | None = None
        self._transports: set[asyncio.Transport] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.start()

    def start(self) -> None:
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(5)

    def stop(self) -> None:
        """Die: connections break, the port refuses."""
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(5)

    def restart(self) -> None:
        """Come back as started: without adapters, with the name that weights have then."""
        self.stop()
        self.adapters.clear()
        self.version = "default"
        self.start()

    def release(self) -> None:
        self._loop.call_soon_threadsafe(self._released.set)

    def close(self) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    async def _start(self) -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True).start()

    async def _stop(self) -> None:
        if self._runner is None:
            return
        runner, self._runner = self._runner, None
        for transport in self._transports:
            if not transport.is_closing():  # one that is closed has no loop any more, and cannot be aborted
                transport.abort()
        self._transports.clear()
        await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if request.transport is not None:
            self._transports.add(request.transport)
        path = request.path
        self.calls.append(path)
        broken = self.broken_calls.get(path)
        if broken == "hang":
            await asyncio.sleep(3600)
        if broken is not None:
            return web.Response(status=broken[0], text=broken[1])
        if self.key is not None and path != "/health" and request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        body = await request.json() if request.can_read_body else {}
        if path == "/inference/v1/generate":
            return await self._generate(request, body)
        return self._call(request, path, body)

    def _call(self, request: web.Request, path: str, body: Any) -> web.Response:
        missing = web.json_response({"error": {"message": "Not Found", "type": "Not Found", "code": 404}}, status=404)
        match path:
            case "/health":
                return web.Response()
            case "/server_info" if self.development:
                return web.json_response(self._info())
            case "/weight_info":
                return web.json_response({"weight_version": self.version})
            case "/update_weight_version":
                self.version = body["new_version"]
                return web.json_response({"success": True})
            case "/v1/load_lora_adapter":
                if body["lora_name"] in self.adapters:
                    return web.json_response({"error": {"message": "has already been loaded"}}, status=400)
                self.adapters.add(body["lora_name"])
                return web.Response(text="Success")
            case "/v1/unload_lora_adapter":
                if body["lora_name"] not in self.adapters:
                    return missing
                self.adapters.discard(body["lora_name"])
                return web.Response(text="Success")
            case "/pause":
                assert request.query["mode"] == "wait"
                self.paused += 1
                return web.json_response({"status": "paused"})
            case "/reset_prefix_cache":
                self.paused -= 1
                return web.json_response({"success": self.paused <= 0})
            case "/get_world_size":
                return web.json_response({"world_size": 2})
            case "/resume" | "/collective_rpc" | "/init_weight_transfer_engine" | "/finish_weight_update":
                return web.json_response({})
        return missing

    def _info(self) -> dict[str, Any]:
        model = {"model": "base", "max_model_len": self.context, "logprobs_mode": self.logprobs_mode}
        config = {
            "model_config": model,
            "lora_config": self.lora,
            "scheduler_config": {"max_num_seqs": self.side_by_side},
        }
        return {"vllm_config": config, "vllm_env": {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": self.lora_updates}}

    async def _generate(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if not self.scale_out:
            message = "Scale-out endpoints are disabled."
            return web.json_response({"error": {"message": message, "code": 403}}, status=403)
        if "sampling_params" not in body:
            return web.json_response({"error": {"message": "Field required"}}, status=400)
        params = body["sampling_params"]
        if params["max_tokens"] > 1:
            self.requests.append(body)
            self.arrived.release()
            self.on_request(body)
        fault = self.every or (self.faults.popleft() if self.faults and params["max_tokens"] > 1 else "")
        adapter = body.get("model")
        if adapter is not None and adapter not in self.adapters:
            message = f"The model `{adapter}` does not exist."
            return web.json_response({"error": {"message": message, "type": "NotFoundError"}}, status=404)
        match fault:
            case "500":
                return web.json_response({"error": {"message": "EngineCore died"}}, status=500)
            case "400":
                return web.json_response({"error": {"message": "this model's\ncontext is short"}}, status=400)
            case "hang":
                await asyncio.sleep(3600)
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        left = params["n"]
        self.outstanding += left
        self.most_outstanding = max(self.most_outstanding, self.outstanding)
        try:
            for index in range(params["n"]):
                if fault and index == min(1, params["n"] - 1):
                    await self._break(fault, request, answer)
                    if fault in ("truncate", "no choices"):
                        return answer
                if index == self.hold_after:
                    await self._released.wait()
                await self._write(answer, body, index, fault if index == params["n"] - 1 else "")
                left -= 1
                self.outstanding -= 1
            await answer.write(b"data: [DONE]\n\n")
        except (asyncio.CancelledError, ConnectionError):
            self.closed_by_client.set()
            raise
        finally:
            self.outstanding -= left
        return answer

    async def _break(self, fault: str, request: web.Request, answer: web.StreamResponse) -> None:
        match fault:
            case "hang within":
                await asyncio.sleep(3600)
            case "slow":
                while not self._released.is_set():
                    await answer.write(b": still there\n\n")
                    await asyncio.sleep(0.02)
            case "garbage":
                await answer.write(b'data: {"choices": [{"index": 1, \n\n')
            case "report":
                await answer.write(b'data: {"error": {"message": "engine dead"}}\n\n')
            case "no choices":
                await answer.write(b'data: {"choices": []}\n\ndata: [DONE]\n\n')
            case "long line":
                await answer.write(b"data: " + b"x" * (17 * 2**20))
            case "die":
                asyncio.get_running_loop().create_task(self._stop())
                await asyncio.sleep(3600)

    async def _write(self, answer: web.StreamResponse, body: dict[str, Any], index: int, fault: str) -> None:
        """Write one response in chunks of three tokens."""
        params = body["sampling_params"]
        drawn = response(body["token_ids"], params["seed"] + index, params["max_tokens"])
        assert drawn.logprobs is not None
        for start in range(0, len(drawn.ids), 3):
            ids, values = drawn.ids[start : start + 3], drawn.logprobs[start : start + 3]
            last = start + 3 >= len(drawn.ids)
            content = [
                {"token_id": token, "logprob": value, "rank": 1, "top_logprobs": []}
                for token, value in zip(ids, values, strict=True)
            ]
            choice: dict[str, Any] = {
                "index": index,
                "token_ids": list(ids),
                "logprobs": {"content": content} if "logprobs" in params else None,
                "finish_reason": (drawn.finish_reason if END in params["stop_token_ids"] else "length")
                if last
                else None,
                "weight_versions": [{"version": self.version, "start": 0, "end": len(drawn.ids)}] if last else None,
            }
            _spoil(choice, fault, last)
            await answer.write(f"data: {json.dumps({'choices': [choice]})}\n\n".encode())


def _spoil(choice: dict[str, Any], fault: str, last: bool) -> None:
    match fault:
        case "types":
            choice["token_ids"] = [str(token) for token in choice["token_ids"]]
        case "negative id":
            choice["token_ids"][0] = -1
        case "index":
            choice["index"] = 99
        case "not finite":
            choice["logprobs"]["content"][0]["logprob"] = -9999.0
        case "no logprobs":
            choice["logprobs"] = {"content": None}
        case "other token":
            choice["logprobs"]["content"][0]["token_id"] += 1
        case "abort" if last:
            choice["finish_reason"] = "abort"
        case "no version" if last:
            choice["weight_versions"] = None
        case "other weights" if last:
            choice["weight_versions"][0]["version"] = "default"
        case "empty":
            choice.update(token_ids=[], logprobs={"content": []}, finish_reason="stop")


class FakeSync:
    """Gives adapters (or weights) to engines by name only, and asks for the name as a proof."""

    def __init__(self, adapters: bool = True) -> None:
        self.adapters = adapters
        self.pushes: list[str] = []
        self.closed = False
        self._served: Served | None = None

    @property
    def served(self) -> Served:
        assert self._served is not None
        return self._served

    def export(self, version: str) -> Served:
        self._served = Served(version, version if self.adapters else None)
        return self._served

    def push(self, control: Control) -> SyncReport:
        self.pushes.append(control.name)
        if self.adapters:
            control.unload_adapter(self.served.version)
            control.load_adapter(self.served.version, Path("adapter"))
        control.set_version(self.served.version)
        assert control.version() == self.served.version
        return SyncReport(self.served.version, 10, 0.1, 0.0, 0.0)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def expected_response() -> Callable[[Sequence[int], int, int], Completion]:
    return response


@pytest.fixture
def start_server() -> Iterator[Callable[[], FakeServer]]:
    servers: list[FakeServer] = []

    def start() -> FakeServer:
        servers.append(FakeServer())
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def server(start_server: Callable[[], FakeServer]) -> FakeServer:
    return start_server()


@pytest.fixture
def fake_sync() -> Callable[..., FakeSync]:
    return FakeSync


@pytest.fixture
def make_engine(tmp_path: Path) -> Callable[..., ServerEngine]:
    """An engine with short limits; synced, unless ``version`` is None."""

    def make(
        *servers: FakeServer,
        sync: FakeSync | None = None,
        version: str | None = "v1",
        needs: Needs | None = None,
        **settings: Any,
    ) -> ServerEngine:
        limits = {"request_seconds": 5.0, "silent_seconds": 5.0, "recovery_seconds": 5.0}
        config = RolloutsConfig.model_validate(
            {
                "engine": "vllm_server",
                "server": {"urls": tuple(server.url for server in servers), **limits, **settings},
            }
        )
        policy: Any = SimpleNamespace(chat=SimpleNamespace(end_of_turn_ids=(END,)))
        needs = needs or Needs(new_tokens=20, lora_rank=8, training=Sampling(max_new_tokens=20))
        backoff = Backoff(first=0.01, most=0.05)
        engine = ServerEngine(policy, config, needs, tmp_path, sync=sync or FakeSync(), backoff=backoff)
        if version is not None:
            engine.sync(version)
        return engine

    return make
