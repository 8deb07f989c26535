"""The steps of an allocation as a place where jobs run: the host of the allocation, with another batch system."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.allocation.broker import spool, steps_program
from orchestrator.plan import PlannedJob
from orchestrator.recipe.hosts import STEPS
from orchestrator.recipe.infrastructure import AllocationPart
from orchestrator.schedulers import Scheduler
from orchestrator.schedulers.allocation import AllocationScheduler
from orchestrator.transports import FileContent

if TYPE_CHECKING:
    from orchestrator.hosts import Host


class StepsHost:
    """Jobs that are steps of one allocation: everything but their batch system is that of the allocation's host."""

    name = STEPS
    leased_until: float | None = None

    def __init__(self, base: Host, parts: Sequence[AllocationPart], python: str) -> None:
        """Make the place.

        Args:
            base: Where the allocation itself is a job.
            parts: The allocation's.
            python: Interpreter of that host for steps.py.
        """
        self._base = base
        # Not the names of parts: a further submission of the allocation may have others.
        groups: dict[str, str] = {role: role for part in parts for role in part.roles}
        self.scheduler: Scheduler = AllocationScheduler(
            base.scheduler, str(spool(base.run)), groups, python, str(steps_program(base.run))
        )
        self.transport, self.run = base.transport, base.run

    def there(self, path: Path) -> Path:
        return self._base.there(path)

    def prepare(self) -> None:
        """Everything is brought to the allocation's host."""

    def deliver(self, *paths: Path) -> None:
        self._base.deliver(*paths)

    def collect(self, jobs: Sequence[PlannedJob]) -> bool:
        return self._base.collect(jobs)

    def read_growing(self, starts: Mapping[Path, int], limit_bytes: int) -> dict[Path, FileContent]:
        return self._base.read_growing(starts, limit_bytes)

    def collect_logs(self, job: PlannedJob, job_id: str) -> None:
        self._base.collect_logs(job, job_id)

    def fetch(self, path: Path, excludes: tuple[str, ...] = ()) -> None:
        self._base.fetch(path, excludes)

    def write_lease(self, lease: Mapping[str, Any]) -> bool:
        return True  # the allocation's host is told
