"""What every scheduler backend is: pure functions from jobs to argv and from text to states."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from orchestrator.recipe.infrastructure import RoleResources
from orchestrator.transports import Answer

NO_PROGRAMS: Mapping[str, Path] = MappingProxyType({})


class JobState(StrEnum):
    """State of one job."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUSPENDED = "SUSPENDED"
    REQUEUED = "REQUEUED"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMEOUT = "TIMEOUT"
    PREEMPTED = "PREEMPTED"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    NODE_FAIL = "NODE_FAIL"
    LOST = "LOST"
    UNKNOWN = "UNKNOWN"

    @property
    def is_final(self) -> bool:
        """Whether a job in this state will never run again by itself."""
        return self in _FINAL


_FINAL = frozenset(
    {
        JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED, JobState.TIMEOUT, JobState.PREEMPTED,
        JobState.OUT_OF_MEMORY, JobState.NODE_FAIL, JobState.LOST,
    }
)  # fmt: skip


@dataclass(frozen=True)
class Seen:
    """What the scheduler says of one job.

    Attributes:
        job_id: The scheduler's id.
        name: The job's name, which is its token.
        state: The scheduler's state in our terms.
        node: Node or node list, or None before it has one.
        reason: The scheduler's words on why it waits or ended, or None.
        has_leftovers: Whether processes of an ended job still live and have to be cancelled.
        never_starts: Whether it waits for something that comes only if somebody changes the job or the limits.
    """

    job_id: str
    name: str
    state: JobState
    node: str | None = None
    reason: str | None = None
    has_leftovers: bool = False
    never_starts: bool = False


@dataclass(frozen=True)
class Submission:
    """What a backend needs to submit one job.

    Attributes:
        token: The job's name.
        script: The batch script.
        batch_log: Where the batch system's own words go; ``%j`` stands for the job id where the backend knows it.
        cpus: CPU cores of the task, or None for no limit.
        resources: All that the job gets, for backends that do not read it in the script; None where it is not known.
        role: Whose resources they are: server, client, monitoring or trial; empty where it is not known.
    """

    token: str
    script: Path
    batch_log: Path
    cpus: int | None
    resources: RoleResources | None = None
    role: str = ""


@dataclass(frozen=True)
class ArrayWords:
    """How the tasks of a job array are told apart.

    Attributes:
        index: What stands for a task's index in its script, unquoted.
        job_id: The same for the task's own job id, as the status answer has it.
        id_of: Returns the id of one task, of the array's own id (or that of any task) and the index.
    """

    index: str
    job_id: str
    id_of: Callable[[str, int], str]


def dependency_list(completed: Sequence[str], ended: Sequence[str]) -> str:
    """Return ``afterok:ID:ID,afterany:ID``, which Slurm and PBS write alike; all of it has to be met.

    Source: sbatch(1), --dependency; qsub(1B), -W depend.
    """
    kinds = (("afterok", completed), ("afterany", ended))
    return ",".join(":".join((kind, *ids)) for kind, ids in kinds if ids)


def task_name(array: str, index: int | str) -> str:
    """Return the name of one task of a job array: that of its array, which all of them share, and its index."""
    return f"{array}_{index}"


@dataclass(frozen=True)
class PartitionFacts:
    """What the scheduler or the site file says of one partition (of the machine, on local).

    Attributes:
        gpus_per_node: GPUs of a node; 0 for none.
        source: Who said so.
        gpu_type: Name of its GPUs where they have to be asked for by name, or None.
        cpus: CPU cores of its largest node, where the same answer tells.
        mem_mib: Memory of its largest node in MiB, where the same answer tells.
    """

    gpus_per_node: int
    source: str
    gpu_type: str | None = None
    cpus: int | None = None
    mem_mib: int | None = None

    @property
    def words(self) -> str:
        """What its largest node has, for people."""
        cpus = f"{self.cpus} CPUs" if self.cpus else ""
        memory = f"{self.mem_mib / 1024:.1f} GiB" if self.mem_mib else ""
        return ", ".join(filter(None, [cpus, memory, f"{self.gpus_per_node} GPUs"]))


@dataclass(frozen=True)
class StartForecast:
    """What the scheduler says of a job that it was only asked about; exactly one of the two is given.

    Attributes:
        starts_at: When it would start, in the scheduler's own words (local time of the cluster).
        refusal: Why it would not be taken, in the scheduler's own words.
    """

    starts_at: str | None = None
    refusal: str | None = None


@dataclass(frozen=True)
class PartitionLimits:
    """What one job may ask of a partition (of a queue, on PBS; of the machine, on local); None is not known.

    Attributes:
        is_up: Whether it takes jobs and starts them.
        max_time_s: Longest wall time in seconds; infinity for no limit.
        default_time_s: Wall time of a job that asks for none, in seconds; infinity for no limit.
        nodes: Nodes that it has.
        cpus: CPU cores of its largest node.
        mem_mib: Memory of its largest node in MiB.
        gpus: GPUs of the node that has most of them.
        gpu_type: What the scheduler calls its GPUs, where it has one kind.
        gpu_memory_gib: Memory of one GPU in GiB, where the scheduler tells.
    """

    is_up: bool = True
    max_time_s: float | None = None
    default_time_s: float | None = None
    nodes: int | None = None
    cpus: int | None = None
    mem_mib: int | None = None
    gpus: int | None = None
    gpu_type: str | None = None
    gpu_memory_gib: float | None = None


@dataclass(frozen=True)
class Association:
    """One account that the user may charge, and where.

    Attributes:
        partition: The only partition that it holds for; None for all.
        qos: What may be asked for with it; empty where the scheduler does not say.
    """

    account: str
    partition: str | None
    qos: tuple[str, ...]


class Scheduler(Protocol):
    """One batch system. Pure: it never runs anything itself."""

    kind: str
    """Name in recipes."""
    template: str
    """The skeleton under templates/ that its scripts are rendered with."""
    command_timeout_s: float
    is_absence_final: bool
    """Whether a job that is missing from the status answer has surely ended."""
    supervisor_limits_memory: bool
    """Whether the supervisor has to enforce mem_gb because the scheduler does not."""
    stop_grace_s: float
    """How long a program that was told to end may take, in seconds; less than the scheduler waits between TERM and
    KILL, so that the supervisor can kill what is left and write the job's last word."""
    untold_start: str
    """What is said of a job's start where the scheduler cannot be asked beforehand; empty where it can."""
    default_bind: str
    """Address that services listen on where neither recipe nor site says."""
    components_by: tuple[str, ...]
    """Fields of RoleResources in which parts of one job may differ."""
    launcher: str
    """What starts programs on the nodes of a job; see steps.py."""
    programs: Mapping[str, Path]
    """Programs of orch that it needs on its machine: where they have to lie there, and where they are here."""

    @property
    def arrays(self) -> ArrayWords | None:
        """How tasks of job arrays are told apart; None where there are no arrays."""
        ...

    def submit_argv(self, submission: Submission) -> list[str]:
        """Return the command that submits one job."""
        ...

    def parse_submit(self, answer: Answer) -> str:
        """Return the job id of a successful submission.

        Raises:
            SubmitError: the answer holds none.
        """
        ...

    def is_ambiguous(self, answer: Answer) -> bool:
        """Return whether a failed submission may have reached the scheduler all the same."""
        ...

    def status_argv(self, with_tasks: bool = False) -> list[str]:
        """Return the one command that tells of all of the user's jobs, and of each task of job arrays where asked."""
        ...

    def parse_status(self, answer: Answer) -> dict[str, Seen] | None:
        """Return what is seen, by job id; None if the scheduler did not answer properly.

        A task of a job array is a job whose name is that of task_name.
        """
        ...

    def cancel_argv(self, job_ids: Sequence[str]) -> list[str]:
        """Return the command that cancels the given jobs."""
        ...

    def has_cancelled(self, answer: Answer) -> bool:
        """Return whether the scheduler took a request to cancel; jobs that had ended before are no failure."""
        ...

    def requeue_argv(self) -> list[str] | None:
        """Return the command with which a job requeues itself (``@JOB_ID@`` stands for its id), or None for none."""
        ...

    def partitions_argv(self) -> list[str]:
        """Return the command that tells what partitions there are."""
        ...

    def parse_partitions(self, answer: Answer) -> Mapping[str, PartitionFacts]:
        """Return facts by partition name; empty if the scheduler did not answer properly."""
        ...

    def test_argv(self) -> list[str] | None:
        """Return the command that asks when the script on its standard input would start; None if there is none."""
        ...

    def parse_test(self, answer: Answer) -> StartForecast | None:
        """Return what the scheduler says of the job; None if it did not answer properly."""
        ...

    def limits_argv(self) -> list[str] | None:
        """Return the command that tells what jobs may ask for; None if there is none."""
        ...

    def parse_limits(self, answer: Answer) -> Mapping[str, PartitionLimits] | None:
        """Return limits by partition name; None if the scheduler did not answer properly."""
        ...

    def accounts_argv(self) -> list[str] | None:
        """Return the command that tells what the user may charge; None if the scheduler cannot be asked."""
        ...

    def parse_accounts(self, answer: Answer) -> tuple[Association, ...] | None:
        """Return the user's accounts; None if the scheduler keeps none or did not answer properly."""
        ...

    def defaults_argv(self) -> list[str] | None:
        """Return the command that tells what is charged where a job names nothing; None if there is none."""
        ...

    def parse_defaults(self, answer: Answer) -> Association | None:
        """Return the default account with its default qos; None if there is none or it was not told properly."""
        ...

    def version_argv(self) -> list[str] | None:
        """Return the command that prints which batch system it is, on one line; None if there is none."""
        ...

    def cluster_argv(self) -> list[str] | None:
        """Return the command that tells which cluster job ids hold for; None where an id says it itself."""
        ...

    def parse_cluster(self, answer: Answer) -> str | None:
        """Return the cluster's name; None if the scheduler did not answer properly."""
        ...

    def dependency_option(self, completed: Sequence[str], ended: Sequence[str]) -> list[str]:
        """Return the words that keep a submitted job from starting too early; empty where the scheduler has none.

        Args:
            completed: Ids of jobs that must end with exit code 0; if one does not, the job is never started.
            ended: Ids of jobs that must end.
        """
        ...

    def mail_events(self, events: Collection[str]) -> str:
        """Return the value of the mail directive for ``events`` (ready, failed, finished, near_end).

        Raises:
            UnsupportedFieldError: the scheduler sends no mail, or none on one of them.
        """
        ...

    def resources(
        self,
        role: str,
        wanted: RoleResources,
        default_cpus: int | None,
        facts: Mapping[str, PartitionFacts],
        notes: list[str],
    ) -> RoleResources:
        """Return ``wanted`` with this scheduler's defaults; add to ``notes`` what does not apply here.

        Args:
            role: server, client, monitoring or trial.
            wanted: What recipe and site ask for.
            default_cpus: CPU cores where a scheduler must reserve some and nobody asked; None for its own default.
            facts: What is known of partitions.
            notes: Gets what does not apply here.

        Raises:
            UnsupportedFieldError: a field cannot be honoured and must not be dropped.
        """
        ...

    def check_arrays(self, role: str, resolved: RoleResources, notes: list[str]) -> None:
        """Look whether jobs with these resources can be submitted as job arrays; note it where there are none.

        Raises:
            UnsupportedFieldError: the scheduler takes no array of such jobs.
        """
        ...
