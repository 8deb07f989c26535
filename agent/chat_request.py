"""One HTTP request in a thread of its own, which can be dropped before it is answered."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

CONNECT_TIMEOUT_S = 10.0


class ConnectionLostError(Exception):
    """There was no connection to the server, or it broke before the whole answer was there."""


class NoAnswerError(Exception):
    """The server is connected and says nothing."""


@dataclass(frozen=True)
class Reply:
    """The server's whole answer."""

    status: int
    text: str


class ChatRequest:
    """A POST under way.

    The proxy of the environment and its .netrc are not used: a site's proxy cannot reach compute nodes, and a .netrc
    would replace the token.
    """

    def __init__(self, url: str, headers: Mapping[str, str], body: bytes, silence_s: float) -> None:
        """Send it.

        Args:
            url: With http, as supervisors publish it.
            headers: Besides those of HTTP itself.
            body: What is posted.
            silence_s: How long the server may say nothing at all, in seconds.
        """
        parts = urlsplit(url)
        self._path, self._headers, self._body, self._silence_s = parts.path, dict(headers), body, silence_s
        self._connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=CONNECT_TIMEOUT_S)
        self._outcome: Reply | Exception | None = None
        self._is_dropped = False
        self._ended = threading.Event()
        # A daemon: a server that never answers must not hold up the end of the process.
        threading.Thread(target=self._run, name="llm-request", daemon=True).start()

    def wait(self, seconds: float) -> bool:
        """Return whether it has ended, after ``seconds`` at most."""
        return self._ended.wait(seconds)

    def reply(self) -> Reply:
        """Return the answer of a request that has ended.

        Raises:
            ConnectionLostError: no connection, or a broken one.
            NoAnswerError: the server said nothing for too long.
        """
        if isinstance(self._outcome, Reply):
            return self._outcome
        if isinstance(self._outcome, NoAnswerError):
            raise self._outcome
        raise ConnectionLostError(f"{type(self._outcome).__name__}: {self._outcome}") from self._outcome

    def drop(self) -> None:
        """Close the connection, so that a server that still lives stops working on the answer."""
        self._is_dropped = True
        connected = self._connection.sock
        if connected is not None:
            with suppress(OSError):  # it is closed already
                connected.shutdown(socket.SHUT_RDWR)

    def _run(self) -> None:
        try:
            self._connection.connect()
            if not self._is_dropped:
                self._outcome = self._exchange()
        except (OSError, ValueError, http.client.HTTPException) as error:  # ValueError: a token that no header can hold
            self._outcome = error
        finally:
            self._connection.close()
            self._ended.set()

    def _exchange(self) -> Reply | NoAnswerError:
        self._connection.sock.settimeout(self._silence_s)
        try:
            self._connection.request("POST", self._path, self._body, self._headers)
            response = self._connection.getresponse()
            return Reply(response.status, response.read().decode("utf-8", "replace"))
        except TimeoutError:
            return NoAnswerError()
