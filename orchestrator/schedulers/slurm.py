"""Slurm: sbatch, squeue, scancel."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence

from orchestrator.errors import SubmitError
from orchestrator.recipe.base import time_limit_s
from orchestrator.recipe.infrastructure import RoleResources
from orchestrator.recipe.sections import SlurmSchedulerSpec
from orchestrator.schedulers.base import (
    NO_PROGRAMS,
    ArrayWords,
    Association,
    JobState,
    PartitionFacts,
    PartitionLimits,
    Seen,
    StartForecast,
    Submission,
    dependency_list,
    task_name,
)
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
    r"|DependencyNeverSatisfied|launch[ _]failed[ _]requeued[ _]held|JobHoldMaxRequeue"
    r"|(QOS|Assoc)Max\w+Per(Job|Node)(Limit)?|QOSMin\w+"
)
# Source: squeue(1), "%i": "Job arrays are displayed with the array job ID and the task ID".
_TASK_ID = re.compile(r"\d+_(\d+)")
_GPU_COUNT = re.compile(r"gpu(?::[^:,()]+)?:(\d+)")
_GPU_TYPE = re.compile(r"gpu:([^:,()]+):\d+")
# Source: sbatch(1), --test-only, and Slurm's sbatch.c (print_multi_line_string of "Job %u to start at %s using …").
_STARTS = re.compile(r"^sbatch: Job \S+ to start at (\S+) using ", re.MULTILINE)
# Source: scontrol(1), "show config".
_CLUSTER = re.compile(r"^ClusterName\s*=\s*(\S+)$", re.MULTILINE)
_WOULD_REFUSE = re.compile(r"^allocation failure: (.+)$", re.MULTILINE)
# For the one who runs it, here or on the far side of SSH. Source: sacctmgr(1), -n, -P and "SHOW".
_ACCOUNTS = 'sacctmgr -n -P show assoc user="$(id -un)" format=Account,Partition,QOS'
_DEFAULTS = 'sacctmgr -n -P show user name="$(id -un)" withassoc format=DefaultAccount,Account,DefaultQOS'
# Source: sbatch(1), --mail-type. It has no event of a server that answers; BEGIN is the nearest.
_MAIL_EVENTS = {"ready": "BEGIN", "failed": "FAIL", "finished": "END", "near_end": "TIME_LIMIT_90"}
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
    stop_grace_s = 20.0  # KillWait is 30 s if not set (slurm.conf(5))
    untold_start = ""
    # Source: sbatch(1), "JOB ARRAY SUPPORT". SLURM_JOB_ID is another number there, which squeue does not show.
    arrays = ArrayWords(
        "${SLURM_ARRAY_TASK_ID}",
        "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}",
        lambda job_id, index: f"{job_id.partition('_')[0]}_{index}",
    )
    default_bind = "0.0.0.0"  # noqa: S104 - services of one run meet across nodes
    components_by: tuple[str, ...] = ("partition", "account", "qos", "gpu_type", "directives")
    launcher = "srun"
    programs = NO_PROGRAMS

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

    def status_argv(self, with_tasks: bool = False) -> list[str]:
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
            task = _TASK_ID.fullmatch(job_id)
            seen[job_id] = Seen(
                job_id,
                task_name(name, task.group(1)) if task else name,
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

    def requeue_argv(self) -> list[str]:
        # Source: scontrol(1), "requeue": of a running job too.
        return ["scontrol", "requeue", "@JOB_ID@"]

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

    def test_argv(self) -> list[str]:
        # Source: sbatch(1): "If no file name is specified, sbatch will read in a script from standard input".
        return ["sbatch", "--test-only"]

    def parse_test(self, answer: Answer) -> StartForecast | None:
        # It says "to start" also of a job that is over its partition's time limit and would wait for ever.
        starts, refused = _STARTS.search(answer.stderr), _WOULD_REFUSE.search(answer.stderr)
        if answer.returncode == 0 and starts:
            return StartForecast(starts_at=starts.group(1))
        if answer.returncode and answer.returncode > 0 and refused and not self.is_ambiguous(answer):
            return StartForecast(refusal=answer.stderr.strip())
        return None

    def limits_argv(self) -> list[str]:
        return ["sinfo", "--noheader", "--exact", "--format=%P|%a|%l|%L|%D|%c|%m|%G"]

    def parse_limits(self, answer: Answer) -> dict[str, PartitionLimits] | None:
        if answer.returncode != 0:
            return None
        limits: dict[str, PartitionLimits] = {}
        for line in answer.stdout.splitlines():
            parts = line.strip().split("|")
            if len(parts) != 8 or not all(part.isdigit() for part in parts[4:7]):
                return None
            name = parts[0].rstrip("*")
            limits[name] = _joined(_limits(parts), limits.get(name))
        return limits

    def accounts_argv(self) -> list[str]:
        return ["sh", "-c", _ACCOUNTS]

    def parse_accounts(self, answer: Answer) -> tuple[Association, ...] | None:
        lines = answer.stdout.splitlines()
        if answer.returncode != 0 or not all(line.count("|") == 2 for line in lines):
            return None
        cells = [line.split("|") for line in lines]
        return tuple(
            Association(one, two or None, tuple(three.split(",")) if three else ()) for one, two, three in cells
        )

    def defaults_argv(self) -> list[str]:
        return ["sh", "-c", _DEFAULTS]

    def parse_defaults(self, answer: Answer) -> Association | None:
        cells = [line.split("|") for line in answer.stdout.splitlines() if answer.returncode == 0]
        for default, account, qos in (row for row in cells if len(row) == 3):
            if account and account == default:
                return Association(account, None, (qos,) if qos else ())
        return None

    def version_argv(self) -> list[str]:
        return ["sbatch", "--version"]

    def cluster_argv(self) -> list[str]:
        return ["scontrol", "show", "config"]

    def parse_cluster(self, answer: Answer) -> str | None:
        found = _CLUSTER.search(answer.stdout) if answer.returncode == 0 else None
        return found.group(1) if found else None

    def dependency_option(self, completed: Sequence[str], ended: Sequence[str]) -> list[str]:
        # Without the second one a job whose dependency has failed waits for ever (sbatch(1), --kill-on-invalid-dep).
        wanted = dependency_list(completed, ended)
        return [f"--dependency={wanted}", "--kill-on-invalid-dep=yes"] if wanted else []

    def mail_events(self, events: Collection[str]) -> str:
        return ",".join(name for event, name in _MAIL_EVENTS.items() if event in events)

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

    def check_arrays(self, role: str, resolved: RoleResources, notes: list[str]) -> None:
        """Slurm takes arrays of any jobs."""


def _limits(parts: Sequence[str]) -> PartitionLimits:
    """Return one line of sinfo; its nodes all have the same CPUs, memory and GPUs (sinfo(1), --exact)."""
    _, avail, max_time, default_time, nodes, cpus, mem_mib, gres = parts
    kinds = set(_GPU_TYPE.findall(gres))
    return PartitionLimits(
        is_up=avail == "up",
        max_time_s=_time_s(max_time),
        default_time_s=_time_s(default_time),
        nodes=int(nodes),
        cpus=int(cpus),
        mem_mib=int(mem_mib),
        gpus=sum(int(count) for count in _GPU_COUNT.findall(gres)),
        gpu_type=kinds.pop() if len(kinds) == 1 else None,
    )


def _joined(one: PartitionLimits, other: PartitionLimits | None) -> PartitionLimits:
    """Return the limits of a partition with nodes of several kinds: those of its largest ones."""
    if other is None:
        return one
    kinds = {item.gpu_type for item in (one, other) if item.gpus}
    return PartitionLimits(
        is_up=one.is_up,
        max_time_s=one.max_time_s,
        default_time_s=one.default_time_s,
        nodes=(one.nodes or 0) + (other.nodes or 0),
        cpus=max(one.cpus or 0, other.cpus or 0),
        mem_mib=max(one.mem_mib or 0, other.mem_mib or 0),
        gpus=max(one.gpus or 0, other.gpus or 0),
        gpu_type=kinds.pop() if len(kinds) == 1 else None,
    )


def _time_s(text: str) -> float | None:
    """Return a time of sinfo in seconds: days-hours:minutes:seconds, the larger parts left out, or "infinite"."""
    if text == "infinite":
        return math.inf
    return float(time_limit_s(text)) if re.fullmatch(r"(\d+-\d+:\d+|\d+):\d+|\d+:\d+:\d+", text) else None
