"""Watching a run while it lives: its jobs, its lease, its endpoints, and what ends it."""

from __future__ import annotations

import time

from orchestrator.errors import JobFailedError, OrchError, ServiceAnswerError, StopRequestedError
from orchestrator.hosts import Hosts
from orchestrator.jobs import JobTracker
from orchestrator.lease import Lease
from orchestrator.notices import Notifier
from orchestrator.progress import Progress
from orchestrator.records import Endpoint
from orchestrator.replicas import Replicas
from orchestrator.rundir import RunDir
from orchestrator.succession import Succession
from orchestrator.tracked import ready_endpoint
from orchestrator.truth import FRESH_S

TICK_S = 0.5


class Watch:
    """Looks at everything of one run, again and again."""

    def __init__(
        self,
        run: RunDir,
        jobs: JobTracker,
        lease: Lease,
        hosts: Hosts,
        progress: Progress,
        notifier: Notifier,
        succession: Succession,
        replicas: Replicas,
    ) -> None:
        self._run, self._jobs, self._lease, self._hosts = run, jobs, lease, hosts
        self._progress, self._notifier, self._succession = progress, notifier, succession
        self._replicas = replicas
        self._told_dead: set[str] = set()
        # A model takes longer to copy than an orchestrator may be silent.
        hosts.call_while_copying(self.renew_lease)

    def look(self) -> None:
        """Look at everything once.

        Raises:
            JobFailedError: an essential service has ended, or the last replica.
            CannotStartError: a job can never start.
            StopRequestedError: ``orch.py stop`` asked for the end.
            LeaseLostError: another orchestrator has taken the run over.
        """
        self.renew_lease()
        self._jobs.poll()
        self.show_jobs()
        self._notifier.look(self._jobs.services)
        self._succession.look()
        self._jobs.raise_if_dead()
        self._replicas.look()
        self._jobs.raise_if_stuck(self._replicas.spared)
        for job in self._jobs.services:
            if job.state.is_final and job.planned.token not in self._told_dead:
                self._told_dead.add(job.planned.token)
                self._progress.say(f"{job.name} is left out from here on: {self._jobs.failure(job)}")
        if self._run.stop_request.exists():
            raise StopRequestedError("stopped by `orch.py stop`")

    def wait(self, seconds: float) -> None:
        """Go on looking for ``seconds``; see look."""
        deadline = time.monotonic() + seconds
        while True:
            self.look()
            left = deadline - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, TICK_S))

    def wait_for_services(self, records_s: float) -> None:
        """Look until every service that has not ended is ready, or a replica that has been late for long; see look."""
        while True:
            self.look()
            waiting = [job for job in self._jobs.services if not job.state.is_final]
            missing = [job for job in waiting if ready_endpoint(self._run, job) is None]
            if all(self._replicas.may_begin_without(job) for job in missing):
                return
            time.sleep(min(records_s, TICK_S))

    def endpoint(self, service: str) -> Endpoint:
        """Return where a ready service answers.

        Raises:
            ServiceAnswerError: it is not ready.
        """
        for _ in range(2):
            job = self._jobs.get(service)
            endpoint = ready_endpoint(self._run, job) if job is not None else None
            if endpoint is not None:
                return endpoint
            self._succession.look()  # its successor may have published its own just now
        raise ServiceAnswerError(f"the service '{service}' is not ready")

    def cause_of(self, error: OrchError) -> OrchError:
        """Return the death of a job where that is what a stage stumbled over, else the stage's own error.

        A stage sees a dead server at once; that its job is dead is known only when its heartbeat has stopped.
        """
        deadline = time.monotonic() + FRESH_S + 2 * TICK_S
        while time.monotonic() < deadline:
            self._jobs.refresh()
            try:
                self.look()
            except JobFailedError as death:
                return death
            time.sleep(2 * TICK_S)
        return error

    def renew_lease(self) -> None:
        """Let services know that they are still wanted.

        Raises:
            LeaseLostError: another orchestrator has taken the run over.
        """
        written = self._lease.renew()
        if written is not None:
            self._hosts.write_lease(written)

    def show_jobs(self) -> None:
        """Show people how the jobs stand."""
        self._progress.show_jobs(self._jobs.current, self._jobs.count)
