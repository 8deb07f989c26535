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
    task_name,
)
from orchestrator.schedulers.local import LocalScheduler
from orchestrator.schedulers.pbs import PbsScheduler
from orchestrator.schedulers.plain_machine import PlainMachineScheduler
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
    "make_scheduler_there",
    "task_name",
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


def make_scheduler_there(spec: Spec, name: str, python: str, base_dir: str) -> Scheduler:
    """Return the backend for ``spec`` on a machine that is reached over OpenSSH.

    Args:
        spec: Its scheduler.
        name: The machine's name for people.
        python: Its interpreter for programs of orch, 3.6 or newer.
        base_dir: The host's folder there.
    """
    if isinstance(spec, LocalSchedulerSpec):
        return PlainMachineScheduler(name, python, base_dir)
    return make_scheduler(spec)


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
