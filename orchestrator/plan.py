"""Drafts to scripts, and the plan as a whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from orchestrator.atomic import write_json, write_text
from orchestrator.batch_template import render_job
from orchestrator.errors import UserError
from orchestrator.forecast.document import Forecast
from orchestrator.recipe.base import time_limit_s
from orchestrator.recipe.guard import Notice
from orchestrator.recipe.hosts import HERE, STEPS
from orchestrator.recipe.infrastructure import RoleResources
from orchestrator.rundir import RunDir
from orchestrator.schedulers import Scheduler
from orchestrator.service import JobDraft, PlanContext, Sidecar, Target

if TYPE_CHECKING:
    from orchestrator.arrays import PlannedArray

SCHEMA_VERSION = 1
# How long before its wall time a job that is to be requeued is told. Source: sbatch(1), --signal: it may come up to
# 60 s early; what is left must do for a checkpoint.
WARNING_S = 90


@dataclass(frozen=True)
class PlannedJob:
    """One job, ready to be submitted.

    Attributes:
        name: Unique in the run.
        token: Its name in the scheduler; see docs/run-directory.md.
        script_text: The batch script, byte for byte.
        config_text: The supervisor's configuration, byte for byte.
        host: Where it runs.
        pulls: Files of the run that it writes and that are read while it runs, below the run directory.
        components: Further parts of it, on nodes of their own.
        in_array: Whether it is a task of a job array; its script is then what the array's own script ends in.
    """

    name: str
    role: str
    kind: Literal["service", "task"]
    token: str
    script: Path
    script_text: str
    config: Path
    config_text: str
    batch_log: Path
    resources: RoleResources
    startup_timeout_s: float
    is_essential: bool
    host: str = HERE
    pulls: tuple[str, ...] = ()
    in_array: bool = False
    components: tuple[RoleResources, ...] = ()

    @property
    def gpus(self) -> int:
        """GPUs that it holds on all its nodes; those of a step are its allocation's."""
        parts = () if self.host == STEPS else (self.resources, *self.components)
        return sum((part.gpus or 0) * (part.nodes or 1) for part in parts)

    @property
    def sha256(self) -> str:
        """Hash of script and configuration together."""
        return hashlib.sha256((self.script_text + "\0" + self.config_text).encode()).hexdigest()

    def write(self) -> None:
        """Put script and configuration into the run directory.

        Raises:
            StorageError: they could not be written.
        """
        write_text(self.config, self.config_text)
        write_text(self.script, self.script_text)

    def as_json(self, scheduler: str) -> dict[str, Any]:
        """Return the job as it stands in plan.json."""
        return {
            "name": self.name,
            "role": self.role,
            "kind": self.kind,
            "scheduler": scheduler,
            "host": self.host,
            "token": self.token,
            "script": str(self.script),
            "config": str(self.config),
            "sha256": self.sha256,
            "is_essential": self.is_essential,
            "startup_timeout_s": self.startup_timeout_s,
            "resources": self.resources.model_dump(mode="json", exclude_none=True),
            "components": [part.model_dump(mode="json", exclude_none=True) for part in self.components],
            "pulls": list(self.pulls),
            "in_array": self.in_array,
        }

    @classmethod
    def from_json(cls, run: RunDir, data: dict[str, Any]) -> PlannedJob:
        """Return the job that as_json described, with its script and configuration read from the run directory.

        Raises:
            KeyError: a field is missing.
            OSError: a file is missing.
            ValueError: a file is not what was planned.
        """
        script, config = Path(data["script"]), Path(data["config"])
        job = cls(
            name=data["name"],
            role=data["role"],
            kind=data["kind"],
            token=data["token"],
            script=script,
            script_text=script.read_text(encoding="utf-8"),
            config=config,
            config_text=config.read_text(encoding="utf-8"),
            batch_log=run.log(data["name"], "%j", "batch"),
            resources=RoleResources.model_validate(data["resources"]),
            startup_timeout_s=data["startup_timeout_s"],
            is_essential=data["is_essential"],
            host=data["host"],
            pulls=tuple(data["pulls"]),
            in_array=data.get("in_array", False),
            components=tuple(map(RoleResources.model_validate, data.get("components", []))),
        )
        if job.sha256 != data["sha256"]:
            raise ValueError(f"{script} or {config} was changed since it was planned")
        return job


def job_token(run_id: str, name: str) -> str:
    """Return the token of one job: its name in the scheduler, unique to the run."""
    return f"orch-{run_id}-{name}"


def plan_job(
    draft: JobDraft, context: PlanContext, scheduler: Scheduler, run_id: str, generation: int = 1
) -> PlannedJob:
    """Return the job of ``draft`` with its script and its supervisor's configuration.

    Args:
        draft: What is to run.
        context: The run that it belongs to.
        scheduler: The backend that will take it.
        run_id: The run's id.
        generation: Which submission of the job it is, from 1: a job that is submitted again has a token of its own.

    Raises:
        RenderError: a value cannot be put into the script safely.
    """
    stem = job_stem(draft.name, generation)
    values = script_values(draft, context, scheduler, draft.name, job_token(run_id, stem), stem)
    template = context.recipe.job.infrastructure.batch_template
    script_text = render_job(scheduler.template, template, scheduler.kind, values)
    return planned_job(draft, context, scheduler, run_id, stem, script_text)


def job_stem(name: str, generation: int) -> str:
    """Return the name of a job's files and the end of its token."""
    return name if generation == 1 else f"{name}-r{generation}"


def script_values(
    draft: JobDraft, context: PlanContext, scheduler: Scheduler, name: str, token: str, stem: str
) -> dict[str, Any]:
    """Return the values of a scheduler's skeleton.

    Args:
        draft: What is to run.
        context: The run that it belongs to.
        scheduler: The backend that will take it.
        name: The name of the job's log.
        token: The job's name in the scheduler.
        stem: The name of the supervisor's configuration.
    """
    run, job = context.run, context.recipe.job
    return {
        "job": {
            "name": name,
            "token": token,
            "log_dir": run.logs,
            "run_dir": run.root,
            "body": draft.body,
            "experiment": job.name,
        },
        "array": None,
        "resources": draft.resources,
        "components": draft.components,
        "scheduler": job.scheduler,
        "warning_s": WARNING_S,
        "environment": job.environment,
        "supervisor": {
            "python": job.environment.supervisor_python,
            "program": run.supervisor,
            "config": run.supervisor_config(stem),
        },
        "service": draft.context,
        "launch": draft.launch,
        "mail": _mail(job.notify, scheduler) if draft.role == "server" else None,
    }


def planned_job(
    draft: JobDraft,
    context: PlanContext,
    scheduler: Scheduler,
    run_id: str,
    stem: str,
    script_text: str,
    in_array: bool = False,
) -> PlannedJob:
    """Return the job whose script is ``script_text``, with its supervisor's configuration; see plan_job."""
    home, token = context.home, job_token(run_id, stem)
    config = _supervisor_config(draft, context, scheduler, run_id, token)
    return PlannedJob(
        name=draft.name,
        role=draft.role,
        kind=draft.kind,
        token=token,
        script=home.script(stem),
        script_text=script_text,
        config=home.supervisor_config(stem),
        config_text=json.dumps(config, indent=2) + "\n",
        batch_log=home.log(draft.name, "%j", "batch"),
        resources=draft.resources,
        startup_timeout_s=draft.startup_timeout_s,
        is_essential=draft.is_essential,
        host=context.host,
        pulls=tuple(str(path.relative_to(context.run.root)) for path in draft.pulls),
        in_array=in_array,
        components=draft.components,
    )


@dataclass(frozen=True)
class Mail:
    """What the scheduler mails about a job: its own names of the events, and addresses with commas."""

    events: str
    users: str


def _mail(notices: Sequence[Notice], scheduler: Scheduler) -> Mail | None:
    """Return the mail that ``notices`` ask for, about the serving job.

    Raises:
        UnsupportedFieldError: the scheduler sends no such mail.
    """
    asked = [notice for notice in notices if notice.mail is not None]
    if not asked:
        return None
    events = {occasion for notice in asked for occasion in notice.on}
    return Mail(scheduler.mail_events(events), ",".join(dict.fromkeys(notice.mail or "" for notice in asked)))


def _supervisor_config(
    draft: JobDraft, context: PlanContext, scheduler: Scheduler, run_id: str, token: str
) -> dict[str, Any]:
    mem_gb = draft.resources.mem_gb
    prefix = draft.launch.prefix if draft.launch else ""
    return {
        "schema_version": SCHEMA_VERSION,
        "run_id": run_id,
        "run_dir": str(context.run.root),
        "token": token,
        "service": draft.name,
        "kind": draft.kind,
        "bind": context.bind,
        "advertise": None,
        "port": draft.port,
        "port_attempts": 5,
        "health": [asdict(check) for check in draft.health],
        "health_interval_s": 0.5,
        "startup_timeout_s": draft.startup_timeout_s,
        "env": {prefix + name: value for name, value in draft.env.items()},
        "secret_env": {prefix + name: str(path) for name, path in draft.secret_env.items()},
        "prepend_env": {prefix + name: str(path) for name, path in draft.prepend_env.items()},
        "auth_token_file": str(draft.auth_token_file) if draft.auth_token_file else None,
        "endpoint": dict(draft.endpoint),
        "targets": [_target(target) for target in draft.targets],
        "sidecars": [_sidecar(sidecar) for sidecar in draft.sidecars],
        # Slurm enforces memory by itself; on local the supervisor does.
        "requeue_argv": scheduler.requeue_argv() if draft.resources.requeue else None,
        "mem_limit_mib": int(mem_gb * 1024) if mem_gb and scheduler.supervisor_limits_memory else None,
        "heartbeat_s": 3.0,
        "lease_check_s": 15.0,
        "stop_grace_s": scheduler.stop_grace_s,
    }


def _target(target: Target) -> dict[str, Any]:
    return {"kind": target.kind, "port": "@PORT@", "labels": dict(target.labels)}


def _sidecar(sidecar: Sidecar) -> dict[str, Any]:
    return {
        "name": sidecar.name,
        "argv": list(sidecar.argv),
        "health": [asdict(check) for check in sidecar.health],
        "targets": [_target(target) for target in sidecar.targets],
    }


@dataclass(frozen=True)
class Plan:
    """All jobs that are known before the run starts, and what a trial's job looks like.

    Attributes:
        run_id: The run's id.
        run: The run's paths.
        scheduler: Name of the scheduler.
        jobs: In the order of submission.
        notes: What was found, chosen, left out or does not apply, in words.
        cache: Folder shared by all runs on this machine.
        forecast: What can be told of cost, start, time and memory; None if nobody asked.
        array: What the job array of trials that are proposed together looks like; None without arrays. It is not read
            back: a run plans its own.
    """

    run_id: str
    run: RunDir
    scheduler: str
    jobs: tuple[PlannedJob, ...]
    trials: int
    trial: PlannedJob | None
    notes: tuple[str, ...]
    cache: Path
    forecast: Forecast | None = None
    array: PlannedArray | None = None

    @classmethod
    def from_json(cls, run: RunDir, data: dict[str, Any]) -> Plan:
        """Return the plan that as_json described; the files of its jobs are read from ``run``.

        Raises:
            KeyError, TypeError: a field is missing or wrong.
            OSError, ValueError: see PlannedJob.from_json.
        """
        trials = data["trials"]
        return cls(
            run_id=data["run_id"],
            run=run,
            scheduler=data["scheduler"],
            jobs=tuple(PlannedJob.from_json(run, job) for job in data["jobs"]),
            trials=trials["count"],
            trial=PlannedJob.from_json(run, trials["job"]) if trials["job"] else None,
            notes=tuple(data["notes"]),
            cache=Path(data["cache_dir"]),
            forecast=Forecast.model_validate(data["forecast"]) if data.get("forecast") else None,
        )

    def as_json(self) -> dict[str, Any]:
        """Return the plan as it stands in plan.json and as ``--dry-run --json`` prints it."""
        return {
            "schema_version": SCHEMA_VERSION,
            "run_id": self.run_id,
            "run_dir": str(self.run.root),
            "scheduler": self.scheduler,
            "jobs": [job.as_json(self.scheduler) for job in self.jobs],
            "trials": {
                "count": self.trials,
                "job": self.trial.as_json(self.scheduler) if self.trial else None,
                "array": self.array.as_json() if self.array else None,
            },
            "gpu_hours": self.gpu_hours(),
            "forecast": self.forecast.model_dump(mode="json") if self.forecast else None,
            "notes": list(self.notes),
            "cache_dir": str(self.cache),
        }

    @property
    def limits_s(self) -> dict[str, float | None]:
        """The wall time of each role's jobs in seconds, partitions' defaults included; empty without a forecast."""
        jobs = (*self.jobs, *([self.trial] if self.trial else []))
        return {job.role: self.forecast.limit_s(job.name) for job in jobs} if self.forecast else {}

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is likely to go wrong, as far as the forecast tells."""
        return self.forecast.warnings if self.forecast else ()

    def gpu_hours(self) -> float | None:
        """Return the GPU-hours that the plan can use at most, or None where a GPU job has no time limit.

        The forecast knows partitions' own limits, those of trials, and the measurement of the winner as well.
        """
        if self.forecast is not None:
            return self.forecast.gpu_hours
        total = 0.0
        for job, count in [
            *((job, 1) for job in self.jobs),
            *([(self.trial, self.trials)] if self.trial else []),
        ]:
            gpus = job.gpus
            if gpus and job.resources.time is None:
                return None
            total += count * gpus * time_limit_s(job.resources.time or "0") / 3600
        return round(total, 2)

    def write(self) -> None:
        """Write plan.json and all scripts.

        Raises:
            StorageError: they could not be written.
        """
        for job in (*self.jobs, *([self.trial] if self.trial else [])):
            job.write()
        if self.array is not None:
            self.array.write_sample()
        write_json(self.run.plan, self.as_json())


def check_names(jobs: Sequence[PlannedJob]) -> None:
    """Refuse a plan in which two jobs have one name.

    Raises:
        UserError: two jobs have one name.
    """
    names = [job.name for job in jobs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"two jobs of the plan have the name {', '.join(twice)}")
