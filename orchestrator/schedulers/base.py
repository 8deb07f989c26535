"""What every scheduler backend is: pure functions from jobs to argv and from text to states."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from orchestrator.recipe.infrastructure import RoleResources
from orchestrator.transports import Answer


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
    """

    token: str
    script: Path
    batch_log: Path
    cpus: int | None


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
    untold_start: str
    """What is said of a job's start where the scheduler cannot be asked beforehand; empty where it can."""
    default_bind: str
    """Address that services listen on where neither recipe nor site says."""

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

    def status_argv(self) -> list[str]:
        """Return the one command that tells of all of the user's jobs."""
        ...

    def parse_status(self, answer: Answer) -> dict[str, Seen] | None:
        """Return what is seen, by job id; None if the scheduler did not answer properly."""
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
