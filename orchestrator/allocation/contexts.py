"""What steps of an allocation are planned with, beside what the allocation itself is planned with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from orchestrator.allocation.parts import placeless, step_roles
from orchestrator.allocation.within import WITHIN, outer_nodes
from orchestrator.recipe.hosts import STEPS
from orchestrator.service import PlanContext, Role


def in_one_allocation(contexts: Mapping[Role, PlanContext], environ: Mapping[str, str]) -> dict[Role, PlanContext]:
    """Return ``contexts`` with those of steps in their place, and one for the allocation, where there is one.

    Args:
        contexts: As for jobs of their own.
        environ: Environment of this process: it may be in the batch job that is to be the allocation.
    """
    server = contexts["server"]
    job = server.recipe.job
    found = dict(contexts)
    if not job.infrastructure.allocation:
        return found
    roles = set(step_roles(job, job.resources))
    is_within = server.is_here and outer_nodes(environ) is not None
    for role, context in contexts.items():
        if role in roles:
            found[role] = _of_step(context, role, is_within)
    found["allocation"] = replace(server, host=WITHIN) if is_within else server
    return found


def _of_step(context: PlanContext, role: Role, is_within: bool) -> PlanContext:
    """Return the context of a step; a service lives as long as the allocation, and none is requeued by itself."""
    recipe = context.recipe
    resources = recipe.job.resources
    own = getattr(resources, role)
    changes = {"requeue": None} if role == "trial" else {"requeue": None, "time": None}
    own = (placeless(own) if is_within else own).model_copy(update=changes)
    resources = resources.model_copy(update={role: own})
    view = recipe.model_copy(update={"job": recipe.job.model_copy(update={"resources": resources})})
    return replace(context, recipe=view, host=STEPS)
