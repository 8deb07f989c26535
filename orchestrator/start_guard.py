"""What an orchestrator that is a batch job must not begin with: it starts long after its words were given, or twice."""

from __future__ import annotations

import os
from pathlib import Path

from orchestrator.compose import Request, load
from orchestrator.errors import UserError
from orchestrator.history import RunState
from orchestrator.ledger import Ledger
from orchestrator.own_job import RESTARTS, OwnJob
from orchestrator.rundir import LATEST, RunDir, iter_runs

_LATEST = (
    "in a batch job `latest` is what is the latest run when the job starts, not when it was submitted.\n"
    "Name the run, or let ./slurm_orch.sh or ./pbs_orch.sh submit itself: it puts the run's directory in its place."
)


def check_start(request: Request, output_dir: Path) -> None:
    """Refuse a recipe whose run this batch job has begun before, or whose job.after means another run by now.

    Raises:
        UserError: Slurm has started the job again, or job.after names `latest`.
    """
    own_job = OwnJob.of_this_process(os.environ)
    restarts = os.environ.get(RESTARTS, "")
    if restarts.isdecimal() and int(restarts) > 0:
        run = None if own_job is None else _begun_by(own_job, output_dir)
        raise UserError(
            f"Slurm has started this batch job again (restart {restarts}): a second run of the recipe would begin.\n"
            + (
                f"The first one is {run.root}: go on with it with `./slurm_orch.sh resume {run.root}`."
                if run
                else f"Go on with the first one, if it is in `orch.py list --output-dir {output_dir}`, or submit anew."
            )
        )
    if own_job is not None and any(entry.run == LATEST for entry in load(request)[0].job.after):
        raise UserError(f"job.after: {_LATEST}")


def check_resume_name(name: str) -> None:
    """Refuse to resume ``latest`` in a batch job.

    Raises:
        UserError: this is one, and ``name`` is `latest`.
    """
    if name == LATEST and OwnJob.of_this_process(os.environ) is not None:
        raise UserError(_LATEST)


def check_not_withdrawn(past: RunState) -> None:
    """Refuse to start or resume a run that was stopped after this batch job had been submitted for it.

    Raises:
        UserError: it was.
    """
    own_job = OwnJob.of_this_process(os.environ)
    if own_job is not None and any(own_job.may_be(job) for job in past.withdrawn):
        name = past.run.root.name
        raise UserError(
            f"{name} was stopped after batch job {own_job.job_id} had been submitted for it: nothing was started.\n"
            f"`./slurm_orch.sh resume {name}`, or `./pbs_orch.sh`, submits it anew."
        )


def _begun_by(job: OwnJob, output_dir: Path) -> RunDir | None:
    for run in reversed(list(iter_runs(output_dir))):
        for event in Ledger(run.events).events("run_started", "run_resumed"):
            begun_by = OwnJob.from_json(event.get("own_job"))
            if begun_by is not None and begun_by.may_be(job):
                return run
    return None
