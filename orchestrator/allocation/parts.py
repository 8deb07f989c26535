"""Which roles' jobs are steps of one allocation, and the parts of that allocation as the resolved recipe names them."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.allocation.shape import Demand, groups_of
from orchestrator.errors import Problem
from orchestrator.recipe.document import Job
from orchestrator.recipe.infrastructure import AllocationPart, Resources, RoleResources
from orchestrator.schedulers import PartitionLimits, Scheduler

ONE = "one_allocation"
_WHERE = "job.infrastructure"
# Pushgateway and Prometheus.
_MONITORING_JOBS = 2
_PLACES = ("partition", "account", "qos", "directives")


def step_roles(job: Job, resources: Resources) -> tuple[str, ...]:
    """Return the roles whose jobs are steps: those on the server's host, where that has a batch system.

    Args:
        job: The recipe.
        resources: Resolved.
    """
    if job.infrastructure.placement != ONE:
        return ()
    return tuple(
        role for role in type(resources).model_fields if getattr(resources, role).host == resources.server.host
    )


def find_parts(
    job: Job, resources: Resources, scheduler: Scheduler, limits: Mapping[str, PartitionLimits]
) -> tuple[AllocationPart, ...]:
    """Return the parts of the allocation in which all steps run at once, as many trials as may run at a time.

    Args:
        job: The recipe.
        resources: Resolved.
        scheduler: The server's.
        limits: What is known of its partitions.
    """
    demands = _demands(job, resources)
    return tuple(
        AllocationPart(
            roles=group.roles,
            nodes=group.resources.nodes,
            cpus=group.resources.cpus,
            mem_gb=group.resources.mem_gb or None,
            gpus=group.resources.gpus,
        )
        for group in groups_of(demands, scheduler.components_by, limits)
    )


def fill_parts(job: Job, resources: Resources, limits: Mapping[str, PartitionLimits]) -> tuple[AllocationPart, ...]:
    """Return the parts that the recipe names, with the sizes that it leaves open: large enough for their roles."""
    filled = []
    for part in job.infrastructure.allocation:
        demands = [demand for demand in _demands(job, resources) if demand.role in part.roles]
        if not demands:
            filled.append(part)
            continue
        (group,) = groups_of(demands, (), limits)
        found = {name: getattr(group.resources, name) for name in ("nodes", "cpus", "mem_gb", "gpus")}
        filled.append(
            part.model_copy(update={name: size for name, size in found.items() if getattr(part, name) is None})
        )
    return tuple(filled)


def _demands(job: Job, resources: Resources) -> list[Demand]:
    counts = {"server": 1, "client": 1, "monitoring": _MONITORING_JOBS, "trial": 0}
    if job.monitoring.mode == "off":
        counts["monitoring"] = 0
    if job.hpo is not None:
        counts["trial"] = job.hpo.parallel_trials
    roles = step_roles(job, resources)
    return [Demand(role, getattr(resources, role), counts[role]) for role in roles if counts[role]]


def outer_part(roles: tuple[str, ...], nodes: int) -> AllocationPart:
    """Return the only part of an allocation that is there already; its broker measures what it has."""
    return AllocationPart.model_validate({"roles": roles, "nodes": nodes})


def placeless(resources: RoleResources) -> RoleResources:
    """Return ``resources`` without what only a batch system could be asked for."""
    return resources.model_copy(
        update={"partition": None, "account": None, "qos": None, "gpu_type": None, "directives": ()}
    )


def not_applied_within(job: Job) -> list[str]:
    """Return the fields of a recipe that nobody is asked for where the allocation is there already."""
    fields = (*_PLACES, "gpu_type", "time")
    infra = job.infrastructure
    found = [f"infrastructure.{name}" for name in fields if getattr(infra, name)]
    for role in type(job.resources).model_fields:
        own = getattr(job.resources, role)
        # A trial's is the limit of its step.
        names = [name for name in fields if getattr(own, name) and (role, name) != ("trial", "time")]
        found += [f"resources.{role}.{name}" for name in names]
    return found


def part_resources(part: AllocationPart, resources: Resources) -> RoleResources:
    """Return what the batch system is asked for: the place of the part's first role, and the part's own sizes."""
    first: RoleResources = getattr(resources, part.roles[0])
    sizes = {name: getattr(part, name) for name in ("nodes", "cpus", "mem_gb", "gpus")}
    gpu_type = first.gpu_type if part.gpus else None
    return first.model_copy(update={**sizes, "gpu_type": gpu_type, "time": resources.server.time, "requeue": False})


def part_name(part: AllocationPart) -> str:
    """Return the name of a part, unique in its allocation."""
    return "+".join(part.roles)


def placement_problems(job: Job, resources: Resources, scheduler: Scheduler) -> list[Problem]:
    """Return why the jobs of a run cannot be steps of one allocation."""
    infra, problems = job.infrastructure, list[Problem]()
    if infra.placement != ONE:
        if infra.allocation:
            problems.append(Problem(f"{_WHERE}.allocation", "is there without placement", f"placement: {ONE}"))
        return problems
    roles = step_roles(job, resources)
    if infra.successor_lead is not None:
        problems.append(Problem(f"{_WHERE}.successor_lead", f"goes not with placement {ONE}", "one of them"))
    if job.service.replicas > 1:
        problems.append(Problem("job.service.replicas", f"goes not with placement {ONE}", "one of them"))
    if infra.requeue:
        what = f"goes not with placement {ONE}: all its services would be gone at once"
        problems.append(Problem(f"{_WHERE}.requeue", what, "false, and `orch.py resume`"))
    own_requeue = [role for role in roles if getattr(resources, role).requeue]
    if own_requeue and not infra.requeue:
        what = f"goes not with placement {ONE}: a step is not requeued by itself"
        problems += [Problem(f"job.resources.{role}.requeue", what, "false") for role in own_requeue]
    named = [role for part in infra.allocation for role in part.roles]
    unknown = sorted(set(named) - set(roles))
    if unknown:
        what = f"{', '.join(unknown)}: not on the server's host"
        problems.append(Problem(f"{_WHERE}.allocation", what, ", ".join(roles)))
    if len(named) != len(set(named)):
        problems.append(Problem(f"{_WHERE}.allocation", "a role is in two parts", "each role once"))
    if named and named[0] != "server":
        problems.append(Problem(f"{_WHERE}.allocation", f"begins with {named[0]}", "the server's part first"))
    for field in set(_PLACES) - set(scheduler.components_by):
        # Who names none takes the server's.
        own = getattr(resources.server, field)
        values = {str(value) for role in roles if (value := getattr(getattr(resources, role), field))}
        if len(values) > 1 or (values and not own):
            what = f"{', '.join(sorted(values))}: one {scheduler.kind} job has one {field}"
            problems.append(Problem(f"job.resources: {field}", what, f"the same {field} for {', '.join(roles)}"))
    return problems
