"""Puts one worker's share of a load on the server, in one event loop."""

from __future__ import annotations

import asyncio
import itertools
import socket
import ssl
from collections import deque
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

import msgspec

from client.load.clock import Alarm, LagProbe
from client.load.connection import NAN, Connection, Exchange, Failure
from client.load.replies import Reply, error_text, read_reply
from client.load.rows import MEASURED, WARMUP, RowWriter
from client.load.spec import ERROR_CLASSES, Api, Plan, Server
from client.load.talks import Talks

MAX_CONNECT_S = 30.0
# Replies are read in slices this long, so that arrivals in between are stamped in time.
DIGEST_SLICE_S = 0.0002
DIGEST_BACKLOG = 2000
FINISH_REASONS = ("", "stop", "length", "tool_calls", "content_filter", "load", "abort")
_ERROR_INDEX = {name: number for number, name in enumerate(ERROR_CLASSES)}
_FINISH_INDEX = {name: number for number, name in enumerate(FINISH_REASONS)}
_ERROR_CHARS = 300


class Driver:
    """Sends the requests of one plan; the owner of all its connections."""

    def __init__(self, plan: Plan, loop: asyncio.AbstractEventLoop) -> None:
        self._plan, self._loop = plan, loop
        self._rows = RowWriter(Path(plan.rows), Path(plan.gaps))
        self._notes = Path(plan.texts).open("wb", buffering=0)  # noqa: SIM115 - closed by close()
        self.probe = LagProbe(loop)
        self._free: list[Connection] = []
        self._under_way: dict[Exchange, Connection | None] = {}
        self._ended: deque[Exchange] = deque()
        self._is_digesting = False
        self._opening: set[asyncio.Task[None]] = set()
        self.on_end: Callable[[Exchange], None] = lambda _: None
        self._idle = asyncio.Event()
        self._sent = 0
        self._zero_s = 0.0
        self.opened = self.resent = self.pausing = 0
        self._where: tuple[str, int] = ("", 0)
        self._tls: ssl.SSLContext | None = None
        self._tls_name: str | None = None
        self._sweep: asyncio.TimerHandle | None = None

    async def prepare(self) -> None:
        """Resolve the server's address, once.

        Raises:
            OSError: it cannot be resolved, or its certificates cannot be read.
        """
        server = self._plan.server
        parts = urlsplit(server.url)
        host = parts.hostname or ""
        port = parts.port or (443 if parts.scheme == "https" else 80)
        found = await self._loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        found.sort(key=lambda entry: entry[0] != socket.AF_INET)
        self._where = (str(found[0][4][0]), port)
        if parts.scheme == "https":
            self._tls, self._tls_name = tls_context(server), host
        self._sweep_later()

    async def warm_up(self) -> None:
        """Send the plan's warm-up requests, as many at once as there are clients, and wait for them."""
        plan, left = self._plan, self._plan.warmup
        if not left:
            return
        at_once = min(left, max(1, len(plan.clients)))

        def send_next(_: Exchange) -> None:
            nonlocal left
            if left:
                left -= 1
                self.send(Exchange(plan.bodies[left % len(plan.bodies)], -1, -1, WARMUP, monotonic()))

        self.on_end = send_next
        for _ in range(at_once):
            send_next(Exchange(b"", -1, -1, WARMUP, 0.0))
        await self._wait_until_idle()

    async def measure(self, zero_s: float) -> None:
        """Put the load on from ``zero_s`` of the monotonic clock on; return when the last answer has ended."""
        self._zero_s = zero_s
        if self._plan.arrivals_s:
            await self._open_loop()
        elif self._plan.conversations:
            await Talks(self._plan, self, self._loop, zero_s, read_exchange).begin_all()
        else:
            await self._closed_loop()
        await self._wait_until_idle()

    async def _closed_loop(self) -> None:
        plan, step = self._plan, self._plan.index_step
        left = dict.fromkeys(plan.clients, plan.requests_per_client)
        end_s = self._zero_s + plan.duration_s if plan.duration_s is not None else None
        waiting = deque(sorted(zip(plan.starts_s, plan.clients, strict=True)))
        all_begun = asyncio.Event()

        def send(client: int, at_s: float) -> None:
            remaining = left[client]
            if remaining == 0 or self._sent == plan.requests or (end_s is not None and at_s >= end_s):
                return
            if remaining is not None:
                left[client] = remaining - 1
            number, self._sent = self._sent, self._sent + 1
            body = plan.bodies[number % len(plan.bodies)]
            self.send(Exchange(body, plan.first_index + number * step, client, MEASURED, at_s))

        def begin() -> None:
            now_s = monotonic()
            while waiting and self._zero_s + waiting[0][0] <= now_s:
                start_s, client = waiting.popleft()
                send(client, self._zero_s + start_s)
            if waiting:
                alarm.set(self._zero_s + waiting[0][0])
            else:
                all_begun.set()

        self.on_end = lambda exchange: send(exchange.client, exchange.eof_s)
        alarm = Alarm(self._loop, begin)
        alarm.set(self._zero_s)
        await all_begun.wait()
        alarm.close()

    async def _open_loop(self) -> None:
        plan, step, arrivals = self._plan, self._plan.index_step, self._plan.arrivals_s
        all_sent = asyncio.Event()
        self.on_end = lambda _: None

        def send_due() -> None:
            now_s = monotonic()
            while self._sent < len(arrivals):
                due_s = self._zero_s + arrivals[self._sent]
                if due_s > now_s:
                    alarm.set(due_s)
                    return
                number, self._sent = self._sent, self._sent + 1
                body = plan.bodies[number % len(plan.bodies)]
                self.send(Exchange(body, plan.first_index + number * step, -1, MEASURED, due_s))
                now_s = monotonic()
            all_sent.set()

        alarm = Alarm(self._loop, send_due)
        alarm.set(self._zero_s)
        await all_sent.wait()
        alarm.close()

    async def _wait_until_idle(self) -> None:
        while self._under_way or self._ended or self.pausing:
            self._idle.clear()
            await self._idle.wait()

    def send(self, exchange: Exchange) -> None:
        """Send a request on a free connection, or on a new one."""
        probe = self.probe
        exchange.lag_samples, exchange.lag_total_s = probe.samples, probe.total_s
        while self._free:
            connection = self._free.pop()
            if connection.is_open:
                self._under_way[exchange] = connection
                exchange.sent_s = monotonic()
                connection.send(exchange)
                return
        self._under_way[exchange] = None
        exchange.sent_s = monotonic()
        self._open_for(exchange)

    def _open_for(self, exchange: Exchange) -> None:
        task = self._loop.create_task(self._open(exchange))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _open(self, exchange: Exchange) -> None:
        self.opened += 1
        connection = Connection(self)
        limit_s = min(MAX_CONNECT_S, self._plan.timeout_s)
        try:
            async with asyncio.timeout(limit_s):
                await self._loop.create_connection(
                    lambda: connection, *self._where, ssl=self._tls, server_hostname=self._tls_name
                )
        except TimeoutError:
            self._fail_unsent(exchange, f"no connection within {limit_s:g} s")
        except OSError as error:
            self._fail_unsent(exchange, f"{type(error).__name__}: {error}")
        else:
            if exchange in self._under_way:
                self._under_way[exchange] = connection
                connection.send(exchange)
            else:
                connection.close()  # its time was over while it connected

    def _fail_unsent(self, exchange: Exchange, words: str) -> None:
        if exchange in self._under_way:
            exchange.failure, exchange.eof_s = ("connect", words), monotonic()
            self._take_end(exchange)

    def finished(self, connection: Connection, exchange: Exchange) -> None:
        if exchange not in self._under_way:
            return
        has_no_answer = exchange.failure is not None and exchange.failure[0] == "protocol" and not exchange.pieces
        if has_no_answer and connection.may_have_been_idle and not exchange.was_resent:
            # The server closed a connection that had been idle, just as the request was sent on it.
            exchange.failure, exchange.was_resent = None, True
            self.resent += 1
            self._under_way[exchange] = None
            self._open_for(exchange)
            return
        if connection.is_open:
            self._free.append(connection)
        self._take_end(exchange)

    def _take_end(self, exchange: Exchange) -> None:
        del self._under_way[exchange]
        self.on_end(exchange)
        self._ended.append(exchange)
        if not self._is_digesting:
            self._is_digesting = True
            self._loop.call_soon(self._digest)

    def _digest(self) -> None:
        until_s = monotonic() + DIGEST_SLICE_S
        while self._ended:
            self._record(self._ended.popleft())
            if monotonic() > until_s and len(self._ended) < DIGEST_BACKLOG:
                break
        if self._ended:
            self._loop.call_soon(self._digest)
            return
        self._is_digesting = False
        self.look_whether_idle()

    def look_whether_idle(self) -> None:
        """Let the measurement end if nothing is under way."""
        if not self._under_way and not self._ended:
            self._idle.set()

    def _record(self, exchange: Exchange) -> None:
        plan, head = self._plan, exchange.head
        lag_s = self.probe.mean_since(exchange.lag_samples, exchange.lag_total_s)
        reply = exchange.reply or read_exchange(plan.server.api, exchange)
        error = -1 if reply.failure is None else _ERROR_INDEX[reply.failure[0]]
        usage = -1 if reply.usage_tokens is None else reply.usage_tokens
        prompt = -1 if reply.prompt_tokens is None else reply.prompt_tokens
        values = (
            exchange.index, exchange.client, exchange.phase,
            exchange.intended_s, exchange.sent_s, exchange.times_s[0] if exchange.times_s else NAN,
            reply.first_reasoning_s, reply.first_content_s, reply.last_token_s, exchange.eof_s, lag_s,
            reply.chunks, prompt, reply.tokens, usage, reply.text_length,
            head.status if head is not None else 0, error, _FINISH_INDEX.get(reply.finish_reason or "", 0),
        )  # fmt: skip
        if reply.failure is not None or plan.keeps_text:
            self._note(exchange, reply)  # before its row: whoever sees that finds this
        self._rows.add(values, reply.gaps_s, error >= 0, reply.tokens if error < 0 else 0, exchange.phase)

    def _note(self, exchange: Exchange, reply: Reply) -> None:
        note: dict[str, Any] = {"index": exchange.index, "phase": exchange.phase}
        if reply.failure is not None:
            note["error"] = redact(reply.failure[1], self._plan.server.token)
        if self._plan.keeps_text:
            note |= {"text": reply.text, "reasoning": "".join(reply.reasoning_parts)}
        self._notes.write(msgspec.json.encode(note) + b"\n")

    def _sweep_later(self) -> None:
        pause_s = min(0.25, self._plan.timeout_s / 20)
        self._sweep = self._loop.call_later(pause_s, self._end_overdue)
        self._rows.flush()

    def _end_overdue(self) -> None:
        timeout_s = self._plan.timeout_s
        limit_s = monotonic() - timeout_s
        # In the order of sending: the first that is in time ends the look.
        overdue = list(itertools.takewhile(lambda exchange: exchange.sent_s <= limit_s, self._under_way))
        failure: Failure = ("timeout", f"no complete answer within {timeout_s:g} s")
        for exchange in overdue:
            connection = self._under_way[exchange]
            if connection is not None:
                connection.give_up(failure)
            else:
                exchange.failure, exchange.eof_s = failure, monotonic()
                self._take_end(exchange)
        self._sweep_later()

    def close(self) -> None:
        """Drop what is under way, and close all files."""
        if self._sweep is not None:
            self._sweep.cancel()
        self.on_end = lambda _: None
        for connection in [*self._under_way.values(), *self._free]:
            if connection is not None:
                connection.close()
        self._under_way.clear()
        for task in self._opening:
            task.cancel()
        self.probe.close()
        self._rows.close()
        self._notes.close()


def read_exchange(api: Api, exchange: Exchange) -> Reply:
    """Return what an exchange that has ended said, as far as it got."""
    head, pieces = exchange.head, exchange.body_pieces()
    if head is not None and head.status == 200:
        reply = read_reply(api, pieces, exchange.times_s[: len(pieces)], exchange.failure is None)
    else:
        reply = Reply()
        if head is not None and exchange.failure is None:
            reply.fail("http_status", f"HTTP {head.status}: {_words(b''.join(pieces))}")
    if exchange.failure is not None and (reply.failure is None or reply.failure[0] != "server_error"):
        reply.failure = exchange.failure  # what was wrong with the bytes explains what was wrong with their content
    return reply


def tls_context(server: Server) -> ssl.SSLContext:
    """Return what an https server is met with.

    Raises:
        OSError: its certificates cannot be read.
    """
    return ssl.create_default_context(cafile=server.ca_file)


def redact(text: str, token: str | None) -> str:
    """Return ``text`` without the token, which a server may echo, and no longer than a log line should be."""
    if token:
        text = text.replace(token, "[token]")
    return text if len(text) <= _ERROR_CHARS else text[: _ERROR_CHARS - 1] + "…"


def _words(body: bytes) -> str:
    """Return what an answer that is no stream says of its error."""
    try:
        document = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return body[:_ERROR_CHARS].decode("utf-8", "replace").strip()
    if isinstance(document, dict):
        document = document.get("error", document.get("detail", document))
    return error_text(document)
