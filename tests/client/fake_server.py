"""A small OpenAI-compatible and Ollama server with programmable faults, for tests and for use by hand.

In a test::

    with FakeServer() as server:
        server.behaviour = Behaviour(first_token_delay_s=0.2)   # for every request from now on
        server.script.append(Behaviour(status=500))              # for the next one only
        ...  # server.url, server.requests, server.max_in_flight, server.connections

By hand: ``python -m tests.client.fake_server --port 8000`` (the token, if any, comes from ``VLLM_API_KEY``).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import threading
from collections import deque
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from tests.client.fake_replies import Behaviour, OllamaWriter, OpenAiWriter, Writer

__all__ = ["Behaviour", "FakeServer", "SeenRequest"]

_TURN_S = 0.01


@dataclass(frozen=True)
class SeenRequest:
    """A request as the server saw it."""

    path: str
    authorization: str | None
    payload: dict[str, Any]


@dataclass
class FakeServer:
    """The server, in a thread with an event loop of its own. ``token`` None asks for none."""

    token: str | None = None
    model: str = "fake-model"
    host: str = "127.0.0.1"
    port: int = 0
    behaviour: Behaviour = field(default_factory=Behaviour)
    script: deque[Behaviour] = field(default_factory=deque)
    requests: list[SeenRequest] = field(default_factory=list)
    connections: set[tuple[str, int]] = field(default_factory=set)
    in_flight: int = 0
    max_in_flight: int = 0

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), name="fake-server", daemon=True)
        self._thread.start()
        if not started.wait(10):
            raise RuntimeError("the fake server did not start within 10 s")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        if self._thread.is_alive():
            raise RuntimeError("the fake server did not end within 10 s")

    @property
    def url(self) -> str:
        """Return the server's base URL."""
        return f"http://{self.host}:{self.port}"

    def _run(self, started: threading.Event) -> None:
        self._loop.run_until_complete(self._serve(started))
        self._loop.close()

    async def _serve(self, started: threading.Event) -> None:
        self._stop = asyncio.Event()
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/api/generate", self._generate)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/health", self._health)
        # Handlers are cancelled when their client hangs up, as in a real server.
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        assert runner.server is not None
        server = await self._loop.create_server(runner.server, self.host, self.port, backlog=4096)
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        await self._stop.wait()
        # asyncio loses the socket of a connection that is accepted just as its server closes (Server._attach asserts).
        await asyncio.sleep(_TURN_S)
        server.close()
        # A loop that is closed before its transports are would leave their sockets to the garbage collector, and
        # aiohttp lets go of transports that have only been told to close: the loop itself knows all of them.
        transports: Any = vars(self._loop)["_transports"]
        while len(asyncio.all_tasks()) > 1 or any(each._sock is not None for each in transports.values()):
            for each in list(transports.values()):
                each.abort()
            await asyncio.sleep(_TURN_S)
        await runner.cleanup()

    async def _health(self, _request: web.Request) -> web.Response:
        return web.Response()

    async def _models(self, request: web.Request) -> web.Response:
        if not self._is_authorized(request):
            return web.json_response({"error": "Unauthorized"}, status=401)
        return web.json_response({"object": "list", "data": [{"id": self.model, "object": "model"}]})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, OpenAiWriter)

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, OllamaWriter)

    def _is_authorized(self, request: web.Request) -> bool:
        return self.token is None or request.headers.get("Authorization") == f"Bearer {self.token}"

    async def _answer(self, request: web.Request, writer_class: type[Writer]) -> web.StreamResponse:
        if request.transport is not None:
            self.connections.add(request.transport.get_extra_info("peername")[:2])
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            payload = await request.json()
            authorization = request.headers.get("Authorization")
            self.requests.append(SeenRequest(request.path, authorization, payload))
            behaviour = self.script.popleft() if self.script else self.behaviour
            if not self._is_authorized(request):
                return web.json_response({"error": "Unauthorized"}, status=401)
            if behaviour.status != 200:
                message = f"failed on purpose {authorization if behaviour.echo_token else ''}".strip()
                return web.json_response({"error": {"message": message}}, status=behaviour.status)
            writer = writer_class(request, payload, behaviour, self.model)
            if payload.get("stream", writer_class is OllamaWriter):
                return await writer.stream()
            return await writer.whole()
        finally:
            self.in_flight -= 1


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description="A stand-in for an LLM server.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--model", default="fake-model")
    parser.add_argument("--token-delay-s", type=float, default=0.01)
    arguments = parser.parse_args()
    behaviour = Behaviour(token_delay_s=arguments.token_delay_s)
    token = os.environ.get("VLLM_API_KEY") or None
    server = FakeServer(token, arguments.model, arguments.host, arguments.port, behaviour)
    with server:
        print(server.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
