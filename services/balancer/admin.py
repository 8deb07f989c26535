"""HAProxy's admin commands, as far as members need them. Source: HAProxy's management guide, section 9.3."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from orchestrator.errors import OrchError
from services.balancer.members import Member

BACKEND = "members"
TIMEOUT_S = 5.0
# Not "observe … on-error mark-down": the request that finds a member dead would wait a second before it goes elsewhere.
# The weight is the same for all: it makes 1,600 places of each on the hash ring, for even shares.
OPTIONS = "weight 100 check inter 1s fall 2 rise 1"
ADDED = frozenset({"New server registered.", "Already exists a server with the same name in backend."})
DELETED = frozenset({"Server deleted.", "No such server."})
STILL_USED = "Server still has connections attached to it, cannot remove it."


class AdminError(OrchError):
    """HAProxy did not do what it was told."""


@dataclass(frozen=True)
class Admin:
    """Changes the members of a running HAProxy; a command that is repeated does no harm.

    Every method raises AdminError when HAProxy refuses, and OSError when it does not answer.

    Attributes:
        channel: Our end of the pair of sockets through which HAProxy gets its admin connections.
    """

    channel: socket.socket

    def add(self, member: Member) -> None:
        """Let a member take requests at once: its record was written when it was healthy."""
        name = f"{BACKEND}/{member.name}"
        self._order(f"add server {name} {member.address} {OPTIONS}; enable health {name}; enable server {name}", ADDED)

    def disable(self, member: Member) -> None:
        """Give a member no further request; those it has go on to their end."""
        self._order(f"disable server {BACKEND}/{member.name}", frozenset({""}))

    def is_deleted(self, member: Member) -> bool:
        """Forget a disabled member unless it still has requests; return whether it is forgotten."""
        return self._order(f"del server {BACKEND}/{member.name}", DELETED | {STILL_USED}) != STILL_USED

    def _order(self, command: str, expected: frozenset[str]) -> str:
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                socket.send_fds(self.channel, [b"\0"], [theirs.fileno()])
            ours.settimeout(TIMEOUT_S)
            ours.sendall(command.encode() + b"\n")
            with ours.makefile("rb") as file:
                answer = file.read().decode(errors="replace").strip()
        if answer not in expected:
            raise AdminError(f"{command}: HAProxy says: {answer}")
        return answer
