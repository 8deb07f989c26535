"""One connection to the server: a request at a time, and the time of each arrival of bytes."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Protocol, cast

from client.load.replies import Reply
from client.load.spec import ErrorClass
from client.load.wire import Dechunker, Head, WireError, may_have_ended, parse_head

NAN = float("nan")
Failure = tuple[ErrorClass, str]


class Exchange:
    """One request and everything that came back for it. Times are seconds of the monotonic clock.

    Attributes:
        pieces, times_s: Bytes as they arrived, the head included, and when; those of the body once it has ended.
        reply: What it said, where that had to be known at once.
        lag_samples, lag_total_s: What the worker's lag probe said when the request was sent.
    """

    __slots__ = (
        "body",
        "body_at",
        "client",
        "dechunker",
        "eof_s",
        "failure",
        "head",
        "index",
        "intended_s",
        "lag_samples",
        "lag_total_s",
        "left",
        "phase",
        "pieces",
        "reply",
        "request",
        "sent_s",
        "times_s",
        "was_resent",
    )  # fmt: skip

    def __init__(self, request: bytes, index: int, client: int, phase: int, intended_s: float) -> None:
        self.request, self.index, self.client, self.phase, self.intended_s = request, index, client, phase, intended_s
        self.sent_s = self.eof_s = NAN
        self.pieces: list[bytes] = []
        self.times_s: list[float] = []
        self.head: Head | None = None
        self.failure: Failure | None = None
        self.dechunker: Dechunker | None = None
        self.body: list[bytes] = []
        self.body_at = 0
        self.left = 0
        self.lag_samples, self.lag_total_s = 0, 0.0
        self.was_resent = False
        self.reply: Reply | None = None

    def take_head(self) -> bool:
        """Parse the head once it is whole; return whether it is.

        Raises:
            WireError: it is no head.
        """
        while True:
            joined = self.pieces[0] if len(self.pieces) == 1 else b"".join(self.pieces)
            head = parse_head(joined)
            if head is None:
                return False
            first_s, rest = self.times_s[0], joined[head.size :]
            if head.status >= 200:
                break
            # An interim answer, such as 100 Continue: the real head comes behind it.
            self.pieces, self.times_s = ([rest], [self.times_s[-1]]) if rest else ([], [])
            if not rest:
                return False
        self.head = head
        # From here on the pieces are the body's; the first, maybe empty, has the time of the head.
        self.pieces = [b"", rest] if rest else [b""]
        self.times_s = [first_s, self.times_s[-1]] if rest else [first_s]
        if head.is_chunked:
            self.dechunker = Dechunker()
        self.left = (head.length or 0) - len(rest)
        return True

    def has_ended(self, is_closed: bool = False) -> bool:
        """Return whether the body is complete, given that it may end with the connection.

        Raises:
            WireError: its framing is broken.
        """
        head = self.head
        if head is None:
            return False
        if self.dechunker is not None:
            if not is_closed and not may_have_ended(self.pieces):
                return False
            self._decode(self.dechunker)
            return self.dechunker.is_complete
        if head.length is None:
            return is_closed
        if self.left < 0:
            raise WireError(f"{-self.left} bytes after the end of the body")
        return self.left == 0

    def _decode(self, dechunker: Dechunker) -> None:
        for piece in self.pieces[self.body_at :]:
            self.body.append(dechunker.feed(piece))
        self.body_at = len(self.pieces)

    def body_pieces(self) -> list[bytes]:
        """Return the body as it arrived, as far as it did, without its transfer coding."""
        if self.dechunker is None:
            return self.pieces if self.head is not None else []
        try:
            self._decode(self.dechunker)
        except WireError as error:
            self.failure = self.failure or ("protocol", str(error))
        # What could not be decoded counts as not there.
        return self.body + [b""] * (len(self.pieces) - len(self.body))


class Owner(Protocol):
    """Who uses connections."""

    def finished(self, connection: Connection, exchange: Exchange) -> None:
        """Take an exchange that has ended, well or not; the connection is free if it is still open."""


class Connection(asyncio.Protocol):
    """Sends requests and collects what comes back; the only work on arrival is to find the end of the answer."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._has_answered = False

    @property
    def is_open(self) -> bool:
        """Whether it can carry a request."""
        return self._transport is not None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own class is none of asyncio's

    def send(self, exchange: Exchange) -> None:
        """Send a request on a free connection."""
        self._exchange = exchange
        assert self._transport is not None  # noqa: S101 - only a connection that was made is handed out
        self._transport.write(exchange.request)

    def data_received(self, data: bytes) -> None:
        now_s = monotonic()
        exchange = self._exchange
        if exchange is None:
            self.close()  # nobody asked
            return
        exchange.pieces.append(data)
        exchange.times_s.append(now_s)
        try:
            if exchange.head is None:
                if not exchange.take_head():
                    return
            else:
                exchange.left -= len(data)
            if exchange.has_ended():
                self._end(exchange, now_s)
        except WireError as error:
            exchange.failure = ("protocol", str(error))
            self._end(exchange, now_s, closes=True)

    def _end(self, exchange: Exchange, at_s: float, closes: bool = False) -> None:
        exchange.eof_s = at_s
        self._exchange, self._has_answered = None, True
        if closes or exchange.head is None or not exchange.head.keeps_alive:
            self.close()
        self._owner.finished(self, exchange)

    def give_up(self, failure: Failure) -> None:
        """End the request under way as a failure, and the connection with it."""
        exchange = self._exchange
        if exchange is not None:
            exchange.failure = failure
            self._end(exchange, monotonic(), closes=True)

    def connection_lost(self, error: Exception | None) -> None:
        now_s = monotonic()
        self._transport = None
        exchange, self._exchange = self._exchange, None
        if exchange is None:
            return  # a free connection that is gone is found so when it is taken
        exchange.eof_s = now_s
        try:
            if not exchange.has_ended(is_closed=True):
                exchange.failure = ("protocol", _how_it_ended(exchange, error))
        except WireError as broken:
            exchange.failure = ("protocol", str(broken))
        self._owner.finished(self, exchange)

    @property
    def may_have_been_idle(self) -> bool:
        """Whether it had carried a request before: a server may close it just as the next one is sent."""
        return self._has_answered

    def close(self) -> None:
        """Close it; nothing more is told of it."""
        if self._transport is not None:
            transport, self._transport = self._transport, None
            transport.abort()


def _how_it_ended(exchange: Exchange, error: Exception | None) -> str:
    where = "before the answer's head" if exchange.head is None else "in the middle of the body"
    return f"the connection ended {where}" + (f": {error}" if error is not None else "")
