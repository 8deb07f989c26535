"""Pushgateway: for metrics of what has no one to scrape it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.service import Check, JobDraft, PlanContext, Role, Target


@dataclass(frozen=True)
class PushgatewayContext:
    """Values of templates/services/pushgateway.j2."""

    executable: str


class PushgatewayService:
    """The Pushgateway of a run."""

    name = "pushgateway"
    role: Role = "monitoring"

    def check(self, context: PlanContext) -> None:
        """Nothing more to look at: the catalog leaves it out where it is not installed."""

    def files(self, context: PlanContext) -> Mapping[Path, str]:
        return {}

    def prepare(self, context: PlanContext, tell: Callable[[str], None]) -> None:
        """Nothing is needed beforehand."""

    def draft(self, context: PlanContext) -> JobDraft:
        job = context.recipe.job
        return JobDraft(
            name=self.name,
            role=self.role,
            kind="service",
            body="services/pushgateway.j2",
            context=PushgatewayContext(job.monitoring.binaries.pushgateway),
            resources=job.resources.monitoring,
            health=(Check("/-/ready"),),
            endpoint={"engine": "pushgateway"},
            targets=(Target("pushgateway", {"job": "pushgateway"}),),
            is_essential=job.monitoring.mode == "required",
        )
