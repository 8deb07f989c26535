"""The lease: how services know that somebody still wants them."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

from orchestrator.atomic import write_json

LEASE_S = 900.0
RENEW_EVERY_S = 30.0


class Lease:
    """Renews ``lease.json``; services end themselves when it has expired (docs/run-directory.md)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._next = 0.0

    def renew(self) -> None:
        """Write a fresh lease if the last one is older than 30 s.

        Raises:
            StorageError: it could not be written.
        """
        if time.monotonic() >= self._next:
            self._write(keep=False)
            self._next = time.monotonic() + RENEW_EVERY_S

    def keep(self) -> None:
        """Lift the lease: services live until they are stopped or their wall time ends."""
        self._write(keep=True)

    def _write(self, keep: bool) -> None:
        now = time.time()
        owner = f"{socket.gethostname()}:{os.getpid()}"
        write_json(self._path, {"owner": owner, "renewed_at": now, "expires_at": now + LEASE_S, "keep": keep})
