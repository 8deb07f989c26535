"""A run whose orchestrator is itself in a batch job: that job is the allocation, and nothing is submitted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from orchestrator.schedulers.local import LocalScheduler

WITHIN = "@within"
# slurm_orch.sh and pbs_orch.sh keep the batch system's variables under this prefix, away from what is submitted.
PREFIX = "ORCH_OUTER_"


class WithinScheduler(LocalScheduler):
    """The allocation as a process group of the batch job's first node."""

    template = "schedulers/step.j2"
    is_absence_final = False  # seen from a login node it is a process of another machine
    default_bind = "0.0.0.0"  # noqa: S104 - services of one run meet across nodes


def outer_nodes(environ: Mapping[str, str]) -> int | None:
    """Return how many nodes the batch job around this process has; None if there is none."""
    nodes = environ.get(f"{PREFIX}SLURM_JOB_NUM_NODES", "")
    if nodes.isdigit():
        return int(nodes)
    try:
        return len(Path(environ[f"{PREFIX}PBS_NODEFILE"]).read_text(encoding="utf-8").split())
    except (KeyError, OSError):
        return None
