"""The one batch job of a run in one allocation: it runs the broker that starts services and trials as its steps."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.allocation.parts import part_name, part_resources, placeless
from orchestrator.allocation.within import PREFIX, WITHIN
from orchestrator.rundir import RunDir
from orchestrator.schedulers.allocation import BROKER_GRACE_SHARE, PROGRAM
from orchestrator.service import Check, JobDraft, PlanContext, Role

ALLOCATION = "allocation"
STARTUP_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class BrokerContext:
    """Values of templates/services/allocation.j2."""

    python: str
    program: Path
    spool: Path
    config: Path
    grace_s: float
    is_within: bool
    outer_prefix: str = PREFIX


class Broker:
    """The allocation as a service of the run."""

    name = ALLOCATION
    role: Role = "allocation"

    def __init__(self, launcher: str, stop_grace_s: float) -> None:
        """Make the service.

        Args:
            launcher: How steps are started on other nodes: srun, pbsdsh, ssh or here.
            stop_grace_s: How long a job that was told to end has, in seconds.
        """
        self._launcher, self._grace_s = launcher, stop_grace_s * BROKER_GRACE_SHARE

    def check(self, context: PlanContext) -> None:
        """Find nothing: launchers are looked for on the allocation's own nodes."""

    def draft(self, context: PlanContext) -> JobDraft:
        job = context.recipe.job
        is_within = context.host == WITHIN
        parts = [part_resources(part, job.resources) for part in job.infrastructure.allocation]
        if is_within:
            parts = [placeless(part).model_copy(update={"time": None}) for part in parts]
        return JobDraft(
            name=ALLOCATION,
            role="allocation",
            kind="service",
            body="services/allocation.j2",
            context=BrokerContext(
                python=job.environment.supervisor_python,
                program=steps_program(context.run),
                spool=spool(context.run),
                config=_config(context.run),
                grace_s=self._grace_s,
                is_within=is_within,
            ),
            resources=parts[0],
            components=tuple(parts[1:]),
            health=(Check("/health"),),
            startup_timeout_s=STARTUP_TIMEOUT_S,
        )

    def files(self, context: PlanContext) -> Mapping[Path, str]:
        # A newer clone must not change a run under way.
        return {**self.config(context), steps_program(context.run): PROGRAM.read_text(encoding="utf-8")}

    def config(self, context: PlanContext) -> Mapping[Path, str]:
        """Return the broker's own configuration: it is that of one submission of the allocation."""
        groups = [
            {
                "name": part_name(part),
                "nodes": part.nodes or 1,
                "cpus": part.cpus,
                "mem_mib": None if part.mem_gb is None else int(part.mem_gb * 1024),
                "gpus": part.gpus,
            }
            for part in context.recipe.job.infrastructure.allocation
        ]
        document = {"launcher": self._launcher, "groups": groups, "env": {}}
        return {_config(context.run): json.dumps(document, indent=2) + "\n"}

    def prepare(self, context: PlanContext, tell: Callable[[str], None]) -> None:
        """Prepare nothing."""


def steps_program(run: RunDir) -> Path:
    """Return where a run has its copy of steps.py."""
    return run.root / "scripts" / PROGRAM.name


def spool(run: RunDir) -> Path:
    """Return the folder through which steps are asked for."""
    return run.root / "steps"


def _config(run: RunDir) -> Path:
    return run.root / "config" / "allocation.json"
