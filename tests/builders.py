"""Runs that are planned from fixed inputs: no scheduler is asked, no program is looked for, nothing is written."""

from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agent.stage import HpoStage
from orchestrator.allocation.broker import Broker
from orchestrator.allocation.contexts import in_one_allocation
from orchestrator.allocation.host import StepsHost
from orchestrator.arrays import PlannedArray, plan_array
from orchestrator.hosts import Hosts, ThisMachine
from orchestrator.plan import Plan, PlannedJob, plan_job
from orchestrator.recipe import parse_recipe
from orchestrator.recipe.hosts import HERE, STEPS
from orchestrator.resolve import ROLES, Resolved, resolve
from orchestrator.rundir import RunDir
from orchestrator.schedulers import Scheduler, make_scheduler
from orchestrator.service import PlanContext, Service
from orchestrator.site import Site
from orchestrator.transports import Answer, LocalTransport
from services.catalog import serving_of
from services.prometheus import PrometheusService
from services.pushgateway import PushgatewayService

RUN_ID = "0a1b2c3d"
ROOT = Path("/runs/20260101_000000_job_0a1b2c3d")
PROJECT = Path("/project")
CACHE = Path("/cache")
PYTHON = "/opt/env/bin/python"
BINARIES = {name: f"/opt/monitoring/{name}" for name in ("prometheus", "pushgateway", "node_exporter")}
ANSWERS = {
    # Lines of a real `sinfo -h -o '%P|%G'` and `nvidia-smi --list-gpus`.
    "sinfo": "cpu*|(null)\ngpu|gpu:a100:4\n",
    "nvidia-smi": "GPU 0: NVIDIA A100 (UUID: GPU-1)\nGPU 1: NVIDIA A100 (UUID: GPU-2)\n",
}
MODELS = {"vllm": "Qwen/Qwen2.5-7B-Instruct", "ollama": "llama2"}


class AnsweringTransport(LocalTransport):
    """Answers from a table, by the name of the program; anything else is not installed."""

    def __init__(self, answers: Mapping[str, str] = ANSWERS) -> None:
        self.answers = answers
        self.asked: list[tuple[str, ...]] = []

    def run(
        self,
        argv: Sequence[str],
        timeout_s: float,
        stdin: bytes | None = None,
        cwd: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Answer:
        self.asked.append(tuple(argv))
        text = self.answers.get(Path(argv[0]).name)
        return Answer(tuple(argv), 127 if text is None else 0, text or "", "")


def merged(base: Any, changes: Any) -> Any:
    """Return ``base`` with ``changes`` laid over it, section by section."""
    if isinstance(base, dict) and isinstance(changes, dict):
        return {**base, **{name: merged(base.get(name), value) for name, value in changes.items()}}
    return copy.deepcopy(changes)


def recipe_document(scheduler_kind: str, engine_kind: str, /, **job: Any) -> dict[str, Any]:
    """Return a recipe of few words, with ``job``'s sections laid over it."""
    document = {
        "name": "job",
        "scheduler": {"kind": scheduler_kind},
        "engine": {"kind": engine_kind},
        "environment": {"python": PYTHON},
        "service": {"model": MODELS[engine_kind], "n_clients": 2},
        "monitoring": {"binaries": BINARIES},
    }
    return {"job": merged(document, job)}


@dataclass(frozen=True)
class PlannedRun:
    """A planned run; ``jobs`` has the trial as well, if the recipe has a search."""

    resolved: Resolved
    context: PlanContext
    services: tuple[Service, ...]
    jobs: dict[str, PlannedJob]
    files: dict[Path, str]

    @property
    def plan(self) -> Plan:
        """The plan without its trial."""
        jobs = tuple(job for job in self.jobs.values() if job.role != "trial")
        kind = self.resolved.scheduler.kind
        run, notes = self.context.run, self.resolved.notes
        return Plan(RUN_ID, run, kind, jobs, 0, None, notes, self.context.cache)

    @property
    def server(self) -> PlannedJob:
        """The engine's job."""
        return next(iter(self.jobs.values()))

    def config(self, name: str) -> dict[str, Any]:
        """Return a job's supervisor configuration."""
        config: dict[str, Any] = json.loads(self.jobs[name].config_text)
        return config

    def scripts(self) -> dict[str, tuple[str, str]]:
        """Return script and configuration of each job by name."""
        return {name: (job.script_text, job.config_text) for name, job in self.jobs.items()}

    def everything(self) -> dict[str, Any]:
        """Return all that a user sees or a scheduler gets."""
        resources = {name: job.resources for name, job in self.jobs.items()}
        essential = {name: job.is_essential for name, job in self.jobs.items()}
        return {"scripts": self.scripts(), "files": self.files, "resources": resources, "essential": essential}


def plan_run(
    document: dict[str, Any],
    root: Path = ROOT,
    site: Site | None = None,
    answers: Mapping[str, str] = ANSWERS,
    project: Path = PROJECT,
) -> PlannedRun:
    """Return the plan of a recipe, monitoring included, without the checks of what is installed here."""
    recipe = parse_recipe(document, "recipe")
    resolved = resolve(recipe, site or Site(), AnsweringTransport(answers), Path("/"))
    job = resolved.recipe.job
    bind = job.network.bind or resolved.scheduler.default_bind
    run = RunDir(root)
    context = PlanContext(resolved.recipe, run, project, CACHE, bind, RUN_ID, run, CACHE)
    monitoring: list[Service] = []
    if job.monitoring.mode != "off":
        monitoring = [PushgatewayService(), PrometheusService()]
    contexts = in_one_allocation(dict.fromkeys(ROLES, context), {})
    schedulers = {HERE: resolved.scheduler}
    services: tuple[Service, ...] = (*serving_of(contexts), *monitoring)
    if "allocation" in contexts:
        here, environment = ThisMachine(resolved.scheduler, LocalTransport(), run), job.environment
        schedulers[STEPS] = StepsHost(here, job.infrastructure.allocation, environment.supervisor_python).scheduler
        services = (Broker(resolved.scheduler.launcher, resolved.scheduler.stop_grace_s), *services)
    drafts = [service.draft(contexts[service.role]) for service in services]
    if job.hpo is not None:
        trial = HpoStage().sample_job(contexts["trial"])
        assert trial is not None
        drafts.append(trial)
    jobs = {
        draft.name: plan_job(draft, contexts[draft.role], schedulers[contexts[draft.role].host], RUN_ID)
        for draft in drafts
    }
    files = {path: text for service in services for path, text in service.files(contexts[service.role]).items()}
    return PlannedRun(resolved, context, services, jobs, files)


def hosts_here(scheduler: Scheduler, run: RunDir) -> Hosts:
    """Return this machine as the only place where jobs of ``run`` run."""
    return Hosts([ThisMachine(scheduler, LocalTransport(), run)])


def planned_service(run: RunDir, name: str = "vllm", **job: Any) -> PlannedJob:
    """Return a small job with its script written into ``run``, for trackers."""
    run.make()
    planned = plan_run(recipe_document("slurm", "vllm", **job), run.root).jobs[name]
    planned.write()
    return planned


def planned_array(planned: PlannedRun, count: int, generation: int = 1) -> PlannedArray:
    """Return the job array of the first ``count`` trials of a planned run with a search, all like its sample."""
    sample = HpoStage().sample_job(planned.context)
    assert sample is not None
    drafts = [replace(sample, name=f"trial_{number:04}") for number in range(count)]
    return plan_array(drafts, planned.context, planned.resolved.scheduler, RUN_ID, generation)


class ProgramFolder:
    """A folder of stand-in programs, each a few lines of bash, put in front of PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, name: str, body: str) -> Path:
        """Write a program that first notes its call in NAME.calls, one line of arguments each."""
        path = self.folder / name
        path.write_text(f'#!/bin/bash\necho "$*" >>{self.folder}/{name}.calls\n{body}\n')
        path.chmod(0o755)
        return path

    def add_python(self, *packages: str) -> str:
        """Add an interpreter that has exactly the named packages, which can be located and not imported."""
        home = self.folder.parent / "packages"
        for package in packages:
            (home / package).mkdir(parents=True)
            (home / package / "__init__.py").write_text("raise RuntimeError('located, never imported')\n")
        return str(self.add("python-of-test", f'PYTHONPATH={home} exec {sys.executable} -S -s "$@"'))

    def calls(self, name: str) -> list[str]:
        """Return the arguments of each call so far."""
        path = self.folder / f"{name}.calls"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def path(self) -> str:
        """Value for PATH: this folder, then the system's own."""
        return f"{self.folder}:{os.defpath}"


def slurm_scheduler(**spec: Any) -> Any:
    """Return Slurm's backend."""
    recipe = parse_recipe({"job": {"name": "x", "scheduler": {"kind": "slurm", **spec}}}, "recipe")
    assert recipe.job.scheduler is not None
    return make_scheduler(recipe.job.scheduler)
