"""The forecast of a planned run, put together from its recipe, its jobs and what schedulers say."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.chaining import jobs_needed
from orchestrator.forecast.ask import (
    Inquiry,
    account_warnings,
    ask_accounts,
    ask_limits,
    ask_starts,
    limit_warnings,
    start_warnings,
)
from orchestrator.forecast.document import Forecast, JobStart, ModelFit, StageCost, WallTime
from orchestrator.forecast.fit import fit_cpu, fit_gpu, unknown_fit
from orchestrator.forecast.gpu_types import memory_gib
from orchestrator.forecast.stages import (
    benchmark_cost,
    gpu_hours,
    load_cost,
    search_cost,
    trial_jobs,
    trial_limit_s,
    wall_time_warnings,
)
from orchestrator.model_files import ModelShape, UnknownSizeError, read_shape
from orchestrator.models.source import source_of
from orchestrator.plan import PlannedJob
from orchestrator.recipe.base import time_limit_s
from orchestrator.recipe.document import Job
from orchestrator.recipe.engines import VllmEngine
from orchestrator.recipe.hosts import STEPS, Partition
from orchestrator.schedulers import PartitionLimits, Scheduler
from orchestrator.transports import Transport

# Roles whose jobs must live as long as the run does.
_LASTING = frozenset({"server", "client", "monitoring", "allocation"})

_REMEDY = "Lower engine.max_model_len, split it over more GPUs (engine.tensor_parallel), or take larger ones."


@dataclass(frozen=True)
class Place:
    """A machine where jobs are to run.

    Attributes:
        scheduler: Asked for starts, limits and accounts.
        transport: Runs its commands, each for its ``command_timeout_s`` at most.
        partitions: What the site file says of its partitions.
    """

    scheduler: Scheduler
    transport: Transport
    partitions: Mapping[str, Partition]


@dataclass(frozen=True)
class _Told:
    """What one place has said."""

    limits: Mapping[str, PartitionLimits]
    limits_text: str
    account_text: str
    starts: tuple[JobStart, ...]
    warnings: tuple[str, ...]


def make_forecast(
    job: Job, jobs: Sequence[PlannedJob], trial: PlannedJob | None, cache: Path, places: Mapping[str, Place]
) -> Forecast:
    """Return what can be told of a planned run. Nothing is submitted.

    Args:
        job: The resolved recipe.
        jobs: Its services' jobs.
        trial: What a trial's job looks like, or None.
        cache: Where converted models are.
        places: Where jobs run, by the names of hosts.
    """
    every = (*jobs, *((trial,) if trial else ()))
    hosts = dict.fromkeys(item.host for item in every)
    told = {name: _ask(places[name], [item for item in every if item.host == name]) for name in hosts}
    server = next((item for item in jobs if item.role == "server"), None)
    shape = _shape(job, server, cache)
    limits = {item.name: told[item.host].limits.get(item.resources.partition or "") for item in every}
    times = tuple(_wall_time(item, limits[item.name]) for item in every)
    # The GPUs of steps are their allocation's.
    server_gpus = sum(item.gpus for item in jobs if item.role in {"server", "allocation"})
    stages = _stages(job, server_gpus, trial, shape, times)
    needs_s = sum(stage.lasts_s or 0.0 for stage in stages)
    lasting = {item.name for item in every if item.role in _LASTING and item.host != STEPS}
    times = tuple(item.model_copy(update={"needs_s": needs_s}) if item.job in lasting else item for item in times)
    renewed = {server.name} if server is not None and job.infrastructure.successor_lead else set()
    fit = _fit(job, server, shape, told, places)
    warnings = [
        *(text for item in told.values() for text in item.warnings),
        *wall_time_warnings([item for item in times if item.job not in renewed], stages, job.hpo),
        *([f"the model does not fit: {fit.text}. {_REMEDY}"] if fit.verdict == "does not fit" else []),
    ]
    return Forecast(
        gpu_hours=_gpu_hours(job, jobs, trial, times),
        stages=stages,
        starts=tuple(start for item in every for start in told[item.host].starts if start.job == item.name),
        wall_times=times,
        fit=fit,
        account=_joined({name: item.account_text for name, item in told.items()}),
        limits=_joined({name: item.limits_text for name, item in told.items()}),
        warnings=tuple(warnings),
    )


def _ask(place: Place, jobs: Sequence[PlannedJob]) -> _Told:
    """Ask one place, in the order of what matters most: it may fall silent."""
    inquiry = Inquiry(place.scheduler, place.transport)
    limits, limits_text = ask_limits(inquiry)
    starts = ask_starts(inquiry, jobs)
    accounts, account_text = ask_accounts(inquiry)
    warnings = (
        *start_warnings(starts, jobs),
        *limit_warnings(jobs, limits, place.scheduler.kind),
        *account_warnings(jobs, accounts),
    )
    return _Told(limits, limits_text, account_text, starts, warnings)


def _joined(texts: Mapping[str, str]) -> str:
    if len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return "; ".join(f"{name}: {text}" for name, text in texts.items())


def _shape(job: Job, server: PlannedJob | None, cache: Path) -> ModelShape | str:
    """Return the model's figures, or why they are not known."""
    if server is None or not isinstance(job.engine, VllmEngine):
        return "Ollama keeps its models in a store of its own"
    if job.resources.server.host is not None:
        return f"the model lies on {job.resources.server.host}"
    try:
        return read_shape(source_of(job, cache, os.environ, "").folder())
    except UnknownSizeError as error:
        return str(error)


def _stages(
    job: Job,
    server_gpus: int,
    trial: PlannedJob | None,
    shape: ModelShape | str,
    times: tuple[WallTime, ...],
) -> tuple[StageCost, ...]:
    stages = [load_cost(shape.weights_bytes if isinstance(shape, ModelShape) else None, server_gpus)]
    if job.benchmark.enabled:
        stages.append(benchmark_cost(job, server_gpus))
    if job.hpo is not None and trial is not None:
        wall_s = next(item.limit_s for item in times if item.job == trial.name)
        stages.append(search_cost(job.hpo, trial_limit_s(job.hpo, wall_s), server_gpus, trial.gpus))
    return tuple(stages)


def _wall_time(job: PlannedJob, limits: PartitionLimits | None) -> WallTime:
    if job.resources.time is not None:
        return WallTime(job=job.name, limit_s=time_limit_s(job.resources.time), source="recipe", needs_s=None)
    default_s = limits.default_time_s if limits else None
    if default_s is None or default_s == float("inf"):
        return WallTime(job=job.name, limit_s=None, source="none", needs_s=None)
    return WallTime(job=job.name, limit_s=default_s, source="partition", needs_s=None)


def _gpu_hours(
    job: Job, jobs: Sequence[PlannedJob], trial: PlannedJob | None, times: tuple[WallTime, ...]
) -> float | None:
    limits_s = {item.job: item.limit_s for item in times}
    lead = job.infrastructure.successor_lead
    needs_s = {item.job: item.needs_s or 0.0 for item in times}
    counts = [
        (item, jobs_needed(needs_s[item.name], limits_s[item.name], lead) if item.role == "server" else 1)
        for item in jobs
    ]
    if trial is not None and job.hpo is not None:
        counts.append((trial, trial_jobs(job.hpo)))
        limits_s[trial.name] = trial_limit_s(job.hpo, limits_s[trial.name])
    return gpu_hours(counts, lambda planned: limits_s[planned.name])


def _fit(
    job: Job,
    server: PlannedJob | None,
    shape: ModelShape | str,
    told: Mapping[str, _Told],
    places: Mapping[str, Place],
) -> ModelFit:
    if isinstance(shape, str) or server is None or not isinstance(job.engine, VllmEngine):
        return unknown_fit(shape if isinstance(shape, str) else "no model is served")
    if job.engine.device == "cpu":
        return fit_cpu(shape, job.engine, job.service.precision, server.resources.mem_gb)
    name, sizes_gib = _gpu(server, told[server.host].limits, places[server.host].partitions)
    return fit_gpu(shape, job.engine, job.service.precision, name, sizes_gib)


def _gpu(
    server: PlannedJob, limits: Mapping[str, PartitionLimits], partitions: Mapping[str, Partition]
) -> tuple[str | None, tuple[float, ...]]:
    """Return the server's kind of GPU and the memory that one may have, in GiB; the site file knows best."""
    resources = server.resources
    known = partitions.get(resources.partition or "")
    # This machine is one partition without a name in recipes.
    only = next(iter(limits.values())) if resources.partition is None and len(limits) == 1 else None
    said = limits.get(resources.partition or "", only)
    name = resources.gpu_type or (known.gpu_type if known else None) or (said.gpu_type if said else None)
    if known is not None and known.gpu_memory_gb is not None:
        return name, (known.gpu_memory_gb,)
    if said is not None and said.gpu_memory_gib is not None:
        return name, (round(said.gpu_memory_gib, 2),)
    return name, memory_gib(name)
