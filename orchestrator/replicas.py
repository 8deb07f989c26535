"""Replicas of the LLM server: the run goes on as long as one of them lives, and others take the place of the dead."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from orchestrator.errors import LeaseLostError, NoConnectionError, OrchError
from orchestrator.interrupts import TerminatedError
from orchestrator.jobs import JobTracker
from orchestrator.plan import PlannedJob
from orchestrator.tracked import TrackedJob

# So many jobs take the place of one replica at most; refused ones count, those that found no connection do not.
MAX_REPLACEMENTS = 3
AGAIN_S = 60.0


class Replicas:
    """Keeps the replicas of a run at their number."""

    def __init__(
        self,
        jobs: JobTracker,
        names: Collection[str],
        patience_s: float,
        plan_again: Callable[[str, int], PlannedJob],
        say: Callable[[str], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Make the keeper.

        Args:
            jobs: The run's jobs.
            names: Those of the replicas; none in a run with a single server.
            patience_s: How long a run waits for the others once the first replica is ready, in seconds.
            plan_again: Returns the job of a service for another submission: name, generation.
            say: Tells people what happens.
            clock: Returns seconds since the epoch.
        """
        self._jobs, self._names, self._patience_s = jobs, names, patience_s
        self._plan_again, self._say, self._clock = plan_again, say, clock
        self._tried: dict[str, int] = {}
        self._not_before: dict[str, float] = {}
        # Tokens, in the order in which the jobs were seen to have ended.
        self._ended: dict[str, None] = {}

    @property
    def _present(self) -> list[TrackedJob]:
        return [job for job in self._jobs.services if job.name in self._names]

    def look(self) -> None:
        """Submit another job for each replica that has ended, while one is ready: it is not the fault of them all then.

        A replica that can never start is ended, and is one of those that have with its next look.

        Raises:
            JobFailedError: no replica lives; tells of the last one's end.
        """
        replicas = self._present
        ended = {job.planned.token: job for job in replicas if job.state.is_final and not job.cancelled}
        self._ended |= dict.fromkeys(ended)
        if ended and len(ended) == len(replicas):
            raise self._jobs.failure(next(ended[token] for token in reversed(self._ended) if token in ended))
        if any(job.is_ready for job in replicas):
            for job in ended.values():
                self.replace(job)
            for job in replicas:
                if self._jobs.is_stuck(job):
                    self._say(str(self._jobs.give_up(job)))

    @property
    def spared(self) -> Collection[str]:
        """Names of those that may be stuck: all, as long as one lives or may still start."""
        can_live = any(not job.state.is_final and job.stuck_since is None for job in self._present)
        return self._names if can_live else ()

    def can_spare(self, job: TrackedJob) -> bool:
        """Return whether the run goes on without ``job``: it is a replica, and another one is ready."""
        return job.name in self._names and any(other.is_ready for other in self._present)

    def may_begin_without(self, job: TrackedJob) -> bool:
        """Return whether stages need not wait for ``job``: it is a replica, and others have been ready for long."""
        ready_at = [
            other.record.ready_at
            for other in self._present
            if other.is_ready and other.record and other.record.ready_at
        ]
        return job.name in self._names and self._clock() > min(ready_at, default=self._clock()) + self._patience_s

    def replace(self, job: TrackedJob) -> None:
        """Submit a job in the place of one that has ended, unless too many were, or one was refused just now."""
        generation = self._jobs.next_generation(job.name)
        # Those that an orchestrator of before submitted count as well.
        tried = self._tried.get(job.name, generation - 2)
        if tried >= MAX_REPLACEMENTS or self._clock() < self._not_before.get(job.name, 0.0):
            return
        self._tried[job.name] = tried + 1
        try:
            another = self._jobs.submit_replacement(self._plan_again(job.name, generation))
        except (LeaseLostError, TerminatedError):
            raise
        except OrchError as error:  # the others serve on
            if isinstance(error, NoConnectionError):
                self._tried[job.name] = tried
            self._not_before[job.name] = self._clock() + AGAIN_S
            self._say(f"{job.name}: no job was submitted in the place of {job.job_id}: {error}")
            return
        self._say(f"{self._jobs.failure(job)}\n{job.name}: job {another.job_id} takes the place of {job.job_id}")
