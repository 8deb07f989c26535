"""The client service: the Flask application that queries and benchmarks the run's LLM server."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.containers.launch import PYTHON, check_image, is_in_image, launch_of, prepare_image
from orchestrator.errors import ProgramMissingError
from orchestrator.resolve import client_cpus
from orchestrator.service import Check, JobDraft, PlanContext, Role, Target
from services.exporters import node_exporter
from services.programs import missing_packages

PACKAGES = ("flask", "waitress", "msgspec", "numpy", "prometheus_client", "pyarrow", "uvloop")


@dataclass(frozen=True)
class ClientContext:
    """Values of templates/services/client.j2."""

    python: str
    program: Path
    endpoints_dir: Path
    server_service: str
    api: str
    model: str
    processes: int
    request_timeout_s: float
    max_tokens: int
    api_token_file: Path | None
    auth_token_file: Path
    scrape_token_file: Path
    output_dir: Path


class ClientService:
    """The client service of a run."""

    name = "client"
    role: Role = "client"

    def __init__(self, server: JobDraft) -> None:
        """Remember whom to ask.

        Args:
            server: The draft of the run's LLM server, or of the balancer in front of several.
        """
        self._server = server

    def check(self, context: PlanContext) -> None:
        if is_in_image(context, self.role):
            check_image(context, "client")
            return
        python = _python(context)
        missing = missing_packages(context, python, PACKAGES)
        if missing is None or missing:
            what = f"lacks {', '.join(missing)}" if missing else f"cannot be run on '{context.host}'"
            raise ProgramMissingError(
                f"the client service's interpreter '{python}' {what}.\n"
                "Make one that has them: `orch.py env create RECIPE`, or name one in job.environment.python."
            )

    def files(self, context: PlanContext) -> Mapping[Path, str]:
        return {}

    def prepare(self, context: PlanContext, tell: Callable[[str], None]) -> None:
        prepare_image(context, self.role, "client", tell)

    def draft(self, context: PlanContext) -> JobDraft:
        job, server = context.recipe.job, self._server
        processes = job.benchmark.processes or 1
        launch = launch_of(context, self.role, "client", self.name)
        return JobDraft(
            name=self.name,
            role=self.role,
            kind="service",
            body="services/client.j2",
            context=ClientContext(
                python=PYTHON if launch else _python(context),
                program=context.project / "client" / "server.py",
                endpoints_dir=context.run.endpoints,
                server_service=server.name,
                api=server.endpoint["api"],
                model=server.endpoint["model"],
                processes=processes,
                request_timeout_s=job.service.request_timeout_s,
                max_tokens=job.benchmark.max_tokens,
                api_token_file=context.run.api_token if server.auth_token_file else None,
                # Whoever may use the model may use the client, which spends the model's token: nobody else.
                auth_token_file=context.run.api_token,
                scrape_token_file=context.run.scrape_token,
                output_dir=context.run.benchmark,
            ),
            resources=job.resources.client,
            health=(Check("/health"),),
            # Load processes are single-threaded; numerical libraries must not start a thread on every core.
            env={"OMP_NUM_THREADS": str(job.resources.client.cpus or client_cpus(processes))},
            endpoint={"engine": "client"},
            targets=(Target("service", {"job": "client"}),),
            sidecars=node_exporter(context, "client"),
            startup_timeout_s=min(600.0, job.service.startup_timeout_s),
            launch=launch,
        )


def _python(context: PlanContext) -> str:
    return context.recipe.job.environment.python or "python3"
