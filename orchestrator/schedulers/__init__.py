"""Scheduler backends: which there are, and which one fits here."""

from __future__ import annotations

import shutil

from orchestrator.recipe.sections import LocalSchedulerSpec, PbsSchedulerSpec, SlurmSchedulerSpec
from orchestrator.schedulers.base import (
    Association,
    JobState,
    PartitionFacts,
    PartitionLimits,
    Scheduler,
    Seen,
    StartForecast,
    Submission,
)
from orchestrator.schedulers.local import LocalScheduler
from orchestrator.schedulers.pbs import PbsScheduler
from orchestrator.schedulers.slurm import SlurmScheduler

__all__ = [
    "Association",
    "JobState",
    "PartitionFacts",
    "PartitionLimits",
    "Scheduler",
    "Seen",
    "StartForecast",
    "Submission",
    "find_scheduler",
    "make_scheduler",
]

Spec = LocalSchedulerSpec | SlurmSchedulerSpec | PbsSchedulerSpec


def make_scheduler(spec: Spec) -> Scheduler:
    """Return the backend for ``spec``."""
    match spec:
        case LocalSchedulerSpec():
            return LocalScheduler()
        case SlurmSchedulerSpec():
            return SlurmScheduler(spec)
        case PbsSchedulerSpec():
            return PbsScheduler(spec)


def find_scheduler() -> tuple[Spec, str]:
    """Return the scheduler of this machine and the reason for it.

    sbatch goes before qsub: Slurm's own wrappers (slurm-wlm-torque) put a qsub beside it.
    """
    sbatch = shutil.which("sbatch")
    if sbatch:
        return SlurmSchedulerSpec(), f"{sbatch} is on PATH"
    qsub = shutil.which("qsub")
    if qsub:
        return PbsSchedulerSpec(), f"{qsub} is on PATH, and sbatch is not"
    return LocalSchedulerSpec(), "neither sbatch nor qsub is on PATH"
