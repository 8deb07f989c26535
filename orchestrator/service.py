"""What a deployable part of a run is, and what it says of the job that it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from orchestrator.recipe.document import Recipe
from orchestrator.recipe.hosts import HERE
from orchestrator.recipe.infrastructure import RoleResources
from orchestrator.rundir import RunDir
from orchestrator.transports import LocalTransport, Transport

Role = Literal["server", "client", "monitoring", "trial", "allocation"]


@dataclass(frozen=True)
class Check:
    """One health check; see docs/run-directory.md.

    Attributes:
        path: Path of the URL.
        auth: Whether the run's token is sent.
        nonempty: Key of the JSON answer that must be a non-empty list, or None.
    """

    path: str
    auth: bool = False
    nonempty: str | None = None


@dataclass(frozen=True)
class Target:
    """One scrape target.

    Attributes:
        kind: First part of the target file's name: node, gpu, service, pushgateway.
        labels: Labels of the target; run, attempt, node and slurm_job_id are added by the supervisor.
    """

    kind: str
    labels: Mapping[str, str]


@dataclass(frozen=True)
class Sidecar:
    """A helper process beside the main one, such as an exporter; its death never ends the job."""

    name: str
    argv: tuple[str, ...]
    health: tuple[Check, ...]
    targets: tuple[Target, ...]


@dataclass(frozen=True)
class Launch:
    """How a program is started in an image.

    Attributes:
        argv: Words in front of the program's own.
        prefix: What a variable's name begins with on the node, for the program to see it.
        passed: Names of the node's variables that the program sees too.
        folders: Made on the node before.
    """

    argv: tuple[str, ...]
    prefix: str
    passed: tuple[str, ...]
    folders: tuple[Path, ...]


@dataclass(frozen=True)
class JobDraft:
    """What a part of a run wants to run; the planner makes a script of it.

    Attributes:
        name: Unique in the run; names scripts, logs and the endpoint record.
        role: Decides the resources.
        kind: A service runs until told to stop; a task ends by itself.
        body: Template below templates/ that renders the command line.
        context: Typed values of that template, under the name ``service``.
        resources: The allocation.
        health: Checks that must all pass before a service is ready.
        env: Environment of the main process; never secrets.
        secret_env: Environment variables read from files by the supervisor.
        prepend_env: Paths put in front of what is in a variable on the node.
        auth_token_file: Token that health checks with ``auth`` send.
        endpoint: Further fields of the endpoint record.
        port: A fixed port, or None for a free one.
        is_essential: Whether the run ends when this job does.
        pulls: Small files that the job writes and the orchestrator reads while it runs.
        components: Further parts of the allocation, on nodes of their own.
        launch: How the main process is started in an image, or None for a plain environment.
    """

    name: str
    role: Role
    kind: Literal["service", "task"]
    body: str
    context: Any
    resources: RoleResources
    health: tuple[Check, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    secret_env: Mapping[str, Path] = field(default_factory=dict)
    prepend_env: Mapping[str, Path] = field(default_factory=dict)
    auth_token_file: Path | None = None
    endpoint: Mapping[str, Any] = field(default_factory=dict)
    targets: tuple[Target, ...] = ()
    sidecars: tuple[Sidecar, ...] = ()
    port: int | None = None
    startup_timeout_s: float = 600.0
    is_essential: bool = True
    pulls: tuple[Path, ...] = ()
    components: tuple[RoleResources, ...] = ()
    launch: Launch | None = None


@dataclass(frozen=True)
class PlanContext:
    """What a service may look at while it says what it needs. Each role has one: its jobs may run elsewhere.

    Attributes:
        recipe: With every choice made; scheduler and environment are those of the host.
        run: The run's paths as its jobs see them.
        home: The run's paths as the orchestrator sees them.
        host: Name of the host.
        transport: The way to the host.
        project: Folder of the clone as jobs see it.
        cache: Folder shared by all runs: models, images, data.
        bind: Address that services listen on.
        run_id: The run's id.
        home_cache: Folder shared by all runs, on this machine.
        is_here: Whether the host is this machine, or shares its files.
    """

    recipe: Recipe
    run: RunDir
    project: Path
    cache: Path
    bind: str
    run_id: str
    home: RunDir
    home_cache: Path
    host: str = HERE
    transport: Transport = field(default_factory=LocalTransport)
    is_here: bool = True


class Service(Protocol):
    """One deployable part of a run."""

    name: str
    role: Role

    def check(self, context: PlanContext) -> None:
        """Look, without changing anything, whether the service can run here.

        Raises:
            UserError: it cannot; says why and what to do.
        """
        ...

    def draft(self, context: PlanContext) -> JobDraft:
        """Return the job that the service needs."""
        ...

    def files(self, context: PlanContext) -> Mapping[Path, str]:
        """Return the configuration files that the job reads, by path; written together with its script."""
        ...

    def prepare(self, context: PlanContext, tell: Callable[[str], None]) -> None:
        """Make what takes time, such as a converted model. Not called in a dry run.

        Args:
            context: See PlanContext.
            tell: Told what takes time, in words.
        """
        ...
