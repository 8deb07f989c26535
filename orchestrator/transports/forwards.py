"""Forwarded ports over a master connection, made again after it was lost (ssh(1), -L, -R and -O)."""

from __future__ import annotations

import logging
import re
import socket
from contextlib import suppress
from dataclasses import dataclass

from orchestrator.errors import NoConnectionError, TransportError
from orchestrator.transports.base import Address
from orchestrator.transports.master import Master

log = logging.getLogger(__name__)
LOOPBACK = "127.0.0.1"
_ATTEMPTS = 5
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.%-]*|[0-9A-Fa-f:.%]+")


@dataclass
class _Forward:
    flag: str
    host: str
    port: int
    listen_port: int
    is_up: bool = True
    asked_port: int | None = None

    def words(self, listen_port: int | None = None) -> list[str]:
        """Return ssh's words for it."""
        target = f"[{self.host}]" if ":" in self.host else self.host
        port = self.listen_port if listen_port is None else listen_port
        return [self.flag, f"{LOOPBACK}:{port}:{target}:{self.port}"]


class Forwards:
    """The forwards of one connection, each on loopback only."""

    def __init__(self, label: str, master: Master) -> None:
        self._label, self._master = label, master
        self._all: dict[tuple[str, str, int], _Forward] = {}

    def local(self, host: str, port: int) -> Address:
        """Return where ``host:port`` of that machine's network is reached here.

        Raises:
            TransportError: the other side forbids it, or no port was free.
        """
        known = self._known("-L", host, port)
        if known is not None:
            return Address(LOOPBACK, known.listen_port)
        said = ""
        for _ in range(_ATTEMPTS):
            # ssh takes no port 0 for -L, so that another process may take the port in between.
            forward = _Forward("-L", host, port, _free_port())
            answer = self._master.control("forward", forward.words())
            if answer.returncode == 0:
                self._all["-L", host, port] = forward
                return Address(LOOPBACK, forward.listen_port)
            said = answer.stderr.strip()
        raise TransportError(self._label, f"cannot forward a port to {host}:{port}: {said}")

    def remote(self, host: str, port: int) -> Address:
        """Return where ``host:port`` of this machine's network is reached on that machine's loopback.

        Raises:
            TransportError: the other side forbids it.
        """
        known = self._known("-R", host, port)
        if known is not None:
            return Address(LOOPBACK, known.listen_port)
        forward = _Forward("-R", host, port, 0)
        answer = self._master.control("forward", forward.words())
        # ssh prints the port that was allocated over there.
        if answer.returncode != 0 or not answer.stdout.strip().isdigit():
            raise TransportError(self._label, f"cannot forward a port back to {host}:{port}: {answer.stderr.strip()}")
        forward.listen_port, forward.asked_port = int(answer.stdout), 0
        self._all["-R", host, port] = forward
        return Address(LOOPBACK, forward.listen_port)

    def _known(self, flag: str, host: str, port: int) -> _Forward | None:
        if not _HOST.fullmatch(host) or not 1 <= port <= 65535:
            raise ValueError(f"{host}:{port} is no address")
        known = self._all.get((flag, host, port))
        if known is not None and not known.is_up:
            # Its port was lost for good; a caller that asks again gets a new one.
            del self._all[flag, host, port]
            return None
        return known

    def end_local(self, host: str, port: int) -> None:
        """End a forward."""
        self._end("-L", host, port)

    def end_remote(self, host: str, port: int) -> None:
        """End a reverse forward."""
        self._end("-R", host, port)

    def _end(self, flag: str, host: str, port: int) -> None:
        forward = self._all.pop((flag, host, port), None)
        if forward is None or not forward.is_up or not self._master.is_alive():
            return
        # A forward is known by the port that was asked for; a failed cancel exits with 0 all the same (mux.c).
        answer = self._master.control("cancel", forward.words(forward.asked_port))
        if answer.returncode != 0 or "failed" in answer.stderr:
            raise TransportError(self._label, f"cannot end the forward to {host}:{port}: {answer.stderr.strip()}")

    def close(self) -> None:
        """End all of them; a connection that is gone has taken them along."""
        for key in list(self._all):
            with suppress(NoConnectionError):
                try:
                    self._end(*key)
                except TransportError as error:
                    log.warning("%s", error)

    def forget_connection(self) -> None:
        """Remember that the master has gone, and all forwards with it."""
        for forward in self._all.values():
            forward.is_up = False

    def restore(self) -> None:
        """Make the forwards of a lost connection again, on the same ports."""
        for forward in self._all.values():
            if forward.is_up:
                continue
            answer = self._master.control("forward", forward.words())
            forward.is_up, forward.asked_port = answer.returncode == 0, None
            if not forward.is_up:
                log.warning(
                    "%s: port %d for %s:%d could not be taken again: %s",
                    *(self._label, forward.listen_port, forward.host, forward.port, answer.stderr.strip()),
                )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port
