"""Pushgateway: for metrics of what has no one to scrape it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.containers.launch import check_image, is_in_image, launch_of, prepare_image
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
        # Without an image there is nothing to look at: the catalog leaves it out where it is not installed.
        if is_in_image(context, self.role):
            check_image(context, "pushgateway")

    def files(self, context: PlanContext) -> Mapping[Path, str]:
        return {}

    def prepare(self, context: PlanContext, tell: Callable[[str], None]) -> None:
        prepare_image(context, self.role, "pushgateway", tell)

    def draft(self, context: PlanContext) -> JobDraft:
        job = context.recipe.job
        launch = launch_of(context, self.role, "pushgateway", self.name)
        return JobDraft(
            name=self.name,
            role=self.role,
            kind="service",
            body="services/pushgateway.j2",
            context=PushgatewayContext("pushgateway" if launch else job.monitoring.binaries.pushgateway),
            resources=job.resources.monitoring,
            health=(Check("/-/ready"),),
            endpoint={"engine": "pushgateway"},
            targets=(Target("pushgateway", {"job": "pushgateway"}),),
            launch=launch,
            is_essential=job.monitoring.mode == "required",
        )
