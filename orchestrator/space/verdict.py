"""Whether a run has surely ended: only then may anything of it be deleted. Nothing is written here."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from orchestrator.atomic import read_json
from orchestrator.compose import saved_recipe
from orchestrator.errors import OrchError
from orchestrator.history import run_state
from orchestrator.hosts import Host, open_hosts
from orchestrator.lease import living_owner
from orchestrator.ledger import Ledger
from orchestrator.own_job import OwnJob
from orchestrator.plan import job_token
from orchestrator.queued_job import OwnJobs, Whereabouts
from orchestrator.recipe.hosts import HERE
from orchestrator.records import read_heartbeat, read_status
from orchestrator.rundir import RunDir
from orchestrator.schedulers import Scheduler, Seen
from orchestrator.space.wording import DAY_S
from orchestrator.transports import LocalTransport, Transport

FRESH_PLAN_S = DAY_S
# A shared file system may show records late, and a scheduler may list a job late.
QUIET_S = 600.0
_JOB_EVENTS = ("job_intent", "job_refused", "job_abandoned")


class Fate(StrEnum):
    """What is known of a run's end."""

    ENDED = "ended"
    LIVES = "lives"
    KEPT = "kept"
    FRESH = "fresh"
    """Planned less than a day ago, and not started."""
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Verdict:
    """What is known of a run's end, and why it must stay if it must.

    Attributes:
        state: As `orch.py list` shows it; empty if it cannot be read.
    """

    fate: Fate
    why: str = ""
    state: str = ""


class Queues:
    """What batch systems say of the user's jobs; each is asked once."""

    def __init__(self) -> None:
        self._answers: dict[tuple[str, ...], dict[str, Seen] | None] = {}
        self.own_jobs = OwnJobs(LocalTransport())

    def living(self, scheduler: Scheduler, transport: Transport, run_id: str) -> list[str] | None:
        """Return the names of a run's jobs that are in the queue or run; None if the scheduler does not answer."""
        argv = scheduler.status_argv()
        key = (transport.host, *argv)
        if key not in self._answers:
            self._answers[key] = scheduler.parse_status(transport.run(argv, scheduler.command_timeout_s))
        seen = self._answers[key]
        if seen is None:
            return None
        mine = job_token(run_id, "")
        jobs = [job for job in seen.values() if job.name.startswith(mine)]
        return [job.name for job in jobs if job.has_leftovers or not job.state.is_final]


def last_activity(run: RunDir) -> float:
    """Return when the run was last planned, started, resumed or changed, in seconds since the epoch."""
    return max((_mtime(path) for path in (run.plan, run.events, run.summary)), default=0.0)


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def judge_run(run: RunDir, queues: Queues) -> Verdict:
    """Return whether ``run`` has surely ended, by its ledger, its lease, its jobs' records and the schedulers."""
    run_id = run_id_of(run)
    if run_id is None:
        return Verdict(Fate.UNKNOWN, "its plan.json is not that of a run of orch with this name")
    if run.root.lstat().st_uid != os.getuid():
        return Verdict(Fate.UNKNOWN, "it belongs to another user, whose jobs are not seen from here")
    owner = living_owner(run.lease)
    if owner is not None:
        return Verdict(Fate.LIVES, f"process {owner.pid} on {owner.host} looks after it", "running")
    try:
        state = run_state(run)
        if state.kept:
            return Verdict(Fate.KEPT, "its services are kept; `orch.py stop` ends them", state.state)
        waiting = _judge_orchestrators(run, state.batch_jobs, state.state, queues.own_jobs)
        if waiting is not None:
            return waiting
        if state.state == "planned" and time.time() - _mtime(run.plan) < FRESH_PLAN_S:
            return Verdict(Fate.FRESH, "it was planned less than a day ago", state.state)
        return _judge_jobs(run, run_id, state.state, queues)
    except (OrchError, KeyError, TypeError, AttributeError, OSError) as error:
        # Records of another version, damaged or unreadable: nobody can tell what still runs.
        return Verdict(Fate.UNKNOWN, f"it cannot be read: {str(error).splitlines()[0] if str(error) else error!r}")


def run_id_of(run: RunDir) -> str | None:
    """Return the id of a run whose plan was made for a folder of this name with the id in it; None for another."""
    plan: Any = read_json(run.plan)
    if not isinstance(plan, Mapping):
        return None
    run_id, planned_for = plan.get("run_id"), plan.get("run_dir")
    if not isinstance(run_id, str) or not isinstance(planned_for, str) or len(run_id) < 6:
        return None
    return run_id if run_id in run.root.name and Path(planned_for).name == run.root.name else None


def _judge_orchestrators(run: RunDir, jobs: Iterable[OwnJob], state: str, queues: OwnJobs) -> Verdict | None:
    """Return why a batch job that will start or resume the run keeps it; None if none does."""
    for job in jobs:
        name = f"batch job {job.job_id}, which will start or resume it,"
        match queues.whereabouts(job):
            case Whereabouts.LISTED:
                return Verdict(Fate.LIVES, f"{name} is in the queue; `orch.py stop` cancels it", state)
            case Whereabouts.UNKNOWN:
                why = "cannot be asked about from here; `orch.py stop` keeps it from the run"
                return Verdict(Fate.UNKNOWN, f"{name} {why}", state)
            case Whereabouts.GONE if time.time() - last_activity(run) < QUIET_S:
                return Verdict(Fate.UNKNOWN, f"{name} is not listed, and the run was active within ten minutes", state)
            case _:
                pass
    return None


def _judge_jobs(run: RunDir, run_id: str, state: str, queues: Queues) -> Verdict:
    jobs = _jobs(run)
    hosts = open_hosts(saved_recipe(run), run)
    names = set(jobs.values()) | _planned_hosts(run)
    unknown = names - {host.name for host in hosts}
    if unknown:
        return Verdict(Fate.UNKNOWN, f"its recipe does not describe the host {', '.join(sorted(unknown))}", state)
    for host in hosts:
        if host.name not in names:
            continue
        living = queues.living(host.scheduler, host.transport, run_id)
        where = "" if host.name == HERE else f" of {host.name}"
        if living is None:
            return Verdict(Fate.UNKNOWN, f"the scheduler{where} does not answer", state)
        if living:
            return Verdict(Fate.LIVES, f"jobs{where} have not ended: {' '.join(living[:3])}", state)
        why = _sign_of_life(run, host, [token for token, name in jobs.items() if name == host.name])
        if why:
            return Verdict(Fate.LIVES, why, state)
    return Verdict(Fate.ENDED, "", state)


def _jobs(run: RunDir) -> dict[str, str]:
    """Return the host of each job that may have been submitted, by token."""
    jobs: dict[str, str] = {}
    for event in Ledger(run.events).events(*_JOB_EVENTS):
        if event["event"] == "job_intent":
            jobs[event["token"]] = event["planned"]["host"]
        else:
            jobs.pop(event["token"], None)
    return jobs


def _planned_hosts(run: RunDir) -> set[str]:
    plan: Any = read_json(run.plan)
    trial = plan["trials"]["job"]
    return {job["host"] for job in (*plan["jobs"], *([trial] if trial else []))}


def _sign_of_life(run: RunDir, host: Host, tokens: Iterable[str]) -> str:
    """Return why a job that the scheduler does not list may live all the same; empty if none may."""
    ends = {token: read_status(run, token) for token in tokens}
    open_tokens = [token for token, record in ends.items() if record is None or not record.is_finished]
    if not open_tokens:
        return ""
    if time.time() - last_activity(run) < QUIET_S:
        return f"{open_tokens[0]} has not said how it ended, and the run was active within ten minutes"
    beats = {token: read_heartbeat(run, token) for token in open_tokens} | _beats_there(run, host, open_tokens)
    for token, at in beats.items():
        if at is not None and time.time() - at < QUIET_S:
            return f"{token} gave a sign of life within ten minutes"
    for token in open_tokens:
        record = ends[token]
        # Each machine's own jobs are known only there.
        is_here = host.name == HERE and host.scheduler.kind == "local"
        if is_here and record is not None and record.host != socket.gethostname():
            return f"{token} ran on {record.host}, which only that machine can tell of"
    return ""


def _beats_there(run: RunDir, host: Host, tokens: Iterable[str]) -> dict[str, float]:
    """Return the last signs of life that lie on another machine, by token."""
    if host.name == HERE:
        return {}
    there = {str(host.there(run.heartbeat(token))): token for token in tokens}
    beats = {}
    for path, content in host.transport.read_many(list(there)).items():
        at = _beat(content.data)
        if at is not None:
            beats[there[path]] = at
    return beats


def _beat(data: bytes | None) -> float | None:
    try:
        record = json.loads(data or b"")
    except (ValueError, RecursionError):
        return None
    at = record.get("at") if isinstance(record, dict) else None
    return float(at) if isinstance(at, (int, float)) else None
