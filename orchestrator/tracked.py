"""One submitted job and the last that is known of it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from orchestrator.plan import PlannedJob
from orchestrator.records import StatusRecord
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
