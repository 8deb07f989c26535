"""The allocation of a run that was planned on one side of a batch job and goes on on the other."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from orchestrator.allocation.broker import ALLOCATION
from orchestrator.allocation.parts import fill_parts, find_parts, outer_part, step_roles
from orchestrator.allocation.within import WITHIN, outer_nodes
from orchestrator.errors import UserError
from orchestrator.ledger import Ledger
from orchestrator.recipe.document import Recipe
from orchestrator.recipe.infrastructure import AllocationPart
from orchestrator.records import read_heartbeat, read_status
from orchestrator.rundir import RunDir
from orchestrator.truth import LOST_AFTER_S

if TYPE_CHECKING:
    from orchestrator.hosts import Host

# What resolving a recipe has found, in its provenance: the rest is its user's and stays.
FOUND = "found"


def was_submitted(run: RunDir) -> bool:
    """Return whether the allocation of a run was ever to be submitted."""
    return bool(_submissions(run))


def with_parts_for(recipe: Recipe, here: Host, environ: Mapping[str, str]) -> Recipe:
    """Return ``recipe`` with the parts of its allocation found anew; what its user gave of them stays.

    Args:
        recipe: Resolved.
        here: The server's host.
        environ: Environment of this process: it may be in the batch job that is to be the allocation.
    """
    job, nodes = recipe.job, outer_nodes(environ)
    is_found = FOUND in (recipe.provenance or {})
    if nodes is not None and is_found:
        parts: tuple[AllocationPart, ...] = (outer_part(step_roles(job, job.resources), nodes),)
    elif nodes is not None:
        parts = job.infrastructure.allocation
    else:
        argv = here.scheduler.limits_argv()
        answer = here.transport.run(argv, here.scheduler.command_timeout_s) if argv else None
        limits = (here.scheduler.parse_limits(answer) if answer is not None else None) or {}
        if is_found:
            parts = find_parts(job, job.resources, here.scheduler, limits)
        else:
            parts = fill_parts(job, job.resources, limits)
    infrastructure = job.infrastructure.model_copy(update={"allocation": parts})
    return recipe.model_copy(update={"job": job.model_copy(update={"infrastructure": infrastructure})})


def _submissions(run: RunDir) -> list[dict[str, Any]]:
    """Return the planned jobs of all submissions of the allocation, as they stand in the ledger."""
    planned = [event["planned"] for event in Ledger(run.events).events("job_intent")]
    return [job for job in planned if job["name"] == ALLOCATION]


def check_is_over(run: RunDir) -> None:
    """Make sure that the batch job which was a run's allocation has ended, looked at from outside of it.

    Raises:
        UserError: it may live: its last sign of life is not old, and it has left no last word.
    """
    planned = _submissions(run)
    if not planned or planned[-1]["host"] != WITHIN:
        return
    token = planned[-1]["token"]
    record = read_status(run, token)
    silent_s = time.time() - (read_heartbeat(run, token) or 0.0)
    if silent_s < LOST_AFTER_S and not (record is not None and record.is_finished):
        raise UserError(
            f"the batch job that was the allocation of {run.root.name} gave a sign of life {silent_s:.0f} s ago.\n"
            f"If it has ended, resume the run {LOST_AFTER_S - silent_s:.0f} s from now, or in a batch job: "
            f"`sbatch slurm_orch.sh resume {run.root.name}` (PBS: `./pbs_orch.sh resume {run.root.name}`)."
        )
