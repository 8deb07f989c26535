"""One submitted job and the last that is known of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.plan import PlannedJob
from orchestrator.recipe.base import time_limit_s
from orchestrator.recipe.hosts import STEPS
from orchestrator.records import Endpoint, StatusRecord, read_endpoint
from orchestrator.rundir import RunDir
from orchestrator.schedulers import JobState, Seen


@dataclass
class TrackedJob:
    """One submitted job and the last that is known of it."""

    planned: PlannedJob
    job_id: str
    submitted_at: float
    state: JobState = JobState.PENDING
    why: str | None = None
    node: str | None = None
    record: StatusRecord | None = None
    cancelled: bool = False
    seen: Seen | None = field(default=None, repr=False)
    listed_at: float | None = field(default=None, repr=False)
    is_id_reused: bool = field(default=False, repr=False)
    stuck_since: float | None = field(default=None, repr=False)
    ended_attempt: str | None = field(default=None, repr=False)
    superseded_attempt: str | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        return self.planned.name

    @property
    def is_ready(self) -> bool:
        """Whether it is a healthy service right now."""
        return self.state == JobState.RUNNING and self.record is not None and self.record.state == "ready"

    @property
    def is_ending(self) -> bool:
        """Whether its supervisor ends it, or has ended it and the scheduler has not said so yet."""
        return not self.state.is_final and self.record is not None and self.record.state in {"draining", "finished"}

    @property
    def ended_with_its_allocation(self) -> bool:
        """Whether it is a step that was cut off by the end of the job around it, not by anybody's wish."""
        if self.planned.host != STEPS or self.cancelled or not self.state.is_final:
            return False
        is_told = self.record is not None and self.record.is_finished and self.record.reason != "signal"
        return not is_told

    @property
    def must_be_ended(self) -> bool:
        """Whether it, or a process that it left behind, still lives under its id."""
        has_leftovers = self.seen is not None and self.seen.has_leftovers
        return not self.is_id_reused and (not self.state.is_final or has_leftovers)

    def note_seen(self, seen: Seen | None) -> None:
        """Take the scheduler's word; schedulers that lost their memory give an id out twice."""
        self.is_id_reused = seen is not None and seen.name != self.planned.token
        self.seen = None if self.is_id_reused else seen
        if self.seen is not None:
            self.listed_at = time.time()
        is_stuck = self.seen is not None and self.seen.never_starts
        self.stuck_since = (self.stuck_since or time.monotonic()) if is_stuck else None

    @property
    def phase(self) -> str:
        """Return the state for people: the supervisor's word where it says more than the scheduler's."""
        if self.state == JobState.RUNNING and self.record is not None:
            return self.record.state
        return self.state.value.lower()


def ready_endpoint(run: RunDir, job: TrackedJob) -> Endpoint | None:
    """Return the endpoint of a ready job; an endpoint of another attempt is somebody else's."""
    endpoint = read_endpoint(run, job.name) if job.is_ready else None
    if endpoint is None or job.record is None or endpoint.attempt != job.record.attempt:
        return None
    return endpoint


def ends_at(job: TrackedJob, limits_s: Mapping[str, float | None]) -> float | None:
    """Return when the wall time of a running service's present attempt ends, in seconds since the epoch, or None.

    Args:
        job: The service.
        limits_s: By role, the wall time in seconds of jobs that ask for none, where the partition has one.
    """
    resources = job.planned.resources
    limit_s = time_limit_s(resources.time) if resources.time else limits_s.get(job.planned.role)
    if job.planned.kind != "service" or job.state != JobState.RUNNING or job.record is None or limit_s is None:
        return None
    return job.record.started_at + limit_s
