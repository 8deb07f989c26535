"""A run whose orchestrator is itself in a batch job: that job is the allocation, and nothing is submitted."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from orchestrator.errors import UserError
from orchestrator.schedulers import JobState, Seen, Submission
from orchestrator.schedulers.local import LocalScheduler
from orchestrator.transports import Answer

WITHIN = "@within"
# slurm_orch.sh and pbs_orch.sh keep the batch system's variables under this prefix, away from what is submitted.
PREFIX = "ORCH_OUTER_"


class WithinScheduler(LocalScheduler):
    """The allocation as a process group of the batch job's first node: it ends with that job, whatever still runs."""

    template = "schedulers/step.j2"
    default_bind = "0.0.0.0"  # noqa: S104 - services of one run meet across nodes

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        """Make the backend.

        Args:
            environ: Tells which batch job this process is in.
        """
        super().__init__()
        self._outer = outer_id(environ)
        # What is not of this batch job is over. Seen from a login node it is a process of another machine.
        self.is_absence_final = self._outer is not None

    def submit_argv(self, submission: Submission) -> list[str]:
        *argv, script = super().submit_argv(submission)
        return [*argv, *(["--within", self._outer] if self._outer else []), script]

    def parse_status(self, answer: Answer) -> dict[str, Seen] | None:
        seen = super().parse_status(answer)
        if seen is None:
            return None
        found = {}
        for line in map(json.loads, answer.stdout.splitlines()):
            item, outer = seen[line["id"]], line.get("within")
            if self._outer is not None and outer not in {None, self._outer}:
                reason = f"it was part of batch job {outer}, and this is {self._outer}"
                found[item.job_id] = replace(item, state=JobState.LOST, reason=reason)
            elif item.state != JobState.UNKNOWN:
                found[item.job_id] = item
        return found


def outer_id(environ: Mapping[str, str]) -> str | None:
    """Return the id of the batch job around this process; None if there is none."""
    return environ.get(f"{PREFIX}SLURM_JOB_ID") or environ.get(f"{PREFIX}PBS_JOBID")


def refuse_keep(allocation_host: str | None) -> None:
    """Refuse to leave services up that end with the batch job around them.

    Args:
        allocation_host: Where the run's allocation is, or None if it has none.

    Raises:
        UserError: the allocation is that job.
    """
    if allocation_host == WITHIN:
        raise UserError(
            "--keep: the run's services are steps of the batch job that orch itself is, and end with it.\n"
            "Leave out --keep, or start the run outside of a batch job, where its allocation is a job of its own."
        )


def how_to_go_on(environ: Mapping[str, str], run: str) -> str:
    """Return what becomes of a run that is left within its batch job, and the command that goes on with it."""
    command = f"sbatch slurm_orch.sh resume {run}"
    if not environ.get(f"{PREFIX}SLURM_JOB_ID"):
        command = f"./pbs_orch.sh resume {run}"
    return f"its services end with this batch job; `{command}` goes on with what is missing"


def outer_nodes(environ: Mapping[str, str]) -> int | None:
    """Return how many nodes the batch job around this process has; None if there is none."""
    nodes = environ.get(f"{PREFIX}SLURM_JOB_NUM_NODES", "")
    if nodes.isdigit():
        return int(nodes)
    try:
        # A host has a line for each MPI rank (pbs_resources(7B), mpiprocs).
        return len(set(Path(environ[f"{PREFIX}PBS_NODEFILE"]).read_text(encoding="utf-8").split()))
    except (KeyError, OSError):
        return None
