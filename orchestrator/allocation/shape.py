"""How large the one allocation of a run must be for all its services and trials."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from orchestrator.recipe.infrastructure import RoleResources
from orchestrator.schedulers import PartitionLimits


@dataclass(frozen=True)
class Share:
    """CPU cores, memory in GB and GPUs of one node; infinite where nobody knows."""

    cpus: float = 0
    mem_gb: float = 0
    gpus: float = 0

    def plus(self, other: Share) -> Share:
        """Return both together."""
        return Share(self.cpus + other.cpus, self.mem_gb + other.mem_gb, self.gpus + other.gpus)

    def fits(self, room: Share) -> bool:
        """Return whether it is within ``room``."""
        return self.cpus <= room.cpus and self.mem_gb <= room.mem_gb and self.gpus <= room.gpus

    def widest(self, other: Share) -> Share:
        """Return the larger of each."""
        return Share(max(self.cpus, other.cpus), max(self.mem_gb, other.mem_gb), max(self.gpus, other.gpus))


@dataclass(frozen=True)
class Demand:
    """What so many equal jobs of one role need at once.

    Attributes:
        count: How many of them run at the same time.
    """

    role: str
    resources: RoleResources
    count: int = 1

    @property
    def share(self) -> Share:
        """What one of them takes of each of its nodes."""
        wants = self.resources
        return Share(wants.cpus or 1, wants.mem_gb or 0.0, wants.gpus or 0)


@dataclass(frozen=True)
class Group:
    """Equal nodes of the allocation: the whole job, or one component of a heterogeneous one.

    Attributes:
        name: Unique in the allocation.
        roles: Whose steps run here.
        resources: What the batch system is asked for; its nodes are those of the group.
    """

    name: str
    roles: tuple[str, ...]
    resources: RoleResources


@dataclass
class _Node:
    """One node while jobs are being put on nodes."""

    capacity: Share
    used: Share = field(default_factory=Share)

    def has_room(self, share: Share) -> bool:
        """Return whether a share fits; an empty node takes anything: the batch system has the last word."""
        return self.used == Share() or self.used.plus(share).fits(self.capacity)


def groups_of(
    demands: Sequence[Demand], splits_by: Sequence[str], limits: Mapping[str, PartitionLimits]
) -> tuple[Group, ...]:
    """Return the parts of an allocation in which all ``demands`` run at once.

    Args:
        demands: The serving job's first.
        splits_by: Fields of RoleResources in which parts of one job may differ in this batch system.
        limits: What is known of partitions; a node of others is taken to be large enough.
    """
    parts: list[list[Demand]] = []
    for demand in demands:
        part = next((part for part in parts if _goes_with(demand, part[0], splits_by)), None)
        if part is None:
            parts.append([demand])
        else:
            part.append(demand)
    groups = []
    for part in parts:
        first = part[0].resources
        nodes, share = _pack(part, _capacity(limits.get(first.partition or "")))
        asked = first.model_copy(
            update={"nodes": nodes, "cpus": int(share.cpus), "mem_gb": share.mem_gb, "gpus": int(share.gpus)}
        )
        roles = tuple(dict.fromkeys(demand.role for demand in part))
        groups.append(Group("+".join(roles), roles, asked))
    return tuple(groups)


def _goes_with(demand: Demand, first: Demand, splits_by: Sequence[str]) -> bool:
    """Return whether a demand is met on nodes like those of ``first``; whoever names no GPU takes any."""
    for name in splits_by:
        wanted, there = getattr(demand.resources, name), getattr(first.resources, name)
        if wanted != there and not (name == "gpu_type" and wanted is None):
            return False
    return True


def _capacity(limits: PartitionLimits | None) -> Share:
    known = limits or PartitionLimits()
    mem_gb = None if known.mem_mib is None else known.mem_mib / 1024
    return Share(*(math.inf if size is None else size for size in (known.cpus, mem_gb, known.gpus)))


def _pack(demands: Sequence[Demand], capacity: Share) -> tuple[int, Share]:
    """Return how many equal nodes hold all ``demands``, and what each node must have; large ones are placed first."""
    nodes: list[_Node] = []
    in_order = sorted(demands, key=lambda item: (item.share.gpus, item.share.cpus, item.share.mem_gb), reverse=True)
    for demand in in_order:
        for _ in range(demand.count):
            free = [node for node in nodes if node.has_room(demand.share)]
            wanted = demand.resources.nodes or 1
            while len(free) < wanted:
                nodes.append(_Node(capacity))
                free.append(nodes[-1])
            for node in free[:wanted]:
                node.used = node.used.plus(demand.share)
    share = Share()
    for node in nodes:
        share = share.widest(node.used)
    return len(nodes), replace(share, cpus=max(1, share.cpus))
