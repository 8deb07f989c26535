"""Batch jobs that are orchestrators, or will be when they start: whether they are listed, and their end."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import get_args

from orchestrator.errors import CommandError
from orchestrator.own_job import OwnJob
from orchestrator.recipe.sections import SchedulerSpec
from orchestrator.schedulers import Scheduler, Seen, find_scheduler, make_scheduler
from orchestrator.transports import Transport

_SPECS = {spec.model_fields["kind"].default: spec for spec in get_args(get_args(SchedulerSpec)[0])}
KINDS = tuple(_SPECS)


def scheduler_of(kind: str | None) -> Scheduler:
    """Return the backend of a kind, or that of this machine."""
    return make_scheduler(find_scheduler()[0] if kind is None else _SPECS[kind]())


class Whereabouts(StrEnum):
    """What a scheduler says of a batch job."""

    LISTED = "in the queue"
    """It waits or runs."""
    GONE = "gone"
    """It has ended, was cancelled or forgotten, or its id is another job's by now."""
    UNKNOWN = "not known"
    """The scheduler does not answer, or this is another cluster than the job's."""


class OwnJobs:
    """What the schedulers of this machine say of orchestrators' batch jobs; each is asked once."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._clusters: dict[str, str | None] = {}
        self._answers: dict[str, dict[str, Seen] | None] = {}

    def cluster(self, kind: str) -> str | None:
        """Return the cluster that ids of jobs hold for here; None where an id says it, or nobody does."""
        if kind not in self._clusters:
            scheduler = scheduler_of(kind)
            argv = scheduler.cluster_argv()
            answer = self._transport.run(argv, scheduler.command_timeout_s) if argv else None
            self._clusters[kind] = scheduler.parse_cluster(answer) if answer else None
        return self._clusters[kind]

    def name_of(self, kind: str, job_id: str) -> str | None:
        """Return the name of a job in the queue, or None where that cannot be told."""
        seen = (self._listed(kind) or {}).get(job_id)
        return seen.name if seen else None

    def is_known_here(self, job: OwnJob) -> bool:
        """Return whether the job's id means that job here; on another cluster it is another job's, or none's."""
        if job.scheduler not in KINDS:
            return False
        if scheduler_of(job.scheduler).cluster_argv() is None:
            return True
        return job.cluster is not None and job.cluster == self.cluster(job.scheduler)

    def whereabouts(self, job: OwnJob) -> Whereabouts:
        """Return whether the job still waits or runs."""
        listed = self._listed(job.scheduler) if self.is_known_here(job) else None
        if listed is None:
            return Whereabouts.UNKNOWN
        seen = listed.get(job.job_id)
        if seen is None or (job.name is not None and seen.name != job.name):
            return Whereabouts.GONE
        return Whereabouts.GONE if seen.state.is_final and not seen.has_leftovers else Whereabouts.LISTED

    def cancel(self, jobs: Sequence[OwnJob]) -> tuple[list[OwnJob], list[str]]:
        """Cancel those of ``jobs`` that are listed; return them, and why others could not be cancelled."""
        cancelled: list[OwnJob] = []
        problems: list[str] = []
        for job in jobs:
            match self.whereabouts(job):
                case Whereabouts.LISTED:
                    problem = self._cancel(job)
                    if problem is None:
                        cancelled.append(job)
                    else:
                        problems.append(f"batch job {job.job_id}: {problem}")
                case Whereabouts.UNKNOWN:
                    cluster = f" of {job.cluster}" if job.cluster else ""
                    problems.append(f"batch job {job.job_id}{cluster}: its {job.scheduler} cannot be asked from here")
                case Whereabouts.GONE:
                    pass
        return cancelled, problems

    def _cancel(self, job: OwnJob) -> CommandError | None:
        scheduler = scheduler_of(job.scheduler)
        answer = self._transport.run(scheduler.cancel_argv([job.job_id]), scheduler.command_timeout_s)
        if scheduler.has_cancelled(answer):
            return None
        return CommandError(answer.argv, answer.returncode, answer.stderr, "the scheduler did not cancel it")

    def _listed(self, kind: str) -> dict[str, Seen] | None:
        if kind not in self._answers:
            scheduler = scheduler_of(kind)
            answer = self._transport.run(scheduler.status_argv(), scheduler.command_timeout_s)
            self._answers[kind] = scheduler.parse_status(answer)
        return self._answers[kind]
