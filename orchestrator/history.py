"""Runs as their ledgers tell of them: for list, status, logs and stop."""

from __future__ import annotations

import logging
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.atomic import read_json, write_json
from orchestrator.errors import OrchError, RunNotFoundError, StorageError
from orchestrator.jobs import JobTracker
from orchestrator.ledger import Ledger
from orchestrator.plan import PlannedJob
from orchestrator.recipe import parse_recipe
from orchestrator.recipe.sections import LocalSchedulerSpec
from orchestrator.rundir import RunDir
from orchestrator.schedulers import make_scheduler
from orchestrator.transport import LocalTransport

log = logging.getLogger(__name__)
# The orchestrator looks at its run every half second and renews its lease every 30 s.
ORCHESTRATOR_SILENT_S = 100.0
STOP_PATIENCE_S = 120.0


@dataclass(frozen=True)
class RunState:
    """A run in one line.

    Attributes:
        state: planned, running, left (the orchestrator ended before the run), completed, failed, interrupted, stopped.
        started_at: Seconds since the epoch, or None if it was only planned.
        kept: Whether its services were left up.
    """

    run: RunDir
    name: str
    scheduler: str
    state: str
    started_at: float | None
    finished_at: float | None
    kept: bool


def run_state(run: RunDir) -> RunState:
    """Return the state of ``run`` as its ledger and lease tell it.

    Raises:
        RunNotFoundError: its plan cannot be read.
    """
    plan = _plan(run)
    recipe = read_json(run.recipe) or {}
    state, started, finished, kept = "planned", None, None, False
    for event in Ledger(run.events).events("run_started", "run_finished", "orchestrator_left", "run_stopped"):
        match event["event"]:
            case "run_started":
                state, started = "running", event["at"]
            case "run_finished":
                state, finished, kept = event["state"], event["at"], bool(event.get("kept"))
            case "run_stopped":
                kept = False
                if state in {"running", "left"}:
                    state, finished = "stopped", event["at"]
            case _:
                state = "left"
    if state == "running" and not is_orchestrated(run):
        state = "left"
    name = recipe.get("job", {}).get("name", run.root.name)
    return RunState(run, name, plan["scheduler"], state, started, finished, kept)


def is_orchestrated(run: RunDir) -> bool:
    """Return whether an orchestrator looks after ``run``: its process lives here, or it renewed the lease lately."""
    lease = read_json(run.lease)
    if not isinstance(lease, dict) or lease.get("keep"):
        return False
    host, _, pid = str(lease.get("owner", "")).rpartition(":")
    if host == socket.gethostname() and pid.isdigit():
        return Path(f"/proc/{pid}").exists()
    return time.time() - float(lease.get("renewed_at", 0)) < ORCHESTRATOR_SILENT_S


def tracker_of(run: RunDir) -> JobTracker:
    """Return a tracker with every job that the ledger of ``run`` tells of; nothing is asked yet.

    Raises:
        RunNotFoundError: the run's files cannot be read.
    """
    recipe = parse_recipe(read_json(run.recipe), str(run.recipe))
    ledger = Ledger(run.events)
    scheduler = make_scheduler(recipe.job.scheduler or LocalSchedulerSpec())
    tracker = JobTracker(run, ledger, scheduler, LocalTransport(), recipe.job.polling)
    intents: dict[str, PlannedJob] = {}
    for event in ledger.events("job_intent", "job_submitted", "job_refused", "cancel"):
        if event["event"] == "cancel":
            tracker.mark_cancelled(event["job_ids"])
            continue
        token = event["token"]
        if event["event"] == "job_intent":
            intents[token] = _planned(run, event["planned"])
        elif event["event"] == "job_refused":
            intents.pop(token, None)
        elif token in intents:
            tracker.adopt(intents.pop(token), event["job_id"], event["at"])
    for planned in intents.values():
        tracker.intend(planned)
    return tracker


def stop_run(run: RunDir) -> list[str]:
    """End every job of ``run`` that still lives, by id; return their names.

    A live orchestrator is asked to end its run first, so that it keeps its results.

    Raises:
        OrchError: some jobs have not ended.
    """
    tracker = tracker_of(run)
    tracker.adopt_intended()
    tracker.poll()
    names = [job.name for job in tracker.jobs if job.must_be_ended]
    try:
        write_json(run.stop_request, {"at": time.time()})
    except StorageError as error:
        # Without the request a live orchestrator sees its jobs end instead.
        log.warning("%s", error)
    deadline = time.monotonic() + STOP_PATIENCE_S
    while is_orchestrated(run) and run_state(run).state == "running" and time.monotonic() < deadline:
        time.sleep(0.5)
    tracker = tracker_of(run)
    tracker.adopt_intended()
    tracker.poll()
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
    except StorageError as error:
        log.warning("the jobs have ended, but that could not be recorded: %s", error)
    return names


def _plan(run: RunDir) -> dict[str, Any]:
    plan = read_json(run.plan)
    if not isinstance(plan, dict):
        raise RunNotFoundError(f"{run.plan} cannot be read: it is not a whole plan")
    return plan


def _planned(run: RunDir, data: dict[str, Any]) -> PlannedJob:
    try:
        return PlannedJob.from_json(run, data)
    except (KeyError, OSError) as error:
        raise RunNotFoundError(f"the scripts of {run.root} cannot be read: {error}") from error
