"""The commands that look at runs or end them: list, status, logs, stop, report."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from orchestrator.atomic import read_json
from orchestrator.compose import saved_recipe
from orchestrator.errors import NoConnectionError, RemoteFileError, RunNotFoundError, UserError
from orchestrator.history import RunState, run_state, stop_run, tracker_of
from orchestrator.hosts import Host, open_hosts
from orchestrator.jobs import JobTracker
from orchestrator.logs import CHUNK_BYTES, LOOK_EVERY_S, ReadLogs, follow, log_candidates, log_paths
from orchestrator.progress import elapsed
from orchestrator.queued_job import OwnJobs, Whereabouts
from orchestrator.recipe.hosts import HERE
from orchestrator.report import write_report
from orchestrator.rundir import RunDir, iter_runs
from orchestrator.summary import headline
from orchestrator.transports import FileContent, LocalTransport
from orchestrator.transports.ways import can_ask

# One command over SSH each time.
LOOK_THERE_EVERY_S = 1.0


def list_runs(output_dir: Path, as_json: bool) -> int:
    """Print one line for each run, oldest first."""
    states = []
    queues = OwnJobs(LocalTransport())
    for run in iter_runs(output_dir):
        try:
            states.append(run_state(run))
        except RunNotFoundError as error:
            print(f"orch: left out: {error}", file=sys.stderr)  # noqa: T201
    if as_json:
        _print_json({"runs": [_state_json(state, queues) for state in states]})
        return 0
    if not states:
        print(f"No runs in {output_dir}.")  # noqa: T201
        return 0
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("run", "scheduler", "state", "started", "took"):
        table.add_column(name, no_wrap=name != "run", overflow="fold")
    for state in states:
        started = time.strftime("%m-%d %H:%M", time.localtime(state.started_at)) if state.started_at else "-"
        table.add_row(state.run.root.name, state.scheduler, _short_state(state, queues), started, _took(state))
    Console(markup=False).print(table)
    return 0


def show_status(run: RunDir, as_json: bool) -> int:
    """Print the state of a run and of each of its jobs."""
    state, tracker = run_state(run), tracker_of(run)
    tracker.poll()
    queues = OwnJobs(LocalTransport())
    jobs = [
        {
            "name": job.name,
            "state": job.phase,
            "job_id": job.job_id,
            "node": job.node,
            "why": job.why,
            "url": _url(run, job.name),
        }
        for job in tracker.jobs
    ]
    if as_json:
        _print_json({**_state_json(state, queues), "jobs": jobs})
        return 0
    console = Console(markup=False)
    console.print(f"{run.root}", soft_wrap=True)
    console.print(f"{_state_text(state, queues)} on {state.scheduler}, {_took(state)}")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("job", "state", "id", "node"):
        table.add_column(name, no_wrap=True)
    table.add_column("where, or why", overflow="fold")
    for job in jobs:
        table.add_row(job["name"], job["state"], job["job_id"], job["node"] or "-", job["url"] or job["why"] or "")
    if jobs:
        console.print(table)
    return 0


def show_logs(run: RunDir, service: str | None, follow_on: bool) -> int:
    """Print the logs of one service (of the orchestrator, if None); keep on printing if asked to.

    Raises:
        UserError: the run has no such service.
    """
    hosts = open_hosts(saved_recipe(run), run, only_looks=True)
    tracker = tracker_of(run, hosts=hosts)
    if service is not None and service not in tracker:
        raise UserError(
            f"the run has no job '{service}'.\nIts jobs: {', '.join(job.name for job in tracker.jobs) or 'none'}."
        )
    host, paths, poll_s, is_whole = hosts[HERE], [run.orchestrator_log], LOOK_EVERY_S, False
    if service is not None:
        job = tracker[service]
        paths = log_paths(run, service, job.job_id)
        is_elsewhere = hosts[job.planned.host].there(run.logs) != run.logs
        # The logs of a job elsewhere are brought here when it has ended.
        is_whole = is_elsewhere and any(path.exists() for path in paths)
        if is_elsewhere and not is_whole:
            host, poll_s = hosts[job.planned.host], LOOK_THERE_EVERY_S
            paths = log_candidates(run, service, job.job_id)

    try:
        host.transport.open(interactive=can_ask())
    except NoConnectionError:
        if not follow_on:
            raise

    def is_over() -> bool:
        return is_whole or not follow_on or _has_ended(run, tracker, service)

    try:
        for text in follow(paths, _reader(host, follow_on), is_over, poll_s):
            sys.stdout.write(text)
            sys.stdout.flush()
    except (KeyboardInterrupt, BrokenPipeError):
        return 130
    return 0


def _reader(host: Host, follow_on: bool) -> ReadLogs:
    """Return what reads logs where they are written; a connection that is cut is waited for, if they are followed.

    Its ``read`` raises TransportError for what does not mend itself, such as a refused login.
    """

    def read(starts: Mapping[Path, int]) -> Mapping[Path, FileContent] | None:
        try:
            found = host.read_growing(starts, CHUNK_BYTES)
        except NoConnectionError:
            if not follow_on:
                raise
            return None
        for path, content in found.items():
            if content.problem is not None:
                raise RemoteFileError(host.transport.host, str(host.there(path)), content.problem)
        return found

    return read


def stop(run: RunDir, as_json: bool) -> int:
    """End every job of a run that still lives."""
    names = stop_run(run)
    if as_json:
        _print_json({"run_dir": str(run.root), "stopped": names})
    else:
        print(f"Stopped: {', '.join(names)}." if names else "No job of this run was alive.")  # noqa: T201
    return 0


def show_report(run: RunDir, as_json: bool) -> int:
    """Write the report of a finished run anew; print its path and the main figures.

    Raises:
        RunNotFoundError: the run has no summary yet.
    """
    summary = read_json(run.summary)
    if not isinstance(summary, dict):
        name, state = run.root.name, run_state(run).state
        remedy = {
            "running": f"Look with `orch.py status {name}`.",
            "planned": f"Start it with `orch.py resume {name}`.",
        }.get(state, f"Go on with it with `orch.py resume {name}`, or end it with `orch.py stop {name}`.")
        raise RunNotFoundError(f"{name} has no summary yet, as it is {state}.\n{remedy}")
    path = write_report(run)
    if as_json:
        _print_json({**summary, "report": str(path)})
    else:
        print("\n".join([*headline(summary), f"Report: {path}"]))  # noqa: T201
    return 0


def _has_ended(run: RunDir, tracker: JobTracker, service: str | None) -> bool:
    if service is None:
        return run_state(run).state != "running"
    tracker.poll()
    return tracker[service].state.is_final


def _url(run: RunDir, service: str) -> str | None:
    record = read_json(run.endpoint(service))
    return record.get("url") if isinstance(record, dict) else None


def _state_text(state: RunState, queues: OwnJobs) -> str:
    if state.waits_for:
        return f"{state.state}, waiting for {', '.join(Path(root).name for root in state.waits_for)}"
    if state.own_job is not None and state.state != "running":
        job_id = state.own_job.job_id
        told = {
            Whereabouts.LISTED: f"submitted as batch job {job_id}",
            Whereabouts.GONE: f"batch job {job_id} is gone from the queue",
            Whereabouts.UNKNOWN: f"submitted as batch job {job_id}, which cannot be asked about now",
        }
        return f"{state.state}, {told[queues.whereabouts(state.own_job)]}"
    return f"{state.state}, services kept" if state.kept else state.state


def _short_state(state: RunState, queues: OwnJobs) -> str:
    """Return _state_text with ids in place of runs' names, which would take the room of the other columns."""
    if state.waits_for:
        plans = [(root, read_json(RunDir(Path(root)).plan)) for root in state.waits_for]
        ids = [plan["run_id"] if isinstance(plan, dict) else Path(root).name for root, plan in plans]
        return f"waiting for {', '.join(ids)}"
    if state.own_job is not None and state.state != "running":
        told = {Whereabouts.LISTED: "", Whereabouts.GONE: " gone", Whereabouts.UNKNOWN: "?"}
        return f"{state.state}, job {state.own_job.job_id}{told[queues.whereabouts(state.own_job)]}"
    return _state_text(state, queues)


def _took(state: RunState) -> str:
    if state.started_at is None:
        return "not started"
    if state.finished_at is None and state.state != "running":
        return "-"
    return elapsed((state.finished_at or time.time()) - state.started_at)


def _state_json(state: RunState, queues: OwnJobs) -> dict[str, Any]:
    job = state.own_job if state.state != "running" else None
    return {
        "run_dir": str(state.run.root),
        "name": state.name,
        "scheduler": state.scheduler,
        "state": state.state,
        "started_at": state.started_at,
        "finished_at": state.finished_at,
        "kept": state.kept,
        "waits_for": list(state.waits_for),
        "queued_as": {"job_id": job.job_id, "whereabouts": queues.whereabouts(job)} if job else None,
    }


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))  # noqa: T201
