"""From a recipe as written to one with every choice made; recipe beats site beats scheduler."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import TypeVar

from orchestrator.errors import Problem, RecipeError, UserError
from orchestrator.recipe.document import Recipe
from orchestrator.recipe.engines import PACKAGE_PREFIX, OllamaEngine, VllmEngine, find_engine
from orchestrator.recipe.infrastructure import Environment, Infrastructure, Resources, RoleResources
from orchestrator.recipe.sections import SchedulerSpec
from orchestrator.schedulers import PartitionFacts, Scheduler, find_scheduler, make_scheduler
from orchestrator.site import Site
from orchestrator.transports import LocalTransport

ROLES = ("server", "client", "monitoring", "trial")
CLIENTS_PER_PROCESS = 64
MAX_LOAD_PROCESSES = 8
ValueT = TypeVar("ValueT")


@dataclass(frozen=True)
class Resolved:
    """A recipe with every choice made.

    Attributes:
        recipe: Scheduler, engine, interpreters and each role's resources are set.
        scheduler: The backend.
        notes: What was found, chosen or does not apply, in words for the plan.
    """

    recipe: Recipe
    scheduler: Scheduler
    notes: tuple[str, ...]


def resolve(recipe: Recipe, site: Site, transport: LocalTransport, base_dir: Path) -> Resolved:
    """Return ``recipe`` with every choice made.

    Args:
        recipe: The recipe as written.
        site: The centre's defaults.
        transport: Asked what partitions the scheduler has.
        base_dir: Relative paths in the recipe are below this folder.

    Raises:
        UserError: a choice cannot be made, or a field does not go with the scheduler that was chosen.
    """
    notes: list[str] = []
    job = recipe.job
    scheduler_spec = _scheduler_spec(job.scheduler, site.scheduler)
    if scheduler_spec is None:
        scheduler_spec, why = find_scheduler()
        notes.append(f"scheduler: {scheduler_spec.kind}, because {why}")
    scheduler = make_scheduler(scheduler_spec)
    model = _absolute_model(job.service.model, base_dir)
    engine = job.engine
    if engine is None:
        engine, why = find_engine(model)
        notes.append(f"engine: {engine.kind}, because {why}")
    environment = _merge_environment(job.environment, site.environment)
    facts = _partition_facts(scheduler, site, transport)
    processes = job.benchmark.processes or min(MAX_LOAD_PROCESSES, -(-job.service.n_clients // CLIENTS_PER_PROCESS))
    resources = {
        role: scheduler.resources(
            role,
            _wanted(role, recipe, site, engine),
            client_cpus(processes) if role == "client" else None,
            facts,
            notes,
        )
        for role in ROLES
    }
    engine = _resolve_engine(engine, resources["server"], environment, job.service.n_clients, notes)
    if isinstance(engine, OllamaEngine) and job.service.precision != "auto":
        notes.append(f"service.precision = {job.service.precision}: not applied, Ollama's tag decides the precision")
    chosen = job.model_copy(
        update={
            "scheduler": scheduler_spec,
            "engine": engine,
            "environment": environment,
            "resources": Resources(**resources),
            "service": job.service.model_copy(update={"model": model}),
            "benchmark": job.benchmark.model_copy(update={"processes": processes}),
            "network": job.network.model_copy(update={"bind": job.network.bind or site.bind or scheduler.default_bind}),
            "monitoring": _monitoring_with_binaries(recipe, site),
            "hpo": _absolute_data(recipe, base_dir),
        }
    )
    _check_combinations(chosen.name, chosen.working_dirs.launch_iteration_pattern, chosen.working_dirs.job_pattern)
    return Resolved(recipe.model_copy(update={"job": chosen}), scheduler, tuple(notes))


def _scheduler_spec(own: SchedulerSpec | None, site: SchedulerSpec | None) -> SchedulerSpec | None:
    """Return the recipe's scheduler; what it leaves open is the site's, where that is of the same kind."""
    if own is None or site is None or own.kind != site.kind:
        return own or site
    return site.model_copy(update={name: getattr(own, name) for name in own.model_fields_set})


def _first(*values: ValueT | None) -> ValueT | None:
    return next((value for value in values if value is not None), None)


def _wanted(role: str, recipe: Recipe, site: Site, engine: VllmEngine | OllamaEngine) -> RoleResources:
    """Return what recipe and site ask for one role, before the scheduler's defaults."""
    infra: Infrastructure = recipe.job.infrastructure
    own: RoleResources = getattr(recipe.job.resources, role)
    site_partition: str | None = getattr(site.role_partitions, role)
    common = {
        "account": _first(own.account, infra.account, site.account),
        "qos": _first(own.qos, infra.qos, site.qos),
        "directives": own.directives or infra.directives,
    }
    if role == "server":
        gpus = _first(own.gpus, infra.gpus_per_node)
        if gpus is None and isinstance(engine, VllmEngine) and engine.tensor_parallel > 1:
            gpus = engine.tensor_parallel
        if engine.device == "cpu":
            gpus = 0 if gpus is None else gpus
        return RoleResources(
            partition=_first(own.partition, infra.partition, site_partition),
            nodes=_first(own.nodes, infra.nodes),
            cpus=_first(own.cpus, infra.cpus_per_task),
            mem_gb=_first(own.mem_gb, infra.mem_gb),
            gpus=gpus,
            gpu_type=_first(own.gpu_type, infra.gpu_type),
            time=_first(own.time, infra.time, site.time),
            **common,
        )
    if role == "client":
        return own.model_copy(
            update={
                "partition": _first(own.partition, infra.client_partition, site_partition),
                "mem_gb": _first(own.mem_gb, infra.client_mem_gb),
                "time": _first(own.time, infra.client_time, infra.time, site.time),
                **common,
            }
        )
    if role == "trial":
        partition = _first(own.partition, infra.partition, site_partition)
    else:
        partition = _first(own.partition, infra.client_partition, site_partition)
    time = _first(own.time, recipe.job.monitoring.time if role == "monitoring" else None, infra.time, site.time)
    return own.model_copy(update={"partition": partition, "time": time, **common})


def client_cpus(processes: int) -> int:
    """Return the CPU cores of the client job: one for each load process and one for the service itself."""
    return processes + 1


def _resolve_engine(
    engine: VllmEngine | OllamaEngine,
    server: RoleResources,
    environment: Environment,
    n_clients: int,
    notes: list[str],
) -> VllmEngine | OllamaEngine:
    device = engine.device
    if device == "auto":
        device = "gpu" if server.gpus else "cpu"
        notes.append(f"engine.device: {device}, because the server job gets {server.gpus or 0} GPUs")
    elif device == "gpu" and not server.gpus:
        raise UserError(
            "job.engine.device = gpu, but the server job gets no GPU.\n"
            "Ask for GPUs with job.infrastructure.gpus_per_node, or choose a partition that has them."
        )
    if (server.nodes or 1) > 1:
        notes.append(f"server: nodes = {server.nodes}: the engine runs on the first node only")
    if isinstance(engine, OllamaEngine):
        return engine.model_copy(update={"device": device, "num_parallel": engine.num_parallel or n_clients})
    for name, other in (("gpu_memory_utilization", "cpu"), ("cpu_kv_cache_gib", "gpu")):
        if device == other and getattr(engine, name) != type(engine).model_fields[name].default:
            notes.append(f"engine.{name}: not applied, the engine's device is {device}")
    return engine.model_copy(
        update={
            "device": device,
            "python": engine.python or environment.python,
            "enforce_eager": device == "cpu" if engine.enforce_eager is None else engine.enforce_eager,
        }
    )


def _merge_environment(own: Environment, site: Environment) -> Environment:
    return own.model_copy(
        update={
            "python": own.python or site.python or sys.executable,
            "supervisor_python": own.supervisor_python
            if "supervisor_python" in own.model_fields_set
            else site.supervisor_python,
            "modules": own.modules or site.modules,
            "variables": {**site.variables, **own.variables},
        }
    )


def _partition_facts(scheduler: Scheduler, site: Site, transport: LocalTransport) -> Mapping[str, PartitionFacts]:
    answer = transport.run(scheduler.partitions_argv(), scheduler.command_timeout_s)
    facts = dict(scheduler.parse_partitions(answer))
    facts.update(
        {
            name: PartitionFacts(known.gpus_per_node, "site file", known.gpu_type)
            for name, known in site.partitions.items()
        }
    )
    return facts


def _monitoring_with_binaries(recipe: Recipe, site: Site) -> object:
    monitoring = recipe.job.monitoring
    binaries = {}
    for name in type(monitoring.binaries).model_fields:
        given = name in monitoring.binaries.model_fields_set
        value = getattr(monitoring.binaries if given else site.binaries, name)
        is_default = value == type(monitoring.binaries).model_fields[name].default
        debian = f"prometheus-{name.replace('_', '-')}" if is_default else value
        binaries[name] = shutil.which(value) or shutil.which(debian) or value
    return monitoring.model_copy(update={"binaries": monitoring.binaries.model_copy(update=binaries)})


def _absolute_model(model: str, base_dir: Path) -> str:
    if model.startswith(PACKAGE_PREFIX):
        return model
    if model.startswith(("/", "./", "../", "~")):
        return _absolute("job.service.model", model, base_dir)
    try:
        is_folder = (base_dir / model).is_dir()
    except OSError:  # too long for a file name
        return model
    return str((base_dir / model).resolve()) if is_folder else model


def _absolute(where: str, path: str, base_dir: Path) -> str:
    try:
        return str((base_dir / Path(path).expanduser()).resolve())
    except (OSError, RuntimeError) as error:
        raise RecipeError("recipe", [Problem(where, f"is '{path}': {error}")]) from error


def _absolute_data(recipe: Recipe, base_dir: Path) -> object:
    hpo = recipe.job.hpo
    if hpo is None or not hasattr(hpo.dataset, "dir"):
        return hpo
    folder = _absolute("job.hpo.dataset.dir", hpo.dataset.dir, base_dir)
    return hpo.model_copy(update={"dataset": hpo.dataset.model_copy(update={"dir": folder})})


def _check_combinations(name: str, launch_pattern: str, job_pattern: str) -> None:
    problems = []
    where = "job.working_dirs.launch_iteration_pattern"
    fields: dict[str, str | int] = {"timestamp": "t", "name": name, "run_id": "r", "experiment_id": "e"}
    problems += _pattern_problems(where, launch_pattern, fields, ("run_id", "experiment_id"))
    where = "job.working_dirs.job_pattern"
    fields = {"job_id": "j", "number": 1, "experiment_id": "e"}
    problems += _pattern_problems(where, job_pattern, fields, ("job_id", "number"))
    if problems:
        raise RecipeError("recipe", problems)


def _pattern_problems(
    where: str, pattern: str, fields: Mapping[str, str | int], one_of: tuple[str, ...]
) -> list[Problem]:
    allowed = ", ".join(f"{{{field}}}" for field in fields)
    try:
        text = pattern.format(**fields)
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        return [Problem(where, f"is '{pattern}': unusable field {error}", allowed)]
    if "/" in text or text in {"", ".", ".."} or text.startswith("-"):
        return [Problem(where, f"is '{pattern}': must name one directory, without '/'", allowed)]
    used = {name for _, name, _, _ in Formatter().parse(pattern)}
    if used.isdisjoint(one_of):
        need = " or ".join(f"{{{field}}}" for field in one_of)
        return [Problem(where, f"is '{pattern}': two of them could get the same directory", remedy=f"Use {need}.")]
    return []
