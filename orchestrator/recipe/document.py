"""The recipe as a whole."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field

from orchestrator.recipe.after import AfterSection
from orchestrator.recipe.base import StrictModel
from orchestrator.recipe.benchmark import Benchmark
from orchestrator.recipe.container import Container
from orchestrator.recipe.engines import Engine
from orchestrator.recipe.guard import Guard, Notice
from orchestrator.recipe.hosts import HostName, HostSpec
from orchestrator.recipe.hpo import Hpo
from orchestrator.recipe.infrastructure import (
    Environment,
    Infrastructure,
    Network,
    Polling,
    Resources,
    WorkingDirs,
)
from orchestrator.recipe.sections import Monitoring, MonitoringSection, SchedulerSpec, Service

BALANCER = "balancer"
JobName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class Job(StrictModel):
    """Everything that one run does."""

    name: JobName
    after: AfterSection = ()
    """Runs that have to end before this one begins; nothing is submitted until then. An entry is `RUN` or
    `{run: RUN, when: completed or ended}`, where RUN is a run's directory, name or id, or `latest`."""
    infrastructure: Infrastructure = Infrastructure()
    service: Service = Service()
    scheduler: SchedulerSpec | None = None
    """If not given: sbatch on PATH means slurm, qsub means pbs, otherwise local; the plan says which."""
    host: HostName | None = None
    """Where jobs run: a name among `hosts`, here or in the site file. If not given: this machine, with `scheduler`.
    Single roles can go elsewhere, see resources."""
    hosts: dict[HostName, HostSpec] = {}
    """Machines that are reached over OpenSSH, beside those of the site file."""
    engine: Engine | None = None
    """If not given: a Hugging Face id, a directory or package:NAME means vllm, a bare tag ollama."""
    environment: Environment = Environment()
    container: Container = Container()
    resources: Resources = Resources()
    monitoring: MonitoringSection = Monitoring()
    benchmark: Benchmark = Benchmark()
    hpo: Hpo | None = None
    guard: Guard = Guard()
    notify: tuple[Notice, ...] = ()
    """Whom to tell when services are ready, when the run ends, and when wall time runs out."""
    network: Network = Network()
    polling: Polling = Polling()
    working_dirs: WorkingDirs = WorkingDirs()

    @property
    def front(self) -> str:
        """Name of the service that LLM requests go to: the balancer of replicas, else the engine.

        Raises:
            ValueError: the recipe is not resolved.
        """
        if self.engine is None:
            raise ValueError("which engine serves is not resolved")
        return BALANCER if self.service.replicas > 1 else self.engine.kind


class Recipe(StrictModel):
    """One recipe."""

    model_config = ConfigDict(title="orch recipe", json_schema_extra={"additionalProperties": False})

    schema_uri: Annotated[str | None, Field(alias="$schema")] = None
    job: Job
    provenance: dict[str, Any] | None = None
    """Written into resolved recipes: versions and hashes of the run that resolved it. Not read."""
