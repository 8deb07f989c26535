"""Successors of services: a job that takes over before the wall time of the one before it ends."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping

from orchestrator.errors import CommandError, LeaseLostError, NoConnectionError, OrchError
from orchestrator.interrupts import TerminatedError
from orchestrator.jobs import JobTracker
from orchestrator.plan import PlannedJob
from orchestrator.rundir import RunDir
from orchestrator.schedulers import JobState
from orchestrator.tracked import TrackedJob, ends_at, ready_endpoint

log = logging.getLogger(__name__)
# After so many successors that were refused or died, a job is left to its end.
MAX_FAILURES = 3
AGAIN_S = 60.0


class Succession:
    """Submits successors ahead of the end, and hands services over to them once they are ready."""

    def __init__(
        self,
        run: RunDir,
        jobs: JobTracker,
        lead_s: float | None,
        limits_s: Mapping[str, float | None],
        plan_again: Callable[[str, int], PlannedJob],
        grace_s: float,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Make a succession of serving jobs.

        Args:
            run: The run's paths.
            jobs: The run's jobs.
            lead_s: How long before its end a job's successor is submitted, in seconds; None for no successors.
            limits_s: By role, the wall time in seconds of jobs that ask for none.
            plan_again: Returns the job of a service for another submission: name, generation.
            grace_s: How long requests under way may take after a service was handed over, in seconds.
            say: Tells people what happens.
            clock: Returns seconds since the epoch.
        """
        self._run, self._jobs, self._lead_s, self._limits_s = run, jobs, lead_s, limits_s
        self._plan_again, self._grace_s, self._say, self._clock = plan_again, grace_s, say, clock
        self._failures: Counter[str] = Counter()
        self._not_before: dict[str, float] = {}
        self._ends: dict[str, float] = {}

    def look(self) -> None:
        """Do what is due."""
        for job in self._jobs.services:
            successor = self._jobs.successor(job.name)
            if successor is not None:
                self._tend(job, successor)
            elif self._is_due(job):
                self._begin(job)
        for job in self._jobs.predecessors:
            if self._clock() > self._ends.setdefault(job.planned.token, self._clock() + self._grace_s):
                self._end(job)

    def settle(self) -> None:
        """Hand over what can be handed over, and submit nothing."""
        for job in self._jobs.services:
            successor = self._jobs.successor(job.name)
            if successor is not None:
                self._tend(job, successor)

    def _is_due(self, job: TrackedJob) -> bool:
        end = ends_at(job, self._limits_s)
        if self._lead_s is None or job.planned.role != "server" or end is None or job.state != JobState.RUNNING:
            return False
        now = self._clock()
        may_try = self._failures[job.name] < MAX_FAILURES and now >= self._not_before.get(job.name, 0.0)
        return may_try and not job.cancelled and now > end - self._lead_s

    def _begin(self, job: TrackedJob) -> None:
        try:
            planned = self._plan_again(job.name, self._jobs.next_generation(job.name))
            successor = self._jobs.submit_successor(planned)
        except (LeaseLostError, NoConnectionError, TerminatedError):
            raise
        except OrchError as error:  # the one that serves goes on
            self._note_failure(job.name, f"the successor of {job.name} was not submitted: {error}")
            return
        self._say(f"{job.name}: its wall time ends soon; job {successor.job_id} will take over from {job.job_id}")

    def _tend(self, job: TrackedJob, successor: TrackedJob) -> None:
        if successor.state.is_final:
            self._jobs.drop_successor(job.name)
            self._note_failure(job.name, f"the successor of {job.name}: {self._jobs.failure(successor)}")
        elif ready_endpoint(self._run, successor) is not None or job.state.is_final:
            self._jobs.hand_over(job.name)
            self._failures.pop(job.name, None)
            self._say(f"{job.name}: job {successor.job_id} has taken over from {job.job_id}")

    def _note_failure(self, name: str, text: str) -> None:
        self._failures[name] += 1
        self._not_before[name] = self._clock() + AGAIN_S
        self._say(text)

    def _end(self, job: TrackedJob) -> None:
        self._ends[job.planned.token] = self._clock() + AGAIN_S
        try:
            self._jobs.cancel([job])
        except CommandError as error:
            log.warning("%s", error)  # asked again, and ended with the run at the latest
