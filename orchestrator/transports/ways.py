"""The connections of this process: one for each machine, so that one login serves planning and the run."""

from __future__ import annotations

import sys

from orchestrator.transports.ssh import SshTransport
from orchestrator.transports.ssh_spec import SshSpec

_ways: dict[str, SshTransport] = {}


def way_to(spec: SshSpec) -> SshTransport:
    """Return the way to a machine; the same for the same description."""
    return _ways.setdefault(spec.model_dump_json(), SshTransport(spec))


def can_ask() -> bool:
    """Return whether somebody is there to type a password or a second factor."""
    return sys.stdin is not None and sys.stdin.isatty()


def close_ways() -> None:
    """End all connections that were made by this process."""
    while _ways:
        _ways.popitem()[1].close()
