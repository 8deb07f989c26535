"""Whether and how often a serving job is followed by successors (``job.infrastructure.successor_lead``)."""

from __future__ import annotations

import math

from orchestrator.errors import Problem
from orchestrator.recipe.base import time_limit_s
from orchestrator.recipe.infrastructure import RoleResources

_WHERE = "job.infrastructure.successor_lead"


def lead_problems(
    lead: str | None, server: RoleResources, client: RoleResources, scheduler: str, replicas: int = 1
) -> list[Problem]:
    """Return why a serving job cannot have a successor.

    Args:
        lead: How long before its end the successor is submitted, as in the recipe.
        server: What the serving job gets.
        client: What the client's job gets: it has no successor, and the run ends with it.
        scheduler: Kind of its scheduler; on ``local`` wall times are not applicable.
        replicas: How many serving jobs there are.
    """
    if lead is None or scheduler == "local":
        return []
    if replicas > 1:
        return [Problem(_WHERE, "goes not with service.replicas: one that has ended is replaced", "one of them")]
    if server.requeue:
        return [Problem(_WHERE, "goes not with requeue: the job would come back beside its successor", "one of them")]
    if server.time is None:
        return [Problem(_WHERE, "needs a wall time to count back from", remedy="Set job.infrastructure.time.")]
    if time_limit_s(lead) >= time_limit_s(server.time):
        return [Problem(_WHERE, f"is {lead}, and the wall time is {server.time}", "less than the wall time")]
    if client.time is not None and time_limit_s(client.time) <= time_limit_s(server.time):
        what = f"the client's job ends after {client.time}, as the first server does, and the run with it"
        return [Problem(_WHERE, what, remedy="Set job.resources.client.time to what the whole run may need.")]
    return []


def jobs_needed(needs_s: float, limit_s: float | None, lead: str | None) -> int:
    """Return how many serving jobs follow each other to serve for ``needs_s`` seconds."""
    if lead is None or limit_s is None or needs_s <= limit_s:
        return 1
    return 1 + math.ceil((needs_s - limit_s) / (limit_s - time_limit_s(lead)))
