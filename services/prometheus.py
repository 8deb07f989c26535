"""Prometheus: scrapes everything that supervisors write target files for."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.atomic import make_private_dir
from orchestrator.containers.launch import check_image, is_in_image, launch_of, prepare_image
from orchestrator.errors import UnsafeValueError
from orchestrator.render import render
from orchestrator.service import Check, JobDraft, PlanContext, Role, Target

CONFIG = "prometheus.yml"


@dataclass(frozen=True)
class PrometheusContext:
    """Values of templates/services/prometheus.j2."""

    executable: str
    config: Path
    storage: Path
    retention: str


class PrometheusService:
    """The Prometheus of a run."""

    name = "prometheus"
    role: Role = "monitoring"

    def check(self, context: PlanContext) -> None:
        # Without an image there is nothing to look at: the catalog leaves it out where it is not installed.
        if is_in_image(context, self.role):
            check_image(context, "prometheus")

    def files(self, context: PlanContext) -> Mapping[Path, str]:
        return {context.run.config(CONFIG): config_text(context)}

    def prepare(self, context: PlanContext, tell: Callable[[str], None]) -> None:
        make_private_dir(context.run.data(self.name))
        prepare_image(context, self.role, "prometheus", tell)
        if context.recipe.job.monitoring.node_exporter:
            prepare_image(context, self.role, "node_exporter", tell)

    def draft(self, context: PlanContext) -> JobDraft:
        job = context.recipe.job
        launch = launch_of(context, self.role, "prometheus", self.name)
        return JobDraft(
            name=self.name,
            role=self.role,
            kind="service",
            body="services/prometheus.j2",
            context=PrometheusContext(
                executable="prometheus" if launch else job.monitoring.binaries.prometheus,
                config=context.run.config(CONFIG),
                storage=context.run.data(self.name),
                retention=job.monitoring.retention,
            ),
            resources=job.resources.monitoring,
            health=(Check("/-/ready"),),
            endpoint={"engine": "prometheus"},
            targets=(Target("service", {"job": "prometheus"}),),
            port=job.monitoring.prometheus_port,
            launch=launch,
            is_essential=job.monitoring.mode == "required",
        )


def config_text(context: PlanContext) -> str:
    """Return Prometheus' configuration for the run."""
    return render(
        "monitoring/prometheus.yml.j2",
        {
            # Prometheus' durations are whole numbers.
            "scrape_interval_ms": round(context.recipe.job.monitoring.scrape_interval_s * 1000),
            "targets_dir": _literal_glob(context.run.targets),
            "scrape_token_file": str(context.run.scrape_token),
        },
    )


def _literal_glob(folder: Path) -> str:
    """Return a pattern that matches ``folder`` itself; Prometheus takes names of target files for patterns.

    Raises:
        UnsafeValueError: it holds ``*``, which Prometheus allows in the last part of a pattern only.
    """
    if "*" in str(folder):
        raise UnsafeValueError(f"a '*' cannot stand in the path of a run: {folder}\nChoose another --output-dir.")
    # Source: Go's path/filepath.Match: '\\' escapes.
    return re.sub(r"([\\\[?])", r"\\\1", str(folder))
