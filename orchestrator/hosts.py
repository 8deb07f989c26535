"""Where the jobs of a run run: this machine, or one that is reached over OpenSSH and shares no files with it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from orchestrator.allocation.host import StepsHost
from orchestrator.allocation.within import WITHIN, WithinScheduler
from orchestrator.errors import (
    LeaseNotLiftedError,
    UserError,
)
from orchestrator.plan import PlannedJob
from orchestrator.recipe.document import Recipe
from orchestrator.recipe.hosts import HERE
from orchestrator.recipe.sections import LocalSchedulerSpec
from orchestrator.remote_host import PROJECT, RemoteHost
from orchestrator.rundir import RunDir
from orchestrator.schedulers import Scheduler, make_scheduler, make_scheduler_there
from orchestrator.transports import FileContent, LocalTransport, Transport
from orchestrator.transports.ways import way_to

__all__ = ["PROJECT", "Host", "Hosts", "RemoteHost", "ThisMachine", "open_hosts"]

# How long, and how often, services are told again that they are to be kept when nobody looks after them.
KEEP_PATIENCE_S = 120.0
KEEP_PAUSE_S = 5.0
log = logging.getLogger(__name__)


class Host(Protocol):
    """One place where jobs run.

    Attributes:
        name: ``here``, or its name in the recipe.
        scheduler: Its batch system.
        transport: The way to it.
        run: The run's directory as its jobs see it.
        leased_until: When services there end themselves, in seconds since the epoch by this machine's clock; None if
            they were never told here.
    """

    name: str
    scheduler: Scheduler
    transport: Transport
    run: RunDir
    leased_until: float | None

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

    def read_growing(self, starts: Mapping[Path, int], limit_bytes: int) -> dict[Path, FileContent]:
        """Return parts of growing files of the run, each from its byte on; nothing is written here.

        Args:
            starts: By paths of the orchestrator's copy; see Transport.read_many.
            limit_bytes: At most so much of each.

        Raises:
            TransportError: the host cannot be asked; that is logged once, until it answers again.
        """

    def collect_logs(self, job: PlannedJob, job_id: str) -> None:
        """Bring the logs of a job here, the last MiB of each; what cannot be had is logged."""

    def fetch(self, path: Path, excludes: tuple[str, ...] = ()) -> None:
        """Bring a file or folder of the run here; ``path`` is where it is to lie.

        Raises:
            TransportError: it could not be done.
        """

    def write_lease(self, lease: Mapping[str, Any]) -> bool:
        """Let services there know that they are still wanted.

        Returns:
            Whether it could be done; a failure is logged, the next renewal tries again.
        """


class ThisMachine:
    """Jobs that share the run's directory with the orchestrator."""

    name = HERE

    def __init__(self, scheduler: Scheduler, transport: Transport, run: RunDir) -> None:
        self.scheduler, self.transport, self.run = scheduler, transport, run
        self.leased_until: float | None = None

    def there(self, path: Path) -> Path:
        return path

    def prepare(self) -> None:
        """Everything lies there already."""

    def deliver(self, *paths: Path) -> None:
        """Everything lies there already."""

    def collect(self, jobs: Sequence[PlannedJob]) -> bool:
        return True

    def read_growing(self, starts: Mapping[Path, int], limit_bytes: int) -> dict[Path, FileContent]:
        found = self.transport.read_many(
            [str(path) for path in starts], limit_bytes, starts={str(path): start for path, start in starts.items()}
        )
        return {path: found[str(path)] for path in starts}

    def collect_logs(self, job: PlannedJob, job_id: str) -> None:
        """Everything lies here already."""

    def fetch(self, path: Path, excludes: tuple[str, ...] = ()) -> None:
        """Everything lies here already."""

    def write_lease(self, lease: Mapping[str, Any]) -> bool:
        return True  # it lies there already


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

    def call_while_copying(self, tick: Callable[[], None]) -> None:
        """Have ``tick`` called every second while files are copied to or from a host; what it raises ends the copy."""
        for host in self._hosts.values():
            host.transport.while_copying = tick

    def write_lease(self, lease: Mapping[str, Any]) -> None:
        """Tell every host; see Host.write_lease.

        A lease that is lifted is not written again by the next renewal: it is tried again here for two minutes.

        Raises:
            LeaseNotLiftedError: a host could not be told, and its services will end.
        """
        left = [host for host in self if not host.write_lease(lease)]
        if not lease["keep"] or not left:
            return
        deadline = time.monotonic() + KEEP_PATIENCE_S
        log.warning("%s could not be told to keep services; trying again", ", ".join(host.name for host in left))
        while left and time.monotonic() < deadline:
            time.sleep(KEEP_PAUSE_S)
            left = [host for host in left if not host.write_lease(lease)]
        if left:
            raise LeaseNotLiftedError({host.name: host.leased_until for host in left}, KEEP_PATIENCE_S)


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
        there = make_scheduler_there(spec.scheduler, name, spec.environment.supervisor_python, spec.base_dir)
        found.append(RemoteHost(name, spec, there, way_to(spec.ssh), home, only_looks))
    hosts = Hosts(found)
    if not job.infrastructure.allocation:
        return hosts
    name = job.resources.server.host or HERE
    environment = job.environment if name == HERE else job.hosts[name].environment
    steps = StepsHost(hosts[name], job.infrastructure.allocation, environment.supervisor_python)
    return Hosts([*hosts, *([_within(hosts[name])] if name == HERE else []), steps])


def _within(here: Host) -> Host:
    """Return the batch job around an orchestrator as a place where its allocation is."""
    place = ThisMachine(WithinScheduler(), here.transport, here.run)
    place.name = WITHIN
    return place
