"""Scheduler backends: which there are, and which one fits here."""

from __future__ import annotations

import shutil

from orchestrator.errors import UserError
from orchestrator.recipe.sections import LocalSchedulerSpec, SlurmSchedulerSpec
from orchestrator.schedulers.base import JobState, PartitionFacts, Scheduler, Seen, Submission
from orchestrator.schedulers.local import LocalScheduler
from orchestrator.schedulers.slurm import SlurmScheduler

__all__ = [
    "JobState",
    "PartitionFacts",
    "Scheduler",
    "Seen",
    "Submission",
    "find_scheduler",
    "make_scheduler",
]

Spec = LocalSchedulerSpec | SlurmSchedulerSpec


def make_scheduler(spec: Spec) -> Scheduler:
    """Return the backend for ``spec``."""
    match spec:
        case LocalSchedulerSpec():
            return LocalScheduler()
        case SlurmSchedulerSpec():
            return SlurmScheduler(spec)


def find_scheduler() -> tuple[Spec, str]:
    """Return the scheduler of this machine and the reason for it.

    Raises:
        UserError: there is one that this version cannot use; running locally instead would surprise.
    """
    sbatch = shutil.which("sbatch")
    if sbatch:
        return SlurmSchedulerSpec(), f"{sbatch} is on PATH"
    qsub = shutil.which("qsub")
    if qsub:
        raise UserError(
            f"{qsub} is on PATH, but this version has no PBS backend.\n"
            "Name a scheduler in the recipe: job.scheduler.kind = local or slurm."
        )
    return LocalSchedulerSpec(), "neither sbatch nor qsub is on PATH"
