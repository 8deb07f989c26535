"""Slurm: sbatch, squeue, scancel."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from orchestrator.errors import SubmitError
from orchestrator.recipe.infrastructure import RoleResources
from orchestrator.recipe.sections import SlurmSchedulerSpec
from orchestrator.schedulers.base import JobState, PartitionFacts, Seen, Submission
from orchestrator.transports import Answer

# Source: squeue(1), "JOB STATE CODES".
STATES: Mapping[str, JobState] = {
    "PENDING": JobState.PENDING,
    "CONFIGURING": JobState.PENDING,
    "RUNNING": JobState.RUNNING,
    "COMPLETING": JobState.RUNNING,
    "STAGE_OUT": JobState.RUNNING,
    "SIGNALING": JobState.RUNNING,
    "RESIZING": JobState.RUNNING,
    "SUSPENDED": JobState.SUSPENDED,
    "STOPPED": JobState.SUSPENDED,
    "REQUEUED": JobState.REQUEUED,
    "REQUEUE_FED": JobState.REQUEUED,
    "REQUEUE_HOLD": JobState.REQUEUED,
    "SPECIAL_EXIT": JobState.REQUEUED,
    "RESV_DEL_HOLD": JobState.PENDING,
    "COMPLETED": JobState.COMPLETED,
    "FAILED": JobState.FAILED,
    "BOOT_FAIL": JobState.NODE_FAIL,
    "NODE_FAIL": JobState.NODE_FAIL,
    "CANCELLED": JobState.CANCELLED,
    "REVOKED": JobState.CANCELLED,
    "TIMEOUT": JobState.TIMEOUT,
    "DEADLINE": JobState.TIMEOUT,
    "PREEMPTED": JobState.PREEMPTED,
    "OUT_OF_MEMORY": JobState.OUT_OF_MEMORY,
}

_AMBIGUOUS = re.compile(r"timed out|unable to contact|communication|connection|temporarily|try again", re.IGNORECASE)
# Reasons that the job cannot meet as it stands. Source: squeue(1), "JOB REASON CODES", and "resource_limits".
_NEVER_STARTS = re.compile(
    r"Partition(TimeLimit|NodeLimit|Config)|BadConstraints|(Account|QOS)NotAllowed|Invalid(Account|QOS)"
    r"|DependencyNeverSatisfied|(QOS|Assoc)Max\w+Per(Job|Node)(Limit)?|QOSMin\w+"
)
_GPU_COUNT = re.compile(r"gpu(?::[^:,()]+)?:(\d+)")
_ROLE_DEFAULTS: Mapping[str, RoleResources] = {
    # The reference's server block: partition gpu, one node, 64 GB.
    "server": RoleResources(partition="gpu", nodes=1, cpus=8, mem_gb=64),
    "client": RoleResources(partition="cpu", nodes=1, cpus=2, mem_gb=8, gpus=0),
    "monitoring": RoleResources(partition="cpu", nodes=1, cpus=2, mem_gb=8, gpus=0),
    "trial": RoleResources(partition="gpu", nodes=1, cpus=4, mem_gb=16),
}


class SlurmScheduler:
    """Slurm through its command-line programs."""

    kind = "slurm"
    template = "schedulers/slurm.j2"
    is_absence_final = False
    supervisor_limits_memory = False
    default_bind = "0.0.0.0"  # noqa: S104 - services of one run meet across nodes

    def __init__(self, spec: SlurmSchedulerSpec) -> None:
        self.command_timeout_s = spec.command_timeout_s

    def submit_argv(self, submission: Submission) -> list[str]:
        return ["sbatch", "--parsable", str(submission.script)]

    def parse_submit(self, answer: Answer) -> str:
        # Source: sbatch(1), --parsable: "job id number and the cluster name if present, separated by a semicolon".
        last = answer.stdout.strip().splitlines()[-1:] if answer.returncode == 0 else []
        job_id = last[0].split(";")[0].strip() if last else ""
        if not job_id.isdigit():
            what = "Slurm refused the job"
            if "Requested node configuration is not available" in answer.stderr:
                what += ": no node of the partition has the CPUs, memory or GPUs that it asks for"
            raise SubmitError(answer.argv, answer.returncode, answer.stderr or answer.stdout, what)
        return job_id

    def is_ambiguous(self, answer: Answer) -> bool:
        # Killed, or content without an id that can be read: the job may be there.
        is_cut_off = answer.returncode is None or answer.returncode <= 0
        return is_cut_off or bool(_AMBIGUOUS.search(answer.stderr))

    def status_argv(self) -> list[str]:
        # Asking by id fails as a whole for one unknown id, or leaves it out in silence: ask for all of the user's.
        return ["squeue", "--me", "--noheader", "--array", "--states=all", "--format=%i|%T|%N|%r|%j"]

    def parse_status(self, answer: Answer) -> dict[str, Seen] | None:
        if answer.returncode != 0:
            return None
        seen = {}
        for line in answer.stdout.splitlines():
            parts = line.strip().split("|", 4)
            if len(parts) != 5 or not parts[0]:
                return None
            # The name is last: it is the one field that may hold the separator.
            job_id, state, node, reason, name = parts
            known = STATES.get(state.partition(" ")[0], JobState.UNKNOWN)
            seen[job_id] = Seen(
                job_id,
                name,
                known,
                node or None,
                None if reason in {"", "None"} else reason,
                never_starts=known == JobState.PENDING and bool(_NEVER_STARTS.fullmatch(reason)),
            )
        return seen

    def cancel_argv(self, job_ids: Sequence[str]) -> list[str]:
        return ["scancel", *job_ids]

    def has_cancelled(self, answer: Answer) -> bool:
        return answer.returncode == 0

    def partitions_argv(self) -> list[str]:
        return ["sinfo", "--noheader", "--format=%P|%G"]

    def parse_partitions(self, answer: Answer) -> dict[str, PartitionFacts]:
        if answer.returncode != 0:
            return {}
        facts: dict[str, PartitionFacts] = {}
        for line in answer.stdout.splitlines():
            name, bar, gres = line.strip().partition("|")
            if bar:
                gpus = sum(int(count) for count in _GPU_COUNT.findall(gres))
                name = name.rstrip("*")
                known = facts.get(name)
                facts[name] = PartitionFacts(max(gpus, known.gpus_per_node if known else 0), "sinfo")
        return facts

    def resources(
        self,
        role: str,
        wanted: RoleResources,
        default_cpus: int | None,
        facts: Mapping[str, PartitionFacts],
        notes: list[str],
    ) -> RoleResources:
        defaults = _ROLE_DEFAULTS[role]
        if default_cpus is not None:
            defaults = defaults.model_copy(update={"cpus": default_cpus})
        filled = wanted.model_copy(
            update={
                name: getattr(defaults, name)
                for name in ("partition", "nodes", "cpus", "mem_gb", "gpus")
                if getattr(wanted, name) is None
            }
        )
        known = facts.get(filled.partition or "")
        if filled.gpus is None and known is None:
            notes.append(f"{role}: nothing is known of partition '{filled.partition}', one GPU is asked for")
        gpus = filled.gpus if filled.gpus is not None else min(1, known.gpus_per_node) if known else 1
        gpu_type = filled.gpu_type or (known.gpu_type if known and gpus else None)
        return filled.model_copy(update={"gpus": gpus, "gpu_type": gpu_type})
