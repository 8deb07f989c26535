"""``orch.py after``: what keeps a run's orchestrator, as a batch job, from starting before earlier runs have ended."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from orchestrator.earlier import Earlier, find_earlier
from orchestrator.errors import EarlierRunError, UserError
from orchestrator.history import run_state
from orchestrator.ledger import Ledger
from orchestrator.own_job import OwnJob
from orchestrator.queued_job import OwnJobs, Whereabouts
from orchestrator.recipe.after import After
from orchestrator.recipe.load import escape_variables
from orchestrator.rundir import LATEST, RunDir
from orchestrator.schedulers import Scheduler
from orchestrator.transports import Transport


def dependency_words(earlier: Sequence[Earlier], scheduler: Scheduler, transport: Transport) -> list[str]:
    """Return the words of the scheduler's option, empty where it has nothing to wait for.

    A run counts whose orchestrator is itself a batch job that this scheduler lists. Others are waited for by the later
    run's orchestrator, which looks at these again as well: a job that was cancelled would take the later one with it.

    Args:
        earlier: The runs.
        scheduler: What the orchestrator will be submitted to.
        transport: Asked which cluster this is, and what is in its queue.

    Raises:
        UserError: a run has ended otherwise than it had to.
    """
    ids: dict[str, list[str]] = {"completed": [], "ended": []}
    jobs = OwnJobs(transport)
    for item in earlier:
        state = run_state(item.run)
        try:
            is_met = item.is_met_by(state.state)
        except EarlierRunError as error:
            raise UserError(str(error)) from error
        job = state.own_job
        if is_met or job is None or job.scheduler != scheduler.kind:
            continue
        if jobs.whereabouts(job) == Whereabouts.LISTED:
            ids[item.when].append(job.job_id)
    return scheduler.dependency_option(ids["completed"], ids["ended"])


def words_of_after(entries: Sequence[After], output_dir: Path) -> list[str]:
    """Return the words that name the runs of job.after by their directories; empty where none of them is `latest`.

    Raises:
        UserError: a run is not there.
    """
    if all(entry.run != LATEST for entry in entries):
        return []
    runs = [(str(item.run.root), item.when) for item in find_earlier(entries, output_dir)]
    if len(runs) == 1:
        # Without the characters of JSON, which qsub's variables cannot hold.
        ((run, when),) = runs
        return ["--set", f"job.after.run={escape_variables(run)}", "--set", f"job.after.when={when}"]
    named = [{"run": escape_variables(run), "when": when} for run, when in runs]
    return ["--set", f"job.after={json.dumps(named)}"]


def record_queued(run: RunDir, job_id: str, scheduler: Scheduler, transport: Transport) -> None:
    """Record that a batch job in the queue will start or resume ``run``: later runs can depend on it.

    Raises:
        StorageError: it could not be recorded.
    """
    jobs = OwnJobs(transport)
    job = OwnJob(scheduler.kind, job_id, jobs.cluster(scheduler.kind), jobs.name_of(scheduler.kind, job_id))
    Ledger(run.events).append("run_queued", own_job=asdict(job))
