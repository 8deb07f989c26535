"""A server that knows the truth: ``python -m client.load.mock``. It answers as it is told by the model's name.

``mock:ttft=0.05,itl=0.005,tokens=64`` streams 64 tokens, the first after 50 ms, one each 5 ms; semicolons do as well,
for clients that take a name with commas for several. Further words: ``role``
(a chunk without text at once), ``per_chunk=N`` (tokens in one chunk), ``empty`` (an empty piece before the first),
``nousage``, ``cut=N`` (the connection ends after N pieces), ``status=503``, ``stall=N`` (nothing after N pieces),
``slow_head`` (the head comes byte by byte), ``error=N`` (an error in the stream after N pieces), ``close`` (the body
ends with the connection), ``reasoning=N`` (the first N pieces are reasoning).

``GET /truth`` tells what was really sent, and forgets it: the delays of first pieces and the gaps, in seconds and in
the order of sending, and how many connections began to carry answers.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import heapq
import os
import re
import socket
import sys
from array import array
from collections.abc import Sequence
from itertools import count
from time import monotonic
from typing import cast

import msgspec
import uvloop

from client.load.clock import Alarm
from client.load.spec import PATHS

PREFIX = "mock:"
_MODEL = re.compile(rb'"model": ?"([^"]+)"')
_SSE = b"Content-Type: text/event-stream\r\n"
_NDJSON = b"Content-Type: application/x-ndjson\r\n"


class Behaviour(msgspec.Struct, frozen=True):
    """How one kind of request is answered; see the module."""

    ttft: float = 0.0
    itl: float = 0.0
    tokens: int = 16
    per_chunk: int = 1
    cut: int | None = None
    status: int = 200
    stall: int | None = None
    error: int | None = None
    reasoning: int = 0
    role: bool = False
    empty: bool = False
    nousage: bool = False
    slow_head: bool = False
    close: bool = False


def read_behaviour(model: str) -> Behaviour:
    """Return what a model's name asks for.

    Raises:
        ValueError: it asks for something unknown.
    """
    words = [word.partition("=") for word in re.split("[,;]", model.removeprefix(PREFIX)) if word]
    document = {name: (value if equals else True) for name, equals, value in words}
    try:
        return msgspec.convert(document, Behaviour, strict=False)
    except msgspec.ValidationError as error:
        raise ValueError(f"{model}: {error}") from error


class Script(msgspec.Struct, frozen=True):
    """A prepared answer: what is written at once, and then each piece at its time."""

    head: bytes
    at_once: bytes
    pieces: tuple[bytes, ...]
    last: bytes
    first_after_s: float
    gap_s: float
    is_cut: bool = False
    stalls: bool = False
    closes: bool = False
    slow_head: bool = False

    @property
    def is_instant(self) -> bool:
        """Whether everything can be written in one go."""
        return not (self.first_after_s or self.gap_s or self.is_cut or self.stalls or self.slow_head)


def make_script(path: str, model: str) -> Script:
    """Return the answer to a request for ``model`` at ``path``."""
    if path not in PATHS.values():
        return Script(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", b"", (), b"", 0.0, 0.0)
    how = read_behaviour(model)
    is_ollama = path.startswith("/api/")
    if how.status != 200:
        body = b'{"error":{"message":"told to fail"}}'
        refusal = b"HTTP/1.1 %d Told\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        return Script(refusal % (how.status, len(body)), body, (), b"", 0.0, 0.0)
    framing = b"Connection: close\r\n" if how.close else b"Transfer-Encoding: chunked\r\n"
    head = b"HTTP/1.1 200 OK\r\n" + (_NDJSON if is_ollama else _SSE) + framing + b"\r\n"

    def frame(text: str) -> bytes:
        raw = text.encode()
        return raw if how.close else b"%x\r\n%s\r\n" % (len(raw), raw)

    count_ = -(-how.tokens // how.per_chunk)
    pieces = [frame(_piece(path, number, how)) for number in range(count_)]
    last = frame(_last(path, how)) + (b"" if how.close else b"0\r\n\r\n")
    at_once = frame(_piece(path, 0, how, "")) if how.role or how.empty else b""
    for limit in (how.cut, how.stall, how.error):
        if limit is not None:
            pieces = pieces[:limit]
    if how.error is not None:
        last = frame('{"error":"told to fail"}\n' if is_ollama else 'data: {"error":{"message":"told to fail"}}\n\n')
        last += b"" if how.close else b"0\r\n\r\n"
    return Script(
        head, at_once, tuple(pieces), last, how.ttft, how.itl,
        is_cut=how.cut is not None, stalls=how.stall is not None, closes=how.close, slow_head=how.slow_head,
    )  # fmt: skip


def _piece(path: str, number: int, how: Behaviour, text: str | None = None) -> str:
    text = " tok" * how.per_chunk if text is None else text
    is_reasoning = number < how.reasoning
    match path:
        case "/v1/chat/completions":
            delta = f'{{"{"reasoning_content" if is_reasoning else "content"}":"{text}"}}'
            return f'data: {{"id":"m","object":"chat.completion.chunk","choices":[{{"index":0,"delta":{delta}}}]}}\n\n'
        case "/v1/completions":
            return f'data: {{"id":"m","object":"text_completion","choices":[{{"index":0,"text":"{text}"}}]}}\n\n'
        case "/api/generate":
            name = "thinking" if is_reasoning else "response"
            return f'{{"model":"m","{name}":"{text}","done":false}}\n'
        case _:
            name = "thinking" if is_reasoning else "content"
            return f'{{"model":"m","message":{{"role":"assistant","{name}":"{text}"}},"done":false}}\n'


def _last(path: str, how: Behaviour) -> str:
    if path.startswith("/api/"):
        counts = "" if how.nousage else f',"prompt_eval_count":7,"eval_count":{how.tokens}'
        text = '"response":""' if path == "/api/generate" else '"message":{"role":"assistant","content":""}'
        return f'{{"model":"m",{text},"done":true,"done_reason":"length"{counts}}}\n'
    end = 'data: {"id":"m","choices":[{"index":0,"delta":{},"finish_reason":"length"}]}\n\n'
    usage = f'data: {{"id":"m","choices":[],"usage":{{"prompt_tokens":7,"completion_tokens":{how.tokens}}}}}\n\n'
    return end + ("" if how.nousage else usage) + "data: [DONE]\n\n"


class Truth:
    """What was really sent, and when."""

    def __init__(self) -> None:
        self.first_s = array("d")
        self.gaps_s = array("d")
        self.connections = 0

    def take(self) -> bytes:
        """Return it as JSON, and forget it."""
        told = {"first_s": self.first_s.tolist(), "gaps_s": self.gaps_s.tolist(), "connections": self.connections}
        text = msgspec.json.encode(told)
        self.__init__()  # type: ignore[misc]
        return text


class Stage:
    """Sends pieces at their times, for all connections of one process."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._queue: list[tuple[float, int, Performance]] = []
        self._tie = count()
        self._alarm = Alarm(loop, self._act)
        self._set_for_s = float("inf")
        self.truth = Truth()
        self.scripts: dict[bytes, Script] = {}

    def enter(self, at_s: float, performance: Performance) -> None:
        """Call ``performance`` at ``at_s``."""
        heapq.heappush(self._queue, (at_s, next(self._tie), performance))
        if at_s < self._set_for_s:
            self._set(at_s)

    def _set(self, at_s: float) -> None:
        self._set_for_s = at_s
        self._alarm.set(at_s)

    def _act(self) -> None:
        queue = self._queue
        now_s = monotonic()
        while queue and queue[0][0] <= now_s:
            due_s, _, performance = heapq.heappop(queue)
            next_s = performance.act(due_s)
            if next_s is not None:
                heapq.heappush(queue, (next_s, next(self._tie), performance))
            now_s = monotonic()
        if queue:
            self._set(queue[0][0])
        else:
            self._set_for_s = float("inf")


class Performance:
    """One answer under way."""

    __slots__ = ("_asked_s", "_at", "_before_s", "_connection", "_script")

    def __init__(self, connection: MockConnection, script: Script, asked_s: float) -> None:
        self._connection, self._script, self._asked_s = connection, script, asked_s
        self._at, self._before_s = 0, 0.0

    def act(self, due_s: float) -> float | None:
        """Send the next piece; return when the one after it is due, None after the last."""
        script, connection = self._script, self._connection
        if self._at == len(script.pieces):
            connection.end(script)
            return None
        now_s = monotonic()
        connection.write(script.pieces[self._at])
        truth = connection.stage.truth
        if self._at:
            truth.gaps_s.append(now_s - self._before_s)
        else:
            truth.first_s.append(now_s - self._asked_s)
        self._before_s = now_s
        self._at += 1
        if self._at < len(script.pieces):
            return due_s + script.gap_s
        connection.end(script)
        return None


class MockConnection(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, stage: Stage, token: bytes | None) -> None:
        self.stage, self._token = stage, token
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._is_counted = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None

    def write(self, data: bytes) -> None:
        """Send bytes, if anybody still listens."""
        if self._transport is not None:
            self._transport.write(data)

    def end(self, script: Script) -> None:
        """End an answer as its script says."""
        if self._transport is None or script.stalls:
            return
        if script.is_cut:
            self._transport.abort()
            return
        self._transport.write(script.last)
        if script.closes:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        now_s = monotonic()
        self._buffer = self._buffer + data if self._buffer else data
        while True:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self._buffer[:end]
            at = head.lower().find(b"content-length: ")
            length = int(head[at + 16 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self._buffer) < end + 4 + length:
                return
            body, self._buffer = self._buffer[end + 4 : end + 4 + length], self._buffer[end + 4 + length :]
            self._answer(head, body, now_s)

    def _answer(self, head: bytes, body: bytes, now_s: float) -> None:
        method, _, rest = head.partition(b" ")
        path = rest.partition(b" ")[0]
        if method == b"GET":
            text = self.stage.truth.take() if path == b"/truth" else b"{}"
            self.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text))
            if self._transport is not None and b"Connection: close" in head:
                self._transport.close()
            return
        if self._token is not None and b"authorization: bearer " + self._token.lower() not in head.lower():
            self.write(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")
            return
        found = _MODEL.search(body)
        model = found[1] if found else b""
        key = path + b" " + model
        script = self.stage.scripts.get(key)
        if script is None:
            script = self.stage.scripts[key] = make_script(path.decode(), model.decode())
        self._play(script, now_s)

    def _play(self, script: Script, now_s: float) -> None:
        if script.pieces and not self._is_counted:
            self._is_counted = True
            self.stage.truth.connections += 1
        if script.is_instant:
            self.write(b"".join((script.head, script.at_once, *script.pieces, script.last)))
            return
        if script.slow_head:
            loop = asyncio.get_running_loop()
            for number in range(len(script.head)):
                loop.call_later(0.002 * number, self.write, script.head[number : number + 1])
        else:
            self.write(script.head + script.at_once)
        self.stage.enter(now_s + script.first_after_s, Performance(self, script, now_s))


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until standard input is closed, or for ever where it is a terminal."""
    parser = argparse.ArgumentParser(description="A streaming server whose timing is known.")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; a free one is drawn and printed")
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args(argv)
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", options.port))
    listener.listen(4096)
    sys.stdout.write(f"{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    for _ in range(options.processes - 1):
        if os.fork() == 0:
            break
    gc.freeze()
    gc.disable()
    uvloop.run(_serve(listener))


async def _serve(listener: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    stage = Stage(loop)
    token = os.environ.get("ORCH_MOCK_TOKEN", "").encode() or None
    server = await loop.create_server(lambda: MockConnection(stage, token), sock=listener, backlog=4096)
    gone = asyncio.Event()
    if not sys.stdin.isatty():
        loop.add_reader(sys.stdin.fileno(), lambda: gone.set() if not os.read(0, 4096) else None)
    async with server:
        await gone.wait()


if __name__ == "__main__":
    main()
