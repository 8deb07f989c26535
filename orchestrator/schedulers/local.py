"""This machine as a scheduler; its batch system is the program local_jobs.py beside this file."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from orchestrator.errors import SubmitError, UnsupportedFieldError
from orchestrator.recipe.infrastructure import RoleResources
from orchestrator.schedulers.base import (
    NO_PROGRAMS,
    Association,
    JobState,
    PartitionFacts,
    PartitionLimits,
    Seen,
    StartForecast,
    Submission,
)
from orchestrator.transports import Answer

# Source: local_jobs.py, command "status".
STATES: Mapping[str, JobState] = {
    "RUNNING": JobState.RUNNING,
    "ENDED": JobState.FAILED,
    "ORPHANED": JobState.FAILED,
    "CANCELLED": JobState.CANCELLED,
}
MACHINE = "this machine"
PROGRAM = Path(__file__).with_name("local_jobs.py")
NOT_FOUND = 127
_PLACEMENT = ("partition", "account", "qos", "time", "gpu_type", "requeue")


class LocalScheduler:
    """Process groups of this machine that outlive the orchestrator."""

    kind = "local"
    template = "schedulers/local.j2"
    command_timeout_s = 60.0
    is_absence_final = True
    supervisor_limits_memory = True
    stop_grace_s = 20.0  # local_jobs.py kills after 30 s
    untold_start = "at once"
    arrays = None
    default_bind = "127.0.0.1"
    components_by: tuple[str, ...] = ()
    launcher = "here"

    def __init__(self) -> None:
        self.machine = MACHINE
        self.programs = NO_PROGRAMS
        self._program = [sys.executable, str(PROGRAM)]

    def _words(self, command: str) -> list[str]:
        return [*self._program, command]

    def submit_argv(self, submission: Submission) -> list[str]:
        cpus = ["--cpus", str(submission.cpus)] if submission.cpus else []
        argv = ["--name", submission.token, "--stdout", str(submission.batch_log), *cpus]
        return [*self._words("submit"), *argv, str(submission.script)]

    def parse_submit(self, answer: Answer) -> str:
        job_id = answer.stdout.strip()
        if answer.returncode != 0 or not job_id:
            raise SubmitError(answer.argv, answer.returncode, answer.stderr, "the job could not be started")
        return job_id

    def is_ambiguous(self, answer: Answer) -> bool:
        return answer.returncode is None or answer.returncode <= 0

    def status_argv(self, with_tasks: bool = False) -> list[str]:
        return self._words("status")

    def parse_status(self, answer: Answer) -> dict[str, Seen] | None:
        if answer.returncode != 0:
            return None
        seen = {}
        try:
            for line in answer.stdout.splitlines():
                job = json.loads(line)
                state = STATES.get(job["state"], JobState.UNKNOWN)
                has_leftovers = job["state"] == "ORPHANED"
                seen[job["id"]] = Seen(job["id"], job["name"], state, job.get("host"), None, has_leftovers)
        except (ValueError, KeyError, TypeError):
            return None
        return seen

    def cancel_argv(self, job_ids: Sequence[str]) -> list[str]:
        return [*self._words("cancel"), *job_ids]

    def has_cancelled(self, answer: Answer) -> bool:
        return answer.returncode == 0

    def requeue_argv(self) -> None:
        """Return None: nothing ends jobs of this machine before their time."""

    def partitions_argv(self) -> list[str]:
        return ["nvidia-smi", "--list-gpus"]

    def parse_partitions(self, answer: Answer) -> dict[str, PartitionFacts]:
        gpus = sum(line.startswith("GPU ") for line in answer.stdout.splitlines()) if answer.returncode == 0 else 0
        return {MACHINE: PartitionFacts(gpus, "nvidia-smi")}

    def test_argv(self) -> None:
        """Return None: a job of this machine starts at once."""

    def parse_test(self, answer: Answer) -> StartForecast | None:
        return None

    def limits_argv(self) -> list[str]:
        # Source: nvidia-smi --help-query-gpu; memory.total is in MiB.
        return ["nvidia-smi", "--query-gpu=memory.total,name", "--format=csv,noheader,nounits"]

    def parse_limits(self, answer: Answer) -> dict[str, PartitionLimits] | None:
        if answer.returncode == NOT_FOUND:
            return {}  # no NVIDIA GPU is known here
        lines = [line.partition(",") for line in answer.stdout.splitlines() if line.strip()]
        if answer.returncode != 0 or not all(mib.strip().isdigit() for mib, _, _ in lines):
            return None
        smallest_gib = min((int(mib) / 1024 for mib, _, _ in lines), default=None)
        names = {name.strip() for _, _, name in lines}
        gpu_type = names.pop() if len(names) == 1 else None
        return {MACHINE: PartitionLimits(gpus=len(lines), gpu_type=gpu_type, gpu_memory_gib=smallest_gib)}

    def accounts_argv(self) -> None:
        """Return None: this machine charges nobody."""

    def parse_accounts(self, answer: Answer) -> tuple[Association, ...] | None:
        return None

    def defaults_argv(self) -> None:
        """Return None: this machine charges nobody."""

    def parse_defaults(self, answer: Answer) -> Association | None:
        return None

    def version_argv(self) -> None:
        """Return None: it is a part of orch."""

    def cluster_argv(self) -> None:
        """Return None: no job of this machine waits for another."""

    def parse_cluster(self, answer: Answer) -> str | None:
        return None

    def dependency_option(self, completed: Sequence[str], ended: Sequence[str]) -> list[str]:
        return []

    def mail_events(self, events: Collection[str]) -> str:
        raise UnsupportedFieldError(
            "job.notify: mail",
            "scheduler 'local'",
            "this machine has no batch system that sends mail.",
            "Use a command (such as mail or sendmail) or a webhook.",
        )

    def resources(
        self,
        role: str,
        wanted: RoleResources,
        default_cpus: int | None,
        facts: Mapping[str, PartitionFacts],
        notes: list[str],
    ) -> RoleResources:
        gpus_here = facts[MACHINE].gpus_per_node if MACHINE in facts else 0
        cpus_here, mem_here_gb = self._size(facts)
        placed = [name for name in _PLACEMENT if getattr(wanted, name) is not None]
        if placed or wanted.directives:
            names = ", ".join([*placed, *(["directives"] if wanted.directives else [])])
            notes.append(f"{role}: not applicable on local: {names}")
        self._refuse(role, "nodes", wanted.nodes, 1)
        self._refuse(role, "cpus", wanted.cpus, cpus_here)
        self._refuse(role, "mem_gb", wanted.mem_gb, mem_here_gb)
        self._refuse(role, "gpus", wanted.gpus, gpus_here)
        default_gpus = min(1, gpus_here) if role in {"server", "trial"} else 0
        return RoleResources(
            nodes=1,
            cpus=wanted.cpus,
            mem_gb=wanted.mem_gb,
            gpus=default_gpus if wanted.gpus is None else wanted.gpus,
        )

    def _size(self, facts: Mapping[str, PartitionFacts]) -> tuple[int, float]:
        """Return the machine's CPUs and its memory in GB (10^9 bytes).

        Raises:
            UserError: they are not known.
        """
        return len(os.sched_getaffinity(0)), machine_mem_gb()

    def _refuse(self, role: str, field: str, wanted: float | None, most: float) -> None:
        if wanted is not None and wanted > most:
            raise UnsupportedFieldError(
                f"{field} = {wanted:g} for the {role} job",
                "scheduler 'local'",
                f"{self.machine} has {most:g}.",
                f"Lower it, or choose a cluster with job.scheduler.kind. Allowed: {most:g} at most.",
            )

    def check_arrays(self, role: str, resolved: RoleResources, notes: list[str]) -> None:
        notes.append(f"{role}: not applicable on local: job_arrays")


def machine_mem_gb() -> float:
    """Return this machine's memory in GB (10^9 bytes), one decimal."""
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
