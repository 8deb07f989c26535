"""summary.json: the end of a run in figures."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from orchestrator.plan import Plan
from orchestrator.recipe.document import Recipe
from orchestrator.tracked import TrackedJob


@dataclass
class Outcome:
    """How a run ended, filled while it goes on.

    Attributes:
        state: completed, failed, interrupted, stopped, left.
        error: What went wrong, in words for the user.
        stages: Figures of each stage.
        monitoring: What Prometheus held of the run.
        started_at: When it was first started, in seconds since the epoch.
        finished_at: When it ended, or None before it has.
        resumed: How many times it was resumed.
        exit_code: What the process ends with.
        gpu_hours: GPU-hours used by all its jobs, and the cap (None for none).
    """

    state: str = "running"
    error: str | None = None
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    monitoring: dict[str, Any] = field(default_factory=dict)
    started_at: float = field(default_factory=time.time)
    finished_at: float | None = None
    resumed: int = 0
    exit_code: int = 0
    gpu_hours: dict[str, Any] = field(default_factory=dict)


def summarise(recipe: Recipe, plan: Plan, outcome: Outcome, jobs: Iterable[TrackedJob]) -> dict[str, Any]:
    """Return the summary of a run that has ended; see docs/run-directory.md."""
    jobs = tuple(jobs)
    finished_at = outcome.finished_at or outcome.started_at
    summary = {
        "schema_version": 1,
        "run_id": plan.run_id,
        "name": recipe.job.name,
        "run_dir": str(plan.run.root),
        "state": outcome.state,
        "error": outcome.error,
        "started_at": outcome.started_at,
        "finished_at": finished_at,
        "duration_s": finished_at - outcome.started_at,
        "resumed": outcome.resumed,
        "scheduler": plan.scheduler,
        "served": _served(recipe, jobs),
        "jobs": [_job(job) for job in jobs],
        "stages": outcome.stages,
        "gpu_hours": outcome.gpu_hours,
        "monitoring": outcome.monitoring,
        "notes": list(plan.notes),
        "provenance": recipe.provenance or {},
    }
    result: dict[str, Any] = finite(summary)
    return result


def _served(recipe: Recipe, jobs: tuple[TrackedJob, ...]) -> dict[str, Any] | None:
    engine, service = recipe.job.engine, recipe.job.service
    job = next((job for job in jobs if engine is not None and job.name == recipe.job.front), None)
    if job is None or engine is None:
        return None
    record = job.record
    return {
        "engine": engine.kind,
        "model": service.model,
        "precision": service.precision,
        "device": engine.device,
        **({"replicas": service.replicas} if service.replicas > 1 else {}),
        "node": job.node,
        "job_id": job.job_id,
        "ready_after_s": ready_after_s(job),
        "host": record.host if record else None,
    }


def ready_after_s(job: TrackedJob) -> float | None:
    """Return the seconds from submission to readiness, or None if the job never was ready."""
    return job.record.ready_at - job.submitted_at if job.record and job.record.ready_at else None


def _job(job: TrackedJob) -> dict[str, Any]:
    return {
        "name": job.name,
        "role": job.planned.role,
        "kind": job.planned.kind,
        "job_id": job.job_id,
        "state": job.state.value,
        "node": job.node,
        "why": job.why,
        "submitted_at": job.submitted_at,
        "ready_after_s": ready_after_s(job),
    }


def finite(value: Any) -> Any:
    """Return ``value`` with every NaN and infinity as None, which JSON can say."""
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def headline(summary: dict[str, Any]) -> list[str]:
    """Return the main figures of a summary as lines of text."""
    lines = []
    served = summary.get("served") or {}
    if served:
        replicas = served.get("replicas", 1)
        how = served.get("engine") if replicas == 1 else f"{replicas} replicas of {served.get('engine')}, balanced"
        lines.append(f"Served     {served.get('model')} with {how} on {served.get('node')}")
    benchmark = (summary.get("stages") or {}).get("benchmark") or {}
    if "output_tokens_per_s" in benchmark:
        lines.append(
            f"Benchmark  {benchmark.get('successful')}/{benchmark.get('total_queries')} requests, "
            f"{_number(benchmark.get('output_tokens_per_s'), '.1f')} output tokens/s{_of_sweep(benchmark)}"
        )
        if benchmark.get("valid") is False:
            reasons = "; ".join(str(reason) for reason in benchmark.get("invalid_reasons") or []) or "no reason given"
            lines.append(f"           NOT VALID for publication: {reasons}")
        ttft, itl = benchmark.get("ttft_ms") or {}, benchmark.get("itl_ms") or {}
        lines.append(
            f"           TTFT p50 {_ms(ttft.get('p50'))} p99 {_ms(ttft.get('p99'))}, "
            f"ITL p50 {_ms(itl.get('p50'))} p99 {_ms(itl.get('p99'))}"
        )
    hpo = (summary.get("stages") or {}).get("hpo") or {}
    best = hpo.get("best") or {}
    if hpo:
        sources = ", ".join(f"{name} {item.get('count')}" for name, item in (hpo.get("by_source") or {}).items())
        lines.append(f"Trials     {hpo.get('finished')} finished, {hpo.get('failed')} failed ({sources})")
    if best:
        test = hpo.get("test_accuracy")
        tail = f"; its test accuracy {test:.4f}" if isinstance(test, float) else ""
        lines.append(
            f"           best {hpo.get('objective_name')} {_number(best.get('objective'), '.4f')} in trial "
            f"{best.get('number')}{tail}"
        )
    return lines


def _of_sweep(benchmark: dict[str, Any]) -> str:
    """Return which load of a sweep the figures are of."""
    load = (benchmark.get("about") or {}).get("figures_of")
    return f" at {load}, of {len(benchmark.get('points') or [])} loads" if load else ""


def _number(value: Any, form: str) -> str:
    return format(value, form) if isinstance(value, (int, float)) else "-"


def _ms(value: Any) -> str:
    return f"{value:.1f} ms" if isinstance(value, (int, float)) else "-"
