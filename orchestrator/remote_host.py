"""Jobs on a machine that shares no files with this one: what is brought there, and what comes back."""

from __future__ import annotations

import json
import logging
import posixpath
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.arrivals import Arrivals
from orchestrator.atomic import make_private_dir, write_bytes
from orchestrator.errors import RemoteFileError, StorageError, TransportError
from orchestrator.logs import log_candidates
from orchestrator.plan import PlannedJob
from orchestrator.recipe.hosts import HostSpec
from orchestrator.rundir import RunDir
from orchestrator.schedulers import Scheduler
from orchestrator.transports import FileContent, TransferOptions, Transport
from orchestrator.transports.ways import can_ask

PROJECT = Path(__file__).resolve().parent.parent
CLOCK_EVERY_S = 300.0
LOG_BYTES = 1 << 20
# What runs on compute nodes, in the run's own copy: a newer clone must not change a run under way.
CODE = ("client", "trainer", "services/balancer", "orchestrator/errors.py")
# What jobs read; everything else there is theirs.
_SENT = ("scripts", "secrets", "config")
PULL_BYTES = 4 << 20
log = logging.getLogger(__name__)


class RemoteHost:
    """Jobs on a machine that shares no files with this one: records are pulled, services reached through forwards."""

    def __init__(
        self,
        name: str,
        spec: HostSpec,
        scheduler: Scheduler,
        transport: Transport,
        home: RunDir,
        only_looks: bool = False,
    ) -> None:
        """Make the host; nothing is connected yet.

        Args:
            name: Its name in the recipe.
            spec: Resolved: its base_dir is absolute.
            scheduler: Its batch system.
            transport: The way to it.
            home: The orchestrator's own copy of the run.
            only_looks: For whoever is not the run's orchestrator: what that has brought here stays, see Arrivals.
        """
        self.name, self.scheduler, self.transport, self._home = name, scheduler, transport, home
        self.run = RunDir(Path(spec.base_dir) / "runs" / home.root.name)
        self.leased_until: float | None = None
        self._only_looks = only_looks
        self._arrivals = Arrivals(name, home, transport, only_looks)
        self._clock_due = 0.0
        self._is_cut = self._is_lease_late = False

    def there(self, path: Path) -> Path:
        return self.run.root / path.relative_to(self._home.root)

    def prepare(self) -> None:
        self.transport.open(interactive=can_ask())
        # Folders above the run's own are private as well.
        make_folders(self.transport, [str(self.there(folder)) for folder in self._home.folders()])
        bring_programs(self.scheduler, self.transport)
        for folder in _SENT:
            self.transport.push(self._home.root / folder, str(self.run.root / folder))
        code = TransferOptions(excludes=("__pycache__/",))
        for part in CODE:
            self.transport.push(PROJECT / part, str(self.run.code / part), code)

    def deliver(self, *paths: Path) -> None:
        for path in paths:
            self.transport.write(str(self.there(path)), path.read_bytes())

    def collect(self, jobs: Sequence[PlannedJob]) -> bool:
        home, wanted = self._home, list[Path]()
        for job in jobs:
            wanted += [home.status(job.token), home.heartbeat(job.token)]
            wanted += [home.endpoint(job.name)] if job.kind == "service" else []
            wanted += [home.root / path for path in job.pulls]
        wanted = [path for path in wanted if self._arrivals.is_wanted(path)]
        if not wanted:
            return True
        try:
            self._look_at_clock()
            found = self._read(wanted, PULL_BYTES, self._arrivals.starts(wanted))
            for path in wanted:
                self._arrivals.take(path, found[path])
        except TransportError as error:
            self._tell_cut(error)
            return False
        return True

    def read_growing(self, starts: Mapping[Path, int], limit_bytes: int) -> dict[Path, FileContent]:
        try:
            return self._read(list(starts), limit_bytes, starts)
        except TransportError as error:
            self._tell_cut(error)
            raise

    def _read(self, paths: Sequence[Path], limit_bytes: int, starts: Mapping[Path, int]) -> dict[Path, FileContent]:
        there = {path: str(self.there(path)) for path in paths}
        far_starts = {there[path]: start for path, start in starts.items()}
        found = self.transport.read_many(list(there.values()), limit_bytes, starts=far_starts)
        if self._is_cut:
            self._is_cut = False
            log.warning("%s answers again", self.name)
        return {path: found[name] for path, name in there.items()}

    def _tell_cut(self, error: TransportError) -> None:
        """Say once what keeps the host from being asked; it is asked again until it answers."""
        if not self._is_cut:
            log.warning("%s; it is asked again until it answers", error)
        self._is_cut = True

    def _look_at_clock(self) -> None:
        """Measure how far the host's clock is ahead: what its jobs write is compared with what happens here."""
        if time.monotonic() < self._clock_due:
            return
        before = time.time()
        answer = self.transport.run(["date", "+%s.%N"], 20.0)
        after = time.time()
        whole, _, part = answer.stdout.strip().partition(".")
        if answer.returncode != 0 or not whole.isdigit():
            raise TransportError(self.name, f"`date` did not answer: {answer.stderr.strip() or answer.stdout!r}")
        now = float(f"{whole}.{part}" if part.isdigit() else whole)
        self._arrivals.ahead_s = now - (before + after) / 2
        self._clock_due = time.monotonic() + CLOCK_EVERY_S

    def collect_logs(self, job: PlannedJob, job_id: str) -> None:
        for path in log_candidates(self._home, job.name, job_id):
            if self._only_looks and path.exists():
                continue  # the orchestrator's own copy
            try:
                start = self.transport.read_from(str(self.there(path)), 0, 1)
                if start is None:
                    continue
                offset = max(0, start.size - LOG_BYTES)
                chunk = self.transport.read_from(str(self.there(path)), offset, LOG_BYTES)
                if chunk is not None:
                    write_bytes(path, chunk.data)
            except (TransportError, StorageError) as error:
                log.warning("the log %s was not fetched: %s", path.name, error)

    def fetch(self, path: Path, excludes: tuple[str, ...] = ()) -> None:
        make_private_dir(path.parent)
        self.transport.pull(str(self.there(path)), path, TransferOptions(excludes=excludes))

    def write_lease(self, lease: Mapping[str, Any]) -> bool:
        there = {**lease, "expires_at": lease["expires_at"] + self._arrivals.ahead_s}
        try:
            self.transport.write(str(self.run.lease), json.dumps(there).encode())
        except TransportError as error:
            # Before the first job there is no folder to write it to, and nobody to read it.
            is_new = self.leased_until is None and isinstance(error, RemoteFileError)
            level = logging.INFO if is_new or self._is_lease_late else logging.WARNING
            log.log(level, "the lease on %s was not renewed: %s", self.name, error)
            self._is_lease_late = not is_new
            return False
        self._is_lease_late = False
        self.leased_until = float(lease["expires_at"])
        return True


def make_folders(transport: Transport, paths: Sequence[str]) -> None:
    """Make folders on a machine, and those above them, for the user alone.

    Raises:
        TransportError: it could not be done.
    """
    answer = transport.run(["sh", "-c", 'umask 077; mkdir -p -- "$@"', "sh", *paths], 60.0)
    if answer.returncode != 0:
        raise TransportError(transport.host, f"cannot make {paths[0]}: {answer.stderr.strip()}")


def bring_programs(scheduler: Scheduler, transport: Transport) -> None:
    """Bring what a batch system needs of orch to its machine.

    Raises:
        TransportError: it could not be done.
    """
    for there, here in scheduler.programs.items():
        make_folders(transport, [posixpath.dirname(there)])
        transport.write(there, here.read_bytes())
