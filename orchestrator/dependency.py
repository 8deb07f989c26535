"""``orch.py after``: what keeps a run's orchestrator, as a batch job, from starting before earlier runs have ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import get_args

from orchestrator.earlier import Earlier
from orchestrator.errors import EarlierRunError, UserError
from orchestrator.history import run_state
from orchestrator.ledger import Ledger
from orchestrator.own_job import OwnJob
from orchestrator.recipe.sections import SchedulerSpec
from orchestrator.rundir import RunDir
from orchestrator.schedulers import Scheduler, find_scheduler, make_scheduler
from orchestrator.transports import Transport

_SPECS = {spec.model_fields["kind"].default: spec for spec in get_args(get_args(SchedulerSpec)[0])}
KINDS = tuple(_SPECS)


def scheduler_of(kind: str | None) -> Scheduler:
    """Return the backend of a kind, or that of this machine."""
    return make_scheduler(find_scheduler()[0] if kind is None else _SPECS[kind]())


def dependency_words(earlier: Sequence[Earlier], scheduler: Scheduler, transport: Transport) -> list[str]:
    """Return the words of the scheduler's option, empty where it has nothing to wait for.

    A run counts whose orchestrator is itself a batch job of the same scheduler. Others are waited for by the later
    run's orchestrator, which looks at these again as well.

    Args:
        earlier: The runs.
        scheduler: What the orchestrator will be submitted to.
        transport: Asked which cluster this is.

    Raises:
        UserError: a run has ended otherwise than it had to.
    """
    ids: dict[str, list[str]] = {"completed": [], "ended": []}
    for item in earlier:
        state = run_state(item.run)
        try:
            is_met = item.is_met_by(state.state)
        except EarlierRunError as error:
            raise UserError(str(error)) from error
        if not is_met and state.own_job is not None and _holds_here(state.own_job, scheduler, transport):
            ids[item.when].append(state.own_job.job_id)
    return scheduler.dependency_option(ids["completed"], ids["ended"])


def record_queued(run: RunDir, job_id: str, scheduler: Scheduler, transport: Transport) -> None:
    """Record that a batch job in the queue will start or resume ``run``: later runs can depend on it.

    Raises:
        StorageError: it could not be recorded.
    """
    job = OwnJob(scheduler.kind, job_id, _cluster(scheduler, transport))
    Ledger(run.events).append("run_queued", own_job=asdict(job))


def _holds_here(job: OwnJob, scheduler: Scheduler, transport: Transport) -> bool:
    """Return whether the scheduler knows the job by its id; on another cluster that is another job's, or none's."""
    if job.scheduler != scheduler.kind:
        return False
    return scheduler.cluster_argv() is None or (
        job.cluster is not None and job.cluster == _cluster(scheduler, transport)
    )


def _cluster(scheduler: Scheduler, transport: Transport) -> str | None:
    argv = scheduler.cluster_argv()
    return scheduler.parse_cluster(transport.run(argv, scheduler.command_timeout_s)) if argv else None
