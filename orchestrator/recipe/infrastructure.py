"""Where jobs run and what they get: ``job.infrastructure``, ``job.resources``, ``job.environment``."""

from __future__ import annotations

import re
from string import Formatter
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from orchestrator.recipe.base import EnvName, EnvValue, Line, StrictModel, TimeLimit, Word

Count = Annotated[int, Field(ge=1, le=100_000)]
MemGb = Annotated[float, Field(gt=0, le=100_000)]


class AllocationPart(StrictModel):
    """Equal nodes of a run's one allocation; the place (partition, account, …) is that of its first role."""

    roles: Annotated[tuple[Literal["server", "client", "monitoring", "trial"], ...], Field(min_length=1)]
    nodes: Count | None = None
    cpus: Count | None = None
    """CPU cores of each node."""
    mem_gb: MemGb | None = None
    """Memory of each node in GB."""
    gpus: Annotated[int, Field(ge=0, le=64)] | None = None
    """GPUs of each node. Of all sizes: what is not given is what the nodes of a job that is there already have."""


class Infrastructure(StrictModel):
    """The serving job's allocation, and the account and partition that the other jobs inherit."""

    partition: Word | None = None
    """Partition of the serving job; on PBS its queue. If not given: `gpu` on Slurm, as in the reference; on PBS the
    server's default queue."""
    account: Word | None = None
    """Billing account of all jobs. No default: the site file or the scheduler decides."""
    qos: Word | None = None
    nodes: Count | None = None
    """Nodes of the serving job; 1 if not given."""
    mem_gb: MemGb | None = None
    """Memory per node of the serving job in GB. On Slurm and PBS 64 if not given; on local no limit if not given."""
    time: TimeLimit | None = None
    """Wall time of the serving job. If not given, the partition's own default."""
    cpus_per_task: Count | None = None
    gpus_per_node: Annotated[int, Field(ge=0, le=64)] | None = None
    """GPUs on each node. If not given: as many as tensor_parallel where there are GPUs, none elsewhere."""
    gpu_type: Word | None = None
    client_partition: Word | None = None
    """The same as resources.client.partition, under the reference's name."""
    client_mem_gb: MemGb | None = None
    """The same as resources.client.mem_gb, under the reference's name."""
    client_time: TimeLimit | None = None
    """The same as resources.client.time, under the reference's name."""
    batch_template: Word | None = None
    """A Jinja template of your own in place of templates/schedulers/KIND.j2, with the same values; it may add lines to
    it and drop none. A path on this machine."""
    requeue: bool | None = None
    """Whether the scheduler may run a job again: after preemption, a node's failure and, on Slurm, when its wall time
    is nearly over. Trials go on from their last checkpoint, services come back on another node. If not given, the
    cluster's own default (on PBS scheduler.rerunnable)."""
    placement: Literal["separate", "one_allocation"] = "separate"
    """`separate`: each service and each trial is a job of its own. `one_allocation`: those on the server's host are
    steps of a single job (on Slurm a heterogeneous one, where partitions differ) with the serving job's wall time."""
    allocation: tuple[AllocationPart, ...] = ()
    """How large that job is. If not given: so that all services and `hpo.parallel_trials` trials run at once, on as
    few nodes as they fit on. On Slurm each part is a component of its own."""
    launcher: Literal["srun", "pbsdsh", "ssh"] | None = None
    """What starts steps on the allocation's nodes. If not given: srun on Slurm, pbsdsh on PBS."""
    successor_lead: TimeLimit | None = None
    """How long before the serving job's wall time ends another one is submitted, which takes over as soon as it is
    ready: the queue wait and the load time. Needs `time`, and no requeue. If not given, a server that is out of time
    ends the run."""
    directives: tuple[Line, ...] = ()
    """Extra batch directives of all jobs, without the `#SBATCH ` or `#PBS ` in front."""


class RoleResources(StrictModel):
    """What the jobs of one role get; whatever is not given is inherited or has the role's default."""

    host: Word | None = None
    """Where this role's jobs run; job.host if not given. Off the server's host nothing of job.infrastructure is
    inherited. The client is always on the server's host, monitoring on this machine."""
    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    nodes: Count | None = None
    cpus: Count | None = None
    """CPU cores of each node's task."""
    mem_gb: MemGb | None = None
    gpus: Annotated[int, Field(ge=0, le=64)] | None = None
    gpu_type: Word | None = None
    time: TimeLimit | None = None
    requeue: bool | None = None
    directives: tuple[Line, ...] = ()


class Resources(StrictModel):
    """Resources of each role of job."""

    server: RoleResources = RoleResources()
    client: RoleResources = RoleResources()
    monitoring: RoleResources = RoleResources()
    trial: RoleResources = RoleResources()


class Environment(StrictModel):
    """What a job script sets up before it starts anything."""

    python: Word | None = None
    """Python interpreter of the client service, the trainer and (unless engine.python says otherwise) the engine.
    If not given: the interpreter that runs orch."""
    supervisor_python: Word = "python3"
    """Python of the compute node that runs the supervisor; 3.6 or newer, no packages needed."""
    modules: tuple[Word, ...] = ()
    """Environment modules to load, in order."""
    variables: dict[EnvName, EnvValue] = {}
    """Environment variables of every job. Not for secrets: they are written into the scripts. Write 12.10 in quotes:
    as a number it is 12.1. Programs in images see them too, except HOME, PATH, LD_LIBRARY_PATH and PYTHONPATH."""


class Network(StrictModel):
    """How services are reached."""

    bind: Word | None = None
    """Address that services listen on. If not given: 127.0.0.1 on local, every interface on a cluster."""


class Polling(StrictModel):
    """How often the orchestrator looks."""

    scheduler_s: Annotated[float, Field(ge=0.2, le=3600)] = 5.0
    """Between two status queries to the scheduler, in seconds."""
    records_s: Annotated[float, Field(ge=0.1, le=3600)] = 1.0
    """Between two looks at the run's own status and endpoint records, in seconds."""
    metrics_s: Annotated[float, Field(ge=0.2, le=3600)] = 2.0
    """Between two pushes of training metrics, in seconds."""
    submits_per_s: Annotated[float, Field(gt=0, le=1000)] = 10.0
    """Jobs submitted per second at most."""


_NUMBER_FORMAT = re.compile(r"(0?[1-9])?", re.ASCII)


def _check_pattern(pattern: str, *fields: str) -> str:
    """Return ``pattern`` if it holds only text and plain ``fields``; ``number`` may have a width of one digit."""
    try:
        parts = list(Formatter().parse(pattern))
    except ValueError as error:
        raise ValueError(f"unusable field: {error}. Literal braces are doubled") from error
    for _, name, width, conversion in parts:
        if name is None:
            continue
        if name not in fields:
            allowed = ", ".join(f"{{{field}}}" for field in fields)
            raise ValueError(f"unusable field '{name}'. Allowed: {allowed}")
        if conversion or (width and (name != "number" or not _NUMBER_FORMAT.fullmatch(width))):
            allowed = f"{{{name}}}" + (", or with a width such as {number:04}" if name == "number" else "")
            raise ValueError(f"the field '{name}' cannot be formatted so. Allowed: {allowed}")
    return pattern


def _check_launch_pattern(pattern: str) -> str:
    return _check_pattern(pattern, "timestamp", "name", "run_id", "experiment_id")


def _check_job_pattern(pattern: str) -> str:
    return _check_pattern(pattern, "job_id", "number", "experiment_id")


class WorkingDirs(StrictModel):
    """Names of the directories that a run makes."""

    launch_iteration_pattern: Annotated[Word, AfterValidator(_check_launch_pattern)] = "{timestamp}_{name}_{run_id}"
    """Run directory inside the output folder. Fields: timestamp, name, run_id, experiment_id (= name_runid)."""
    job_pattern: Annotated[Word, AfterValidator(_check_job_pattern)] = "job_{job_id}"
    """Directory of one trial inside trials/. Fields: job_id (<experiment id>_iter_<number>), number (also with a width:
    {number:04}), experiment_id."""
