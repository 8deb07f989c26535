"""One request, sent and timed as a load's are, for whoever waits for its answer."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from time import monotonic
from urllib.parse import urlsplit

from client.load.connection import Connection, Exchange
from client.load.driver import MAX_CONNECT_S, read_exchange, redact, tls_context
from client.load.replies import Reply
from client.load.rows import MEASURED
from client.load.spec import Server


@dataclass(frozen=True)
class Answered:
    """What came of one request; ``reply.failure`` tells of a failure, without the token."""

    exchange: Exchange
    reply: Reply


class _Owner:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.ended: asyncio.Future[None] = loop.create_future()

    def finished(self, connection: Connection, exchange: Exchange) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


def ask_once(server: Server, request: bytes, timeout_s: float) -> Answered:
    """Send an encoded request on a connection of its own; failures are told in the reply."""
    return asyncio.run(_ask(server, request, timeout_s))


async def _ask(server: Server, request: bytes, timeout_s: float) -> Answered:
    loop = asyncio.get_running_loop()
    owner = _Owner(loop)
    connection = Connection(owner)
    now_s = monotonic()
    exchange = Exchange(request, 0, 0, MEASURED, now_s)
    exchange.sent_s = now_s
    try:
        async with asyncio.timeout(timeout_s):
            await _connect(loop, server, connection, min(MAX_CONNECT_S, timeout_s))
            connection.send(exchange)
            await owner.ended
    except TimeoutError:
        if connection.is_open:
            connection.give_up(("timeout", f"no complete answer within {timeout_s:g} s"))
        else:
            exchange.failure = ("connect", f"no connection within {min(MAX_CONNECT_S, timeout_s):g} s")
    except OSError as error:
        exchange.failure = ("connect", f"{type(error).__name__}: {error}")
    finally:
        connection.close()
    if exchange.eof_s != exchange.eof_s:
        exchange.eof_s = monotonic()
    reply = read_exchange(server.api, exchange)
    if reply.failure is not None:
        reply.failure = (reply.failure[0], redact(reply.failure[1], server.token))
    return Answered(exchange, reply)


async def _connect(loop: asyncio.AbstractEventLoop, server: Server, connection: Connection, limit_s: float) -> None:
    parts = urlsplit(server.url)
    is_tls = parts.scheme == "https"
    async with asyncio.timeout(limit_s):
        await loop.create_connection(
            lambda: connection,
            parts.hostname or "",
            parts.port or (443 if is_tls else 80),
            ssl=tls_context(server) if is_tls else None,
        )
