"""summary.json: the end of a run in figures."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from orchestrator.jobs import TrackedJob

if TYPE_CHECKING:
    from orchestrator.compose import Composed
    from orchestrator.run import Outcome


def summarise(composed: Composed, outcome: Outcome, jobs: Iterable[TrackedJob]) -> dict[str, Any]:
    """Return the summary of a run that has ended; see docs/run-directory.md."""
    jobs = tuple(jobs)
    finished_at = outcome.finished_at or outcome.started_at
    summary = {
        "schema_version": 1,
        "run_id": composed.plan.run_id,
        "name": composed.recipe.job.name,
        "run_dir": str(composed.plan.run.root),
        "state": outcome.state,
        "error": outcome.error,
        "started_at": outcome.started_at,
        "finished_at": finished_at,
        "duration_s": finished_at - outcome.started_at,
        "scheduler": composed.plan.scheduler,
        "served": _served(composed, jobs),
        "jobs": [_job(job) for job in jobs],
        "stages": outcome.stages,
        "monitoring": outcome.monitoring,
        "notes": list(composed.plan.notes),
        "provenance": composed.provenance,
    }
    finite: dict[str, Any] = _finite(summary)
    return finite


def _served(composed: Composed, jobs: tuple[TrackedJob, ...]) -> dict[str, Any] | None:
    job = next((job for job in jobs if job.planned.role == "server"), None)
    recipe = composed.recipe.job
    if job is None or recipe.engine is None:
        return None
    record = job.record
    return {
        "engine": recipe.engine.kind,
        "model": recipe.service.model,
        "precision": recipe.service.precision,
        "device": recipe.engine.device,
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


def _finite(value: Any) -> Any:
    """Return ``value`` with every NaN and infinity as None, which JSON can say."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def headline(summary: dict[str, Any]) -> list[str]:
    """Return the main figures of a summary as lines of text."""
    lines = []
    served = summary.get("served") or {}
    if served:
        lines.append(f"Served     {served.get('model')} with {served.get('engine')} on {served.get('node')}")
    benchmark = (summary.get("stages") or {}).get("benchmark") or {}
    metrics = benchmark.get("metrics") or {}
    if metrics:
        lines.append(
            f"Benchmark  {benchmark.get('successful')}/{benchmark.get('total_queries')} requests, "
            f"{_number(metrics.get('output_tokens_per_s'), '.1f')} output tokens/s"
        )
        ttft, itl = metrics.get("ttft_s") or {}, metrics.get("itl_s") or {}
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


def _number(value: Any, form: str) -> str:
    return format(value, form) if isinstance(value, (int, float)) else "-"


def _ms(value: Any) -> str:
    return f"{value * 1000:.1f} ms" if isinstance(value, (int, float)) else "-"
