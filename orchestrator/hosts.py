"""Where the jobs of a run run: this machine, or one that is reached over OpenSSH and shares no files with it."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from orchestrator.atomic import make_private_dir, write_bytes
from orchestrator.errors import StorageError, TransportError, UserError
from orchestrator.plan import PlannedJob
from orchestrator.recipe.document import Recipe
from orchestrator.recipe.hosts import HERE, HostSpec
from orchestrator.recipe.sections import LocalSchedulerSpec
from orchestrator.rundir import RunDir
from orchestrator.schedulers import Scheduler, make_scheduler
from orchestrator.transports import FileContent, LocalTransport, TransferOptions, Transport
from orchestrator.transports.ways import can_ask, way_to

PROJECT = Path(__file__).resolve().parent.parent
CLOCK_EVERY_S = 300.0
LOG_BYTES = 1 << 20
# What runs on compute nodes, in the run's own copy: a newer clone must not change a run under way.
CODE = ("client", "trainer")
_TIMES = ("started_at", "ready_at", "finished_at", "at")
# What jobs read; everything else there is theirs.
_SENT = ("scripts", "secrets", "config")
PULL_BYTES = 4 << 20
log = logging.getLogger(__name__)


class Host(Protocol):
    """One place where jobs run.

    Attributes:
        name: ``here``, or its name in the recipe.
        scheduler: Its batch system.
        transport: The way to it.
        run: The run's directory as its jobs see it.
    """

    name: str
    scheduler: Scheduler
    transport: Transport
    run: RunDir

    def there(self, path: Path) -> Path:
        """Return where a path of the orchestrator's copy of the run is on the host."""

    def prepare(self) -> None:
        """Bring everything there that jobs need; see the errors of Transport.push."""

    def deliver(self, *paths: Path) -> None:
        """Bring files of the run there that were written here.

        Raises:
            TransportError: it could not be done.
        """

    def collect(self, jobs: Sequence[PlannedJob]) -> bool:
        """Bring here what jobs have written about themselves; return whether the host could be asked."""

    def collect_logs(self, job: PlannedJob, job_id: str) -> None:
        """Bring the logs of a job here, the last MiB of each; what cannot be had is logged."""

    def fetch(self, path: Path, excludes: tuple[str, ...] = ()) -> None:
        """Bring a file or folder of the run here; ``path`` is where it is to lie.

        Raises:
            TransportError: it could not be done.
        """

    def write_lease(self, lease: Mapping[str, Any]) -> None:
        """Let services there know that they are still wanted; a failure is logged, the next renewal tries again."""


class ThisMachine:
    """Jobs that share the run's directory with the orchestrator."""

    name = HERE

    def __init__(self, scheduler: Scheduler, transport: Transport, run: RunDir) -> None:
        self.scheduler, self.transport, self.run = scheduler, transport, run

    def there(self, path: Path) -> Path:
        return path

    def prepare(self) -> None:
        """Everything lies there already."""

    def deliver(self, *paths: Path) -> None:
        """Everything lies there already."""

    def collect(self, jobs: Sequence[PlannedJob]) -> bool:
        return True

    def collect_logs(self, job: PlannedJob, job_id: str) -> None:
        """Everything lies here already."""

    def fetch(self, path: Path, excludes: tuple[str, ...] = ()) -> None:
        """Everything lies here already."""

    def write_lease(self, lease: Mapping[str, Any]) -> None:
        """It lies there already."""


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
            only_looks: Leave endpoint records alone: they hold the forwards of the run's orchestrator.
        """
        self._only_looks = only_looks
        self.name, self.scheduler, self.transport, self._home = name, scheduler, transport, home
        self.run = RunDir(Path(spec.base_dir) / "runs" / home.root.name)
        self._ahead_s = 0.0
        self._clock_due = 0.0
        self._seen: dict[Path, bytes] = {}
        self._forwards: dict[Path, tuple[str, int]] = {}

    def there(self, path: Path) -> Path:
        return self.run.root / path.relative_to(self._home.root)

    def prepare(self) -> None:
        self.transport.open(interactive=can_ask())
        folders = [str(self.there(folder)) for folder in self._home.folders()]
        # Folders above the run's own are private as well.
        argv = ["sh", "-c", 'umask 077; mkdir -p -- "$@"', "sh", *folders]
        answer = self.transport.run(argv, 60.0)
        if answer.returncode != 0:
            raise TransportError(self.name, f"cannot make {self.run.root}: {answer.stderr.strip()}")
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
            wanted += [home.endpoint(job.name)] if job.kind == "service" and not self._only_looks else []
            wanted += [home.root / path for path in job.pulls]
        if not wanted:
            return True
        there = {str(self.there(path)): path for path in wanted}
        try:
            self._look_at_clock()
            found = self.transport.read_many(list(there), limit_bytes=PULL_BYTES)
            for name, path in there.items():
                self._take_or_log(path, found[name])
        except TransportError as error:
            log.warning("%s: %s", self.name, error)
            return False
        return True

    def _take_or_log(self, path: Path, content: FileContent) -> None:
        """Take one file; a full disk here must not keep the others from being looked at, nor jobs from being ended."""
        try:
            self._take(path, content)
        except (StorageError, OSError, ValueError) as error:
            log.warning("%s: %s was not taken over: %s", self.name, path.name, error)

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
        self._ahead_s = now - (before + after) / 2
        self._clock_due = time.monotonic() + CLOCK_EVERY_S

    def _take(self, path: Path, content: FileContent) -> None:
        """Put one file's content into the orchestrator's copy, if it is new."""
        if content.problem is not None:
            log.warning("%s: %s: %s", self.name, self.there(path), content.problem)
            return
        if content.data is None:
            self._drop(path)
            return
        is_endpoint = path.parent == self._home.endpoints
        if self._seen.get(path) == content.data and path.exists() and not is_endpoint:
            return
        text = content.data
        if path.parent in {self._home.endpoints, self._home.root / "status"}:
            record = self._adapted(path, content.data)
            if record is None:
                return  # torn or foreign: it counts as not there yet
            text = record
        if is_endpoint and path.exists() and path.read_bytes() == text:
            return  # a forward that was made anew may have another port
        make_private_dir(path.parent)
        write_bytes(path, text)
        self._seen[path] = content.data

    def _adapted(self, path: Path, data: bytes) -> bytes | None:
        """Return a record with its times by this machine's clock, and its URL as it is reached from here."""
        try:
            record = json.loads(data)
        except (ValueError, RecursionError):
            return None
        if not isinstance(record, dict):
            return None
        for name in _TIMES:
            if isinstance(record.get(name), (int, float)):
                record[name] -= self._ahead_s
        if path.parent == self._home.endpoints:
            host, port = record.get("host"), record.get("port")
            if not isinstance(host, str) or not isinstance(port, int):
                return None
            address = self.transport.forward(host, port)
            self._forwards[path] = (host, port)
            record = {**record, "there": {"host": host, "port": port, "url": record.get("url")}}
            record |= {"host": address.host, "port": address.port, "url": f"http://{address.host}:{address.port}"}
        return json.dumps(record, indent=1).encode()

    def _drop(self, path: Path) -> None:
        """Follow a record that was withdrawn; what was measured stays."""
        if self._seen.pop(path, None) is None or path.parent != self._home.endpoints:
            return
        path.unlink(missing_ok=True)
        if path in self._forwards:
            self.transport.unforward(*self._forwards.pop(path))

    def collect_logs(self, job: PlannedJob, job_id: str) -> None:
        for stream in ("out", "err", "batch"):
            path = self._home.log(job.name, job_id, stream)
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

    def write_lease(self, lease: Mapping[str, Any]) -> None:
        there = {**lease, "expires_at": lease["expires_at"] + self._ahead_s}
        try:
            self.transport.write(str(self.run.lease), json.dumps(there).encode())
        except TransportError as error:
            log.warning("the lease on %s was not renewed: %s", self.name, error)


class Hosts:
    """All places where jobs of one run run."""

    def __init__(self, hosts: Iterable[Host]) -> None:
        self._hosts = {host.name: host for host in hosts}

    def __getitem__(self, name: str) -> Host:
        return self._hosts[name]

    def __iter__(self) -> Iterator[Host]:
        return iter(self._hosts.values())

    def prepare(self) -> None:
        """Prepare every host; see Host.prepare."""
        for host in self._hosts.values():
            host.prepare()

    def write_lease(self, lease: Mapping[str, Any]) -> None:
        """Tell every host; see Host.write_lease."""
        for host in self._hosts.values():
            host.write_lease(lease)


def open_hosts(recipe: Recipe, home: RunDir, here: Transport | None = None, only_looks: bool = False) -> Hosts:
    """Return the places where the jobs of a resolved recipe run; nothing is connected yet.

    Args:
        recipe: Resolved.
        home: The orchestrator's copy of the run.
        here: The way to this machine.
        only_looks: For whoever is not the run's orchestrator, see RemoteHost.

    Raises:
        UserError: the recipe names a host that it does not describe.
    """
    job = recipe.job
    scheduler = make_scheduler(job.scheduler or LocalSchedulerSpec())
    found: list[Host] = [ThisMachine(scheduler, here or LocalTransport(), home)]
    names = {getattr(job.resources, role).host for role in type(job.resources).model_fields} - {None, HERE}
    for name in sorted(names):
        spec = job.hosts.get(name)
        if spec is None or spec.scheduler is None:
            raise UserError(f"job.hosts has no resolved host '{name}'")
        found.append(RemoteHost(name, spec, make_scheduler(spec.scheduler), way_to(spec.ssh), home, only_looks))
    return Hosts(found)
