"""From a recipe as written to one with every choice made; recipe beats site beats scheduler."""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import TypeVar

from orchestrator.allocation.choose import choose_placement
from orchestrator.allocation.within import outer_nodes
from orchestrator.chaining import lead_problems
from orchestrator.containers.making import runtime_of
from orchestrator.errors import Problem, RecipeError, TransportError, UserError
from orchestrator.recipe.container import Container, merge_container
from orchestrator.recipe.document import Job, Recipe
from orchestrator.recipe.engines import PACKAGE_PREFIX, OllamaEngine, VllmEngine, find_engine
from orchestrator.recipe.guard import Notice
from orchestrator.recipe.hosts import HERE, Centre, HostSpec
from orchestrator.recipe.infrastructure import Environment, Infrastructure, Resources, RoleResources
from orchestrator.recipe.sections import LocalSchedulerSpec, PbsSchedulerSpec, SchedulerSpec, SlurmSchedulerSpec
from orchestrator.schedulers import (
    PartitionFacts,
    Scheduler,
    find_scheduler,
    make_scheduler,
    make_scheduler_there,
)
from orchestrator.service import Role
from orchestrator.site import Site
from orchestrator.transports import Transport
from orchestrator.transports.ssh_spec import SshSpec
from orchestrator.transports.ways import can_ask, way_to

ROLES: tuple[Role, ...] = ("server", "client", "monitoring", "trial")
CLIENTS_PER_PROCESS = 64
REQUESTS_PER_S_AND_PROCESS = 4000
MAX_LOAD_PROCESSES = 8
PATH_AT_LOGIN = "Set ssh.reads_profile: true if the site puts them there at login only."
ValueT = TypeVar("ValueT")


Connect = Callable[[SshSpec], Transport]


@dataclass(frozen=True)
class Resolved:
    """A recipe with every choice made.

    Attributes:
        recipe: Scheduler, engine, hosts, interpreters and each role's resources are set.
        scheduler: The backend of this machine.
        notes: What was found, chosen or does not apply, in words for the plan.
    """

    recipe: Recipe
    scheduler: Scheduler
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Place:
    """One machine where jobs may run, as far as planning needs it."""

    host: str
    centre: Centre
    spec: SchedulerSpec
    scheduler: Scheduler
    facts: Mapping[str, PartitionFacts]
    environment: Environment
    container: Container
    transport: Transport


def resolve(recipe: Recipe, site: Site, transport: Transport, base_dir: Path, connect: Connect = way_to) -> Resolved:
    """Return ``recipe`` with every choice made.

    Args:
        recipe: The recipe as written.
        site: The centre's defaults.
        transport: Asked what partitions the scheduler has.
        base_dir: Relative paths in the recipe are below this folder.
        connect: Makes the way to a host; it is asked for its scheduler, partitions and home directory.

    Raises:
        UserError: a choice cannot be made, or a field does not go with the scheduler that was chosen.
        TransportError: a host cannot be asked.
    """
    notes: list[str] = []
    job = recipe.job
    here = _here(recipe, site, transport, notes)
    hosts = _hosts_of_roles(recipe)
    specs = {**site.hosts, **job.hosts}
    places = {
        HERE: here,
        **{name: _there(name, recipe, specs, connect, notes) for name in set(hosts.values()) - {HERE}},
    }
    server = places[hosts["server"]]
    outer = outer_nodes(os.environ) if server.host == HERE else None
    model = _absolute_model(job.service.model, base_dir) if server is here else job.service.model
    engine = job.engine
    if engine is None:
        engine, why = find_engine(model)
        notes.append(f"engine: {engine.kind}, because {why}")
    processes = job.benchmark.processes or _load_processes(job)
    resources = {}
    for role in ROLES:
        place = places[hosts[role]]
        resources[role] = place.scheduler.resources(
            role,
            _wanted(role, recipe, place.centre, engine, inherits=place.host == server.host),
            client_cpus(processes) if role == "client" else None,
            place.facts,
            notes,
        ).model_copy(update={"host": None if place.host == HERE else place.host})
    engine = _resolve_engine(engine, resources["server"], server.environment, job.service.n_clients, notes)
    notes += _container_notes(job, server.container)
    if isinstance(engine, OllamaEngine) and job.service.precision != "auto":
        notes.append(f"service.precision = {job.service.precision}: not applied, Ollama's tag decides the precision")
    if job.service.balancer is not None and job.service.replicas == 1:
        notes.append("service.balancer: not applied, as service.replicas is 1")
    chosen = job.model_copy(
        update={
            "scheduler": here.spec,
            "infrastructure": job.infrastructure.model_copy(
                update={
                    "batch_template": _batch_template(job.infrastructure.batch_template, site, base_dir),
                    **choose_placement(job, Resources(**resources), server.scheduler, server.transport, outer, notes),
                }
            ),
            "host": None,
            "hosts": {name: _resolved_host(specs[name], place) for name, place in places.items() if name != HERE},
            "engine": engine,
            "environment": here.environment,
            "container": here.container,
            "resources": Resources(**resources),
            "service": job.service.model_copy(update={"model": model}),
            "benchmark": job.benchmark.model_copy(update={"processes": processes}),
            "network": job.network.model_copy(
                update={"bind": job.network.bind or site.bind or here.scheduler.default_bind}
            ),
            "monitoring": _monitoring_with_binaries(recipe, site),
            "notify": tuple(_absolute_notice(notice, base_dir) for notice in job.notify),
            "hpo": _absolute_data(recipe, base_dir) if hosts["trial"] == HERE else recipe.job.hpo,
        }
    )
    lead = job.infrastructure.successor_lead
    problems = lead_problems(lead, resources["server"], resources["client"], server.spec.kind, job.service.replicas)
    if problems:
        raise RecipeError("recipe", problems)
    if lead is not None and server.spec.kind == "local":
        notes.append("server: not applicable on local: successor_lead")
    if job.hpo is not None and job.hpo.job_arrays:
        places[hosts["trial"]].scheduler.check_arrays("trial", resources["trial"], notes)
    _check_combinations(chosen.name, chosen.working_dirs.launch_iteration_pattern, chosen.working_dirs.job_pattern)
    return Resolved(recipe.model_copy(update={"job": chosen}), here.scheduler, tuple(notes))


def _batch_template(own: str | None, site: Centre, base_dir: Path) -> str | None:
    """Return the template's path: the recipe's below the working directory, the site's as it stands there."""
    chosen = own or site.batch_template
    return None if chosen is None else str((base_dir / Path(chosen).expanduser()).absolute())


def _hosts_of_roles(recipe: Recipe) -> dict[Role, str]:
    """Return where each role's jobs run.

    Raises:
        RecipeError: a role cannot be there.
    """
    job = recipe.job
    found: dict[Role, str] = {role: getattr(job.resources, role).host or job.host or HERE for role in ROLES}
    problems = []
    if job.resources.client.host not in {None, found["server"]}:
        problems.append(Problem("job.resources.client.host", "is not the server's host", found["server"]))
    if job.resources.monitoring.host not in {None, HERE}:
        problems.append(Problem("job.resources.monitoring.host", "monitoring runs on this machine", HERE))
    if problems:
        raise RecipeError("recipe", problems)
    return {**found, "client": found["server"], "monitoring": HERE}


def _load_processes(job: Job) -> int:
    """Return how many processes carry the benchmark's load."""
    load = job.benchmark.load
    if load.rate is not None:
        wanted = math.ceil(max(load.rate) / REQUESTS_PER_S_AND_PROCESS)
    else:
        wanted = math.ceil(max(load.concurrency or (job.service.n_clients,)) / CLIENTS_PER_PROCESS)
    return min(MAX_LOAD_PROCESSES, wanted)


def _here(recipe: Recipe, site: Site, transport: Transport, notes: list[str]) -> _Place:
    spec = _scheduler_spec(recipe.job.scheduler, site.scheduler)
    if spec is None:
        spec, why = find_scheduler()
        notes.append(f"scheduler: {spec.kind}, because {why}")
    scheduler = make_scheduler(spec)
    environment = merge_environment(recipe.job.environment, site.environment, sys.executable)
    facts = _partition_facts(scheduler, site, transport)
    container = merge_container(recipe.job.container, site.container)
    if container.roles:
        container = container.model_copy(update={"runtime": runtime_of(container).program})
    return _Place(HERE, site, spec, scheduler, facts, environment, container, transport)


def _there(name: str, recipe: Recipe, specs: Mapping[str, HostSpec], connect: Connect, notes: list[str]) -> _Place:
    """Ask a host for what planning needs.

    Raises:
        RecipeError: it is described neither in the recipe nor in the site file, or has no scheduler.
        TransportError: it cannot be asked.
    """
    if name not in specs:
        known = ", ".join(sorted(specs)) or "none: describe it in job.hosts or in the site file's hosts"
        raise RecipeError("recipe", [Problem("job.host", f"'{name}' is no known host", known)])
    spec = specs[name]
    transport = connect(spec.ssh)
    transport.open(interactive=can_ask())
    chosen = spec.scheduler or find_scheduler_there(name, transport, notes)
    if spec.scheduler is None and isinstance(chosen, LocalSchedulerSpec):
        # A login node whose batch system is not on PATH must not be taken for a machine to compute on.
        what = "is not given, and neither sbatch nor qsub is on PATH there"
        remedy = f"A machine without a batch system has scheduler: {{kind: local}}. {PATH_AT_LOGIN}"
        raise RecipeError("recipe", [Problem(f"job.hosts.{name}.scheduler", what, remedy=remedy)])
    environment = merge_environment(spec.environment, recipe.job.environment, "python3")
    spec = spec.model_copy(update={"base_dir": base_dir_there(name, spec, transport)})
    scheduler = make_scheduler_there(chosen, name, environment.supervisor_python, spec.base_dir)
    facts = _partition_facts(scheduler, spec, transport)
    container = merge_container(spec.container, recipe.job.container)
    return _Place(name, spec, chosen, scheduler, facts, environment, container, transport)


def base_dir_there(name: str, spec: HostSpec, transport: Transport) -> str:
    """Return a host's base_dir as an absolute path.

    Raises:
        TransportError: it is below a home directory that cannot be asked for.
    """
    if spec.base_dir.startswith("/"):
        return spec.base_dir
    answer = transport.run(["pwd"], 30.0)
    if answer.returncode != 0:
        raise TransportError(name, f"its home directory is not known: {answer.stderr.strip()}")
    return f"{answer.stdout.strip()}/{spec.base_dir}"


def find_scheduler_there(name: str, transport: Transport, notes: list[str]) -> SchedulerSpec:
    """Return the scheduler of a host whose description names none; add to ``notes`` how it was found.

    Raises:
        TransportError: the host cannot be asked.
    """
    answer = transport.run(["sh", "-c", "command -v sbatch || command -v qsub || true"], 30.0)
    if answer.returncode != 0:
        raise TransportError(name, f"it cannot be asked for its scheduler: {answer.stderr.strip()}")
    found = Path(answer.stdout.strip() or "none").name
    known: dict[str, SchedulerSpec] = {"sbatch": SlurmSchedulerSpec(), "qsub": PbsSchedulerSpec()}
    spec = known.get(found) or LocalSchedulerSpec()
    why = f"{found} is on PATH there" if found in known else "neither sbatch nor qsub is on PATH there"
    notes.append(f"{name}: scheduler {spec.kind}, because {why}")
    return spec


def _container_notes(job: Job, server: Container) -> list[str]:
    """Return which fields do not apply, in words; ``server`` is the section that holds on the server's host."""
    notes = []
    given = sorted(job.container.model_fields_set - {"roles"})
    if given and not server.roles:
        notes.append(f"container: not applied, as container.roles is empty: {', '.join(given)}")
    if "server" in server.roles and isinstance(job.engine, VllmEngine) and job.engine.python is not None:
        notes.append("engine.python: not applied, the server runs in an image with an interpreter of its own")
    return notes


def _resolved_host(spec: HostSpec, place: _Place) -> HostSpec:
    base_dir = place.centre.base_dir if isinstance(place.centre, HostSpec) else spec.base_dir
    bind = spec.bind or place.scheduler.default_bind
    update = {
        "scheduler": place.spec,
        "environment": place.environment,
        "container": place.container,
        "base_dir": base_dir,
        "bind": bind,
        "batch_template": _batch_template(None, spec, Path.cwd()),
    }
    return spec.model_copy(update=update)


def _scheduler_spec(own: SchedulerSpec | None, site: SchedulerSpec | None) -> SchedulerSpec | None:
    """Return the recipe's scheduler; what it leaves open is the site's, where that is of the same kind."""
    if own is None or site is None or own.kind != site.kind:
        return own or site
    return site.model_copy(update={name: getattr(own, name) for name in own.model_fields_set})


def _first(*values: ValueT | None) -> ValueT | None:
    return next((value for value in values if value is not None), None)


def _wanted(
    role: str, recipe: Recipe, site: Centre, engine: VllmEngine | OllamaEngine, inherits: bool
) -> RoleResources:
    """Return what recipe and site ask for one role, before the scheduler's defaults.

    Partition, account and time of the serving job mean nothing on another host.
    """
    infra: Infrastructure = recipe.job.infrastructure if inherits else Infrastructure()
    own: RoleResources = getattr(recipe.job.resources, role)
    site_partition: str | None = getattr(site.role_partitions, role)
    common = {
        "account": _first(own.account, infra.account, site.account),
        "qos": _first(own.qos, infra.qos, site.qos),
        "requeue": _first(own.requeue, recipe.job.infrastructure.requeue),
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


def merge_environment(own: Environment, site: Environment, python: str) -> Environment:
    """Return ``own`` with what it leaves open taken from ``site``, and then ``python``."""
    return own.model_copy(
        update={
            "python": own.python or site.python or python,
            "supervisor_python": own.supervisor_python
            if "supervisor_python" in own.model_fields_set
            else site.supervisor_python,
            "modules": own.modules or site.modules,
            "variables": {**site.variables, **own.variables},
        }
    )


def _partition_facts(scheduler: Scheduler, site: Centre, transport: Transport) -> Mapping[str, PartitionFacts]:
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


def _absolute_notice(notice: Notice, base_dir: Path) -> Notice:
    """Return ``notice`` with its files named absolutely: a run may be resumed from another folder."""
    update: dict[str, object] = {}
    if notice.token_file is not None:
        update["token_file"] = _absolute("job.notify.token_file", notice.token_file, base_dir)
    if notice.command is not None and "/" in notice.command[0]:
        program = _absolute("job.notify.command", notice.command[0], base_dir)
        update["command"] = (program, *notice.command[1:])
    return notice.model_copy(update=update)


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
