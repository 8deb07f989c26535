"""The batch job that an orchestrator is, for runs that are to start after it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# Written by slurm_orch.sh and pbs_orch.sh alone: the exit code of their jobs is that of the run. A job that somebody
# else's script runs orch.py in may end otherwise.
VARIABLE = "ORCH_OWN_JOB"
# How often Slurm has started the job again (sbatch(1), SLURM_RESTART_COUNT), as slurm_orch.sh hands it on.
RESTARTS = "ORCH_OUTER_SLURM_RESTART_COUNT"
# No id holds what a scheduler's list of dependencies is made of.
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\[\]-]*", re.ASCII)


@dataclass(frozen=True)
class OwnJob:
    """A batch job whose exit code is that of its orchestrator.

    Attributes:
        scheduler: Kind of its scheduler.
        job_id: The scheduler's id.
        cluster: Slurm's name of the cluster that the id holds for; None where the id says it itself (PBS).
        name: The job's name in the queue, where it was seen there: ids are used again.
    """

    scheduler: str
    job_id: str
    cluster: str | None = None
    name: str | None = field(default=None, compare=False)

    @classmethod
    def of_this_process(cls, environment: Mapping[str, str]) -> OwnJob | None:
        """Return the job that ``environment`` tells of (``KIND ID [CLUSTER]``), or None outside of such a job."""
        words = environment.get(VARIABLE, "").split()
        if len(words) not in {2, 3}:
            return None
        return cls.from_json(dict(zip(("scheduler", "job_id", "cluster"), words, strict=False)))

    @classmethod
    def from_json(cls, data: Any) -> OwnJob | None:
        """Return the job that an event of the ledger tells of, or None if it tells of none that can be used."""
        if not isinstance(data, Mapping):
            return None
        scheduler, job_id, cluster = (_word(data.get(name)) for name in ("scheduler", "job_id", "cluster"))
        name = data.get("name") if isinstance(data.get("name"), str) else None
        return cls(scheduler, job_id, cluster, name) if scheduler and job_id else None

    def may_be(self, other: OwnJob) -> bool:
        """Return whether both are one job, as far as is known: its cluster may not have been told."""
        return (self.scheduler, self.job_id) == (other.scheduler, other.job_id) and (
            self.cluster == other.cluster or None in {self.cluster, other.cluster}
        )


def _word(value: object) -> str | None:
    return value if isinstance(value, str) and _WORD.fullmatch(value) else None
