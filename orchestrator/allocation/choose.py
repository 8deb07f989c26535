"""How a run is placed: what the recipe asks for, what there is, and what does not apply."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.allocation.parts import (
    ONE,
    fill_parts,
    find_parts,
    not_applied_within,
    outer_part,
    part_name,
    placement_problems,
    step_roles,
)
from orchestrator.errors import Problem, RecipeError
from orchestrator.recipe.document import Job
from orchestrator.recipe.infrastructure import Resources
from orchestrator.schedulers import PartitionLimits, Scheduler
from orchestrator.transports import Transport

_SIZES = ("nodes", "cpus", "mem_gb", "gpus")


def choose_placement(
    job: Job,
    resources: Resources,
    scheduler: Scheduler,
    transport: Transport,
    outer_nodes: int | None,
    notes: list[str],
) -> dict[str, Any]:
    """Return what is chosen of the fields of placement.

    Args:
        job: The recipe.
        resources: Resolved.
        scheduler: The server's.
        transport: The way to it.
        outer_nodes: How many nodes the batch job around this process has; None if there is none, or it is not used.
        notes: Gets what was found and what does not apply.

    Raises:
        RecipeError: what is asked for goes not together.
    """
    infra = job.infrastructure
    if infra.placement == ONE and scheduler.kind == "local":
        notes.append("not applicable on local: placement, its processes share one machine as it is")
        return {"placement": "separate", "allocation": ()}
    problems = placement_problems(job, resources, scheduler)
    if problems:
        raise RecipeError("recipe", problems)
    if infra.placement != ONE:
        return {}
    if outer_nodes is not None:
        return _within(job, resources, outer_nodes, notes)
    notes += [
        f"{role}: not applicable in one allocation: time, a service runs as long as the allocation"
        for role in step_roles(job, resources)
        if role not in {"server", "trial"} and getattr(resources, role).time not in {None, resources.server.time}
    ]
    if infra.allocation and all(getattr(part, size) is not None for part in infra.allocation for size in _SIZES):
        return {}
    limits = _ask_limits(scheduler, transport, notes)
    if infra.allocation:
        return {"allocation": fill_parts(job, resources, limits)}
    parts = find_parts(job, resources, scheduler, limits)
    words = "; ".join(f"{part.nodes} × ({part.cpus} CPUs, {part.gpus} GPUs) for {part_name(part)}" for part in parts)
    notes.append(f"allocation: {words}")
    return {"allocation": parts}


def _within(job: Job, resources: Resources, nodes: int, notes: list[str]) -> dict[str, Any]:
    if job.guard.max_gpu_hours is not None:
        what = "cannot be kept within a batch job, whose GPUs are held by that job and not by this run"
        remedy = "Leave it out, or run orch.py outside of the job."
        raise RecipeError("recipe", [Problem("job.guard.max_gpu_hours", what, remedy=remedy)])
    notes.append(f"allocation: the batch job around orch itself, with all that its {nodes} node(s) have")
    ignored = not_applied_within(job)
    if ignored:
        notes.append(f"not applicable within this batch job: {', '.join(ignored)}")
    return {"allocation": job.infrastructure.allocation or (outer_part(step_roles(job, resources), nodes),)}


def _ask_limits(scheduler: Scheduler, transport: Transport, notes: list[str]) -> Mapping[str, PartitionLimits]:
    argv = scheduler.limits_argv()
    limits = scheduler.parse_limits(transport.run(argv, scheduler.command_timeout_s)) if argv else None
    if limits is None:
        notes.append("allocation: how large nodes are is not known, it is taken that everything fits on one")
    return limits or {}
