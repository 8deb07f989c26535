"""Runs as their ledgers tell of them: for list, status, logs and stop."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from orchestrator.atomic import read_json, write_json
from orchestrator.compose import saved_plan, saved_recipe
from orchestrator.errors import OrchError, RunBusyError, RunNotFoundError, StorageError
from orchestrator.hosts import Hosts, open_hosts
from orchestrator.jobs import JobTracker
from orchestrator.lease import Lease, living_owner
from orchestrator.ledger import Ledger
from orchestrator.life import LIFE_EVENTS, Life
from orchestrator.own_job import OwnJob
from orchestrator.plan import PlannedJob
from orchestrator.queued_job import OwnJobs
from orchestrator.report import write_report
from orchestrator.rundir import RunDir
from orchestrator.summary import Outcome, summarise
from orchestrator.transports import LocalTransport

log = logging.getLogger(__name__)
STOP_PATIENCE_S = 120.0
_JOB_EVENTS = (
    "job_intent", "job_submitted", "job_refused", "job_abandoned", "job_handed_over", "successor_dropped", "cancel",
)  # fmt: skip


@dataclass(frozen=True)
class RunState:
    """A run in one line.

    Attributes:
        state: planned, running, left (the orchestrator ended before the run), completed, failed, interrupted, stopped.
        started_at: Seconds since the epoch, or None if it was only planned.
        kept: Whether its services were left up.
        resumed: How many times it was resumed.
        waits_for: Directories of the runs that it waits for now (job.after).
        has_waited: Whether it need not wait for any run any more.
        own_job: The batch job that its orchestrator is, or will be where that is in the queue; or None.
        batch_jobs: All batch jobs that may start or resume it: those that were submitted to and have not begun, and
            where it is left, its last orchestrator's, which the scheduler may start again.
        withdrawn: Batch jobs that `orch.py stop` came after: they are to touch nothing when they start.
    """

    run: RunDir
    name: str
    scheduler: str
    state: str
    started_at: float | None
    finished_at: float | None
    kept: bool
    resumed: int
    waits_for: tuple[str, ...]
    has_waited: bool
    own_job: OwnJob | None
    batch_jobs: tuple[OwnJob, ...]
    withdrawn: frozenset[OwnJob]


def run_state(run: RunDir) -> RunState:
    """Return the state of ``run`` as its ledger and lease tell it.

    Raises:
        RunNotFoundError: its plan cannot be read.
    """
    plan = _plan(run)
    recipe = read_json(run.recipe) or {}
    # Asked first: an orchestrator that ends has written so before it lets go.
    is_alive = is_orchestrated(run)
    life = Life()
    for event in Ledger(run.events).events(*LIFE_EVENTS):
        life.take(event)
    is_running = life.state == "running" and is_alive
    state = "left" if life.state == "running" and not is_alive else life.state
    return RunState(
        run=run,
        name=recipe.get("job", {}).get("name", run.root.name),
        scheduler=plan["scheduler"],
        state=state,
        started_at=life.started_at,
        finished_at=life.finished_at,
        kept=life.kept,
        resumed=life.resumed,
        waits_for=life.waits_for if is_running else (),
        has_waited=life.has_waited,
        own_job=life.own_job if is_running else life.queued_as,
        batch_jobs=(*life.queued, *([life.own_job] if state == "left" and life.own_job else [])),
        withdrawn=life.withdrawn,
    )


def is_orchestrated(run: RunDir) -> bool:
    """Return whether an orchestrator looks after ``run``: its process lives here, or it renewed the lease lately."""
    return living_owner(run.lease) is not None


def tracker_of(run: RunDir, ledger: Ledger | None = None, hosts: Hosts | None = None) -> JobTracker:
    """Return a tracker with every job that the ledger of ``run`` tells of; nothing is asked yet.

    Args:
        run: The run.
        ledger: Where what happens is recorded; None for a tracker that only looks.
        hosts: Where its jobs run, opened with ``only_looks``; opened here if not given.

    Raises:
        RunNotFoundError: the run's files cannot be read.
    """
    recipe = saved_recipe(run)
    tracker = JobTracker(run, ledger, hosts or open_hosts(recipe, run, only_looks=True), recipe.job.polling)
    replay(run, tracker)
    return tracker


def replay(run: RunDir, tracker: JobTracker) -> None:
    """Tell ``tracker`` of every job that the ledger of ``run`` tells of.

    Raises:
        RunNotFoundError: scripts of the run cannot be read.
    """
    for event in Ledger(run.events).events(*_JOB_EVENTS):
        match event["event"]:
            case "cancel":
                tracker.mark_cancelled(event["tokens"])
            case "job_intent":
                is_successor = event.get("is_successor", False)
                tracker.intend(_planned(run, event["planned"]), event["at"], is_successor)
            case "job_submitted":
                planned = tracker.intended(event["token"])
                if planned is not None:
                    tracker.adopt(planned, event["job_id"], event["at"])
            case "job_handed_over" | "successor_dropped" as what:
                tracker.replay_succession(event["job"], event["token"], what == "job_handed_over")
            case _:
                tracker.forget(event["token"])


def stop_run(run: RunDir) -> list[str]:
    """End every job of ``run`` that still lives, by id, orchestrators in a queue included; return their names.

    A live orchestrator is asked to end its run first, so that it keeps its results.

    Raises:
        OrchError: some jobs have not ended, or the orchestrator lives on.
    """
    observer = tracker_of(run)
    observer.poll()
    cancelled, problems = OwnJobs(LocalTransport()).cancel(run_state(run).batch_jobs)
    names = [job.name for job in observer.jobs if job.must_be_ended]
    names += [f"orchestrator (batch job {job.job_id})" for job in cancelled]
    try:
        write_json(run.stop_request, {"at": time.time()})
    except StorageError as error:
        # A live orchestrator does not hear of it then, which is told when the patience with it ends.
        log.warning("%s", error)
    with _kept_from_others(run):
        _end_jobs(run, names)
    if problems:
        raise OrchError(
            "the run is stopped, but an orchestrator of it may still be in a queue:\n"
            + "\n".join(problems)
            + "\nIt will refuse to go on with the run when it starts; cancel it by hand to be rid of it."
        )
    return names


@contextmanager
def _kept_from_others(run: RunDir) -> Iterator[None]:
    """Let no ``resume`` begin meanwhile, as soon as the orchestrator that lives has obeyed.

    Raises:
        OrchError: it has not: nobody is to work beside it.
    """
    lease = Lease(run.lease)
    deadline = time.monotonic() + STOP_PATIENCE_S
    try:
        while not _is_locked(run, lease, time.monotonic() >= deadline):
            time.sleep(0.5)
        yield
    finally:
        lease.unlock()


def _is_locked(run: RunDir, lease: Lease, is_last_try: bool) -> bool:
    """Return whether the run's jobs may be ended now: nobody looks after it, or nobody who lives."""
    try:
        lease.lock()
    except RunBusyError as error:
        if not is_last_try:
            return False
        owner = living_owner(run.lease)
        if owner is not None:
            raise OrchError(
                f"process {owner.pid} on {owner.host} looks after {run.root.name} and has not stopped it within "
                f"{STOP_PATIENCE_S:.0f} s: its jobs were left alone.\n"
                "It will as soon as it goes on. If it hangs, end that process, and say `orch.py stop` once more."
            ) from error
        log.warning("%s", error)
    except StorageError as error:
        log.warning("%s", error)
    return True


def _end_jobs(run: RunDir, names: list[str]) -> list[str]:
    """End every job that still lives, and record it; return ``names`` with those that were found on the way.

    Raises:
        OrchError: some jobs have not ended.
    """
    has_ended_itself = run_state(run).state not in {"running", "left"}
    tracker = tracker_of(run, Ledger(run.events))
    tracker.adopt_intended()
    tracker.poll()
    names += [job.name for job in tracker.jobs if job.must_be_ended and job.name not in names]
    tracker.cancel(tracker.jobs)
    if tracker.open_intents:
        raise OrchError(
            "the scheduler does not answer, and whether these jobs were submitted is not known: "
            f"{' '.join(tracker.open_intents)}\nTry again later, or look for these names in the queue."
        )
    left = tracker.wait_for_end(STOP_PATIENCE_S)
    if left:
        raise OrchError(f"these jobs have not ended: {' '.join(job.job_id for job in left)}")
    try:
        Ledger(run.events).append("run_stopped", jobs=names)
        if not has_ended_itself:
            _summarise_stopped(run, tracker)
    except StorageError as error:
        log.warning("the jobs have ended, but that could not be recorded: %s", error)
    return names


def _summarise_stopped(run: RunDir, tracker: JobTracker) -> None:
    """Write the summary that the run's orchestrator did not live to write."""
    state = run_state(run)
    if state.started_at is None:
        return
    outcome = Outcome(
        state="stopped",
        error="its orchestrator ended before the run did; `orch.py stop` ended its jobs",
        started_at=state.started_at,
        finished_at=state.finished_at,
        resumed=state.resumed,
        stages=saved_stages(run),
    )
    write_json(run.summary, summarise(saved_recipe(run), saved_plan(run), outcome, tracker.jobs))
    write_report(run)


def saved_stages(run: RunDir) -> dict[str, dict[str, Any]]:
    """Return the figures of the stages that were completed, by name."""
    found = {path.stem: read_json(path) for path in sorted(run.stages.glob("*.json"))}
    return {name: figures for name, figures in found.items() if isinstance(figures, dict)}


def _plan(run: RunDir) -> dict[str, Any]:
    plan = read_json(run.plan)
    if not isinstance(plan, dict):
        raise RunNotFoundError(f"{run.plan} cannot be read: it is not a whole plan")
    return plan


def _planned(run: RunDir, data: dict[str, Any]) -> PlannedJob:
    try:
        return PlannedJob.from_json(run, data)
    except (KeyError, ValueError, OSError) as error:
        raise RunNotFoundError(f"the scripts of {run.root} cannot be read: {error}") from error
