"""The jobs of one run: which is the present one of a name, which still live beside it, which have ended."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from orchestrator.plan import PlannedJob
from orchestrator.tracked import TrackedJob

# How many ended tasks are still shown.
RECENT = 12


class JobTable:
    """Jobs by name.

    A name stands for its last submission. Beside it there may be a job that is to take its place (its successor), and
    jobs that gave their place up and have not ended.
    """

    def __init__(self) -> None:
        """Start with no jobs."""
        self._present: dict[str, TrackedJob] = {}
        self._successors: dict[str, TrackedJob] = {}
        self._predecessors: dict[str, TrackedJob] = {}
        # By token. What a look costs must not grow with the number of jobs that have ended.
        self._open: dict[str, TrackedJob] = {}
        self._services: dict[str, TrackedJob] = {}
        self._ended: deque[TrackedJob] = deque(maxlen=RECENT)

    def add(self, planned: PlannedJob, job_id: str, submitted_at: float) -> TrackedJob:
        """Track a submitted job, in the place of an earlier one of its name."""
        tracked = TrackedJob(planned, job_id, submitted_at)
        before = self._present.get(planned.name)
        if before is not None:
            self._open.pop(before.planned.token, None)
        self._take_place(tracked)
        self._open[planned.token] = tracked
        return tracked

    def add_successor(self, planned: PlannedJob, job_id: str, submitted_at: float) -> TrackedJob:
        """Track a submitted job that is to take the place of the present one of its name later."""
        tracked = TrackedJob(planned, job_id, submitted_at)
        self._successors[planned.name] = self._open[planned.token] = tracked
        return tracked

    def hand_over(self, name: str) -> TrackedJob | None:
        """Let the successor of ``name`` be the present job; return the one that gave its place up, if it lives."""
        before = self._present[name]
        self._take_place(self._successors.pop(name))
        if before.planned.token in self._open:
            self._predecessors[before.planned.token] = before
            return before
        return None

    def drop_successor(self, name: str) -> None:
        """Forget the successor of ``name``: it has ended before it could take over."""
        self._successors.pop(name, None)

    def successor(self, name: str) -> TrackedJob | None:
        """Return the job that is to take the place of the present one of its name."""
        return self._successors.get(name)

    def close(self, job: TrackedJob) -> None:
        """Look at a job no more, as it has ended; it is still among all jobs."""
        self._open.pop(job.planned.token, None)
        self._predecessors.pop(job.planned.token, None)
        self._ended.append(job)

    def _take_place(self, tracked: TrackedJob) -> None:
        self._present[tracked.name] = tracked
        if tracked.planned.kind == "service":
            self._services[tracked.name] = tracked

    def __getitem__(self, name: str) -> TrackedJob:
        return self._present[name]

    def __contains__(self, name: object) -> bool:
        return name in self._present

    def __len__(self) -> int:
        return len(self._present)

    def get(self, name: str) -> TrackedJob | None:
        """Return the present job of that name, or None if none was submitted."""
        return self._present.get(name)

    @property
    def present(self) -> Iterable[TrackedJob]:
        """The present job of each name, in the order of the first submission."""
        return self._present.values()

    @property
    def beside(self) -> tuple[TrackedJob, ...]:
        """Successors that have not taken over, and predecessors that have not ended."""
        return (*self._successors.values(), *self._predecessors.values())

    @property
    def predecessors(self) -> tuple[TrackedJob, ...]:
        """Jobs that gave their place up and have not ended."""
        return tuple(self._predecessors.values())

    @property
    def open(self) -> tuple[TrackedJob, ...]:
        """Jobs that are not known to have ended."""
        return tuple(self._open.values())

    @property
    def services(self) -> tuple[TrackedJob, ...]:
        """The present services, ended ones included."""
        return tuple(self._services.values())

    @property
    def shown(self) -> tuple[TrackedJob, ...]:
        """What is to be shown: services, what lives beside them, tasks that have not ended, and the last that have."""
        tasks = {job.name: job for job in (*self._ended, *self._open.values()) if job.planned.kind == "task"}
        return (*self.services, *self.beside, *tasks.values())
