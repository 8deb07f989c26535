"""How long a trial may run: ``job.hpo.trial_timeout_s``, kept by the search itself on every scheduler."""

from __future__ import annotations

import time

from orchestrator.schedulers import JobState
from orchestrator.tracked import TrackedJob

# A scheduler that did not take a cancellation, or a job that did not heed it, is asked again after so long.
CANCEL_AGAIN_S = 60.0


class TimeLimit:
    """The limit of one job; the clock starts when the job does, and anew when it is requeued.

    Attributes:
        was_exceeded: Whether the job has run for too long.
    """

    def __init__(self, limit_s: float | None) -> None:
        """Make a limit of so many seconds, or none."""
        self._limit_s = limit_s
        self._running_since: float | None = None
        self._next_cancel = 0.0
        self.was_exceeded = False

    @property
    def cause(self) -> str:
        """What is said of a trial that was ended."""
        limit = "none" if self._limit_s is None else f"{self._limit_s:g} s"
        return f"time limit: it ran for longer than job.hpo.trial_timeout_s = {limit}"

    def is_due(self, job: TrackedJob) -> bool:
        """Return whether ``job`` has to be ended now: when it goes over the limit, then every CANCEL_AGAIN_S."""
        if self._limit_s is None or self._ran_s(job) <= self._limit_s or time.monotonic() < self._next_cancel:
            return False
        self.was_exceeded = True
        self._next_cancel = time.monotonic() + CANCEL_AGAIN_S
        return True

    def _ran_s(self, job: TrackedJob) -> float:
        """Return for how long the job has run, in seconds; 0 while it does not."""
        if job.state != JobState.RUNNING:
            if job.state in {JobState.PENDING, JobState.REQUEUED}:
                self._running_since = None
            return 0.0
        now = time.monotonic()
        self._running_since = now if self._running_since is None else self._running_since
        # A job that was adopted has run for longer than it was seen to; its own record knows since when.
        by_record = time.time() - job.record.started_at if job.record is not None else 0.0
        return max(now - self._running_since, by_record)
