"""The lease: how services know that somebody still wants them, and orchestrators that a run is another's."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator.atomic import read_json, write_json
from orchestrator.errors import LeaseLostError, RunBusyError, StorageError

LEASE_S = 900.0
RENEW_EVERY_S = 30.0
# An orchestrator elsewhere that has not renewed for this long is taken for dead.
SILENT_S = 100.0
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})


@dataclass(frozen=True)
class Owner:
    """One orchestrator process.

    Attributes:
        host: Its host name.
        boot_id: Of the host's running kernel; pids mean nothing after a restart.
        pid: Its process id.
        started: When it was started, in the kernel's clock ticks since boot: pids are used again.
        nonce: Random; tells two orchestrators of one process apart.
    """

    host: str
    boot_id: str
    pid: int
    started: int
    nonce: str

    @classmethod
    def of_this_process(cls) -> Owner:
        """Return this process with a fresh nonce."""
        started = _started(os.getpid())
        return cls(socket.gethostname(), _boot_id(), os.getpid(), started or 0, secrets.token_hex(8))

    @classmethod
    def from_lease(cls, lease: Any) -> Owner | None:
        """Return the owner that a lease names, or None if it has been given back or is not to be read."""
        data = lease.get("owner") if isinstance(lease, Mapping) else None
        try:
            return cls(**data) if isinstance(data, Mapping) else None
        except TypeError:
            return None

    def lives_here(self) -> bool | None:
        """Return whether the process lives on this host; None if it belongs to another one."""
        if self.host != socket.gethostname():
            return None
        return self.boot_id == _boot_id() and _started(self.pid) == self.started


def living_owner(path: Path) -> Owner | None:
    """Return the orchestrator that looks after the run of this lease, or None.

    One on this host must live; one elsewhere must have renewed the lease lately.
    """
    lease: Any = read_json(path)
    owner = Owner.from_lease(lease)
    if owner is None or lease.get("keep"):
        return None
    is_alive = owner.lives_here()
    if is_alive is None:
        renewed_at = lease.get("renewed_at")
        is_alive = isinstance(renewed_at, (int, float)) and time.time() - renewed_at < SILENT_S
    return owner if is_alive else None


class Lease:
    """One orchestrator's hold on its run: ``lease.json`` and a lock beside it (docs/run-directory.md)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._owner = Owner.of_this_process()
        self._next = 0.0
        self._lock: int | None = None

    @property
    def descriptor(self) -> int | None:
        """The open lock, for a child that is to hold it too; None where no lock is held."""
        return self._lock

    def take(self) -> None:
        """Make this process the run's orchestrator.

        Raises:
            RunBusyError: another one looks after it.
            StorageError: the lease could not be written.
        """
        self.lock()
        self._write()
        self._next = 0.0  # hosts elsewhere are to hear of it as well

    def lock(self) -> bool:
        """Keep every orchestrator away from the run without looking after it, and without writing the lease.

        Returns:
            Whether a lock is held; where the file system has none, only a lease that was taken keeps others away.

        Raises:
            RunBusyError: an orchestrator looks after it.
            StorageError: there can be no lock.
        """
        if self._lock is None:
            self._lock_file()
        other = living_owner(self._path)
        if other is not None and other.nonce != self._owner.nonce:
            raise RunBusyError(_whose(other))
        return self._lock is not None

    def unlock(self) -> None:
        """Let orchestrators at the run again; the lease stays as it is."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _lock_file(self) -> None:
        """Hold a lock for as long as this process lives; where the file system has none, the lease alone decides."""
        path = self._path.with_suffix(".lock")
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StorageError(path, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            owner = living_owner(self._path)
            raise RunBusyError(_whose(owner) if owner else "another orchestrator is just taking it over") from None
        except OSError as error:
            os.close(descriptor)
            if error.errno not in _NO_LOCKS:
                raise StorageError(path, error) from error
        else:
            self._lock = descriptor

    def verify(self) -> None:
        """Make sure that the run is still ours.

        Raises:
            LeaseLostError: another orchestrator has taken it over, as this one was silent for too long.
        """
        owner = Owner.from_lease(read_json(self._path))
        if owner is not None and owner.nonce != self._owner.nonce:
            raise LeaseLostError(f"{_whose(owner)}, and has taken it over from this one")

    def renew(self) -> dict[str, Any] | None:
        """Write a fresh lease if the last one is older than 30 s, and return it.

        Raises:
            LeaseLostError: see verify.
            StorageError: it could not be written.
        """
        if time.monotonic() < self._next:
            return None
        self.verify()
        return self._write()

    def keep(self) -> dict[str, Any]:
        """Lift the lease: services live until they are stopped or their wall time ends. Return it."""
        return self._write(keep=True)

    def give_back(self) -> None:
        """Let another orchestrator take the run over at once; services go on until the lease runs out.

        Raises:
            StorageError: it could not be written.
        """
        lease = read_json(self._path)
        if isinstance(lease, dict) and Owner.from_lease(lease) == self._owner:
            write_json(self._path, {**lease, "owner": None})
        self.unlock()

    def _write(self, keep: bool = False) -> dict[str, Any]:
        now = time.time()
        lease = {"owner": asdict(self._owner), "renewed_at": now, "expires_at": now + LEASE_S, "keep": keep}
        write_json(self._path, lease)
        self._next = time.monotonic() + RENEW_EVERY_S
        return lease


def _whose(owner: Owner) -> str:
    return f"process {owner.pid} on {owner.host} looks after this run"


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _started(pid: int) -> int | None:
    """Return when a process was started (proc_pid_stat(5), field 22), or None if there is none or it is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[19]) if fields[0] not in "ZX" else None
