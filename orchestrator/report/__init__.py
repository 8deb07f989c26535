"""The report of a run: one HTML file that needs nothing else and believes nothing that the run says."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.atomic import read_json, write_text
from orchestrator.render import render
from orchestrator.report.benchmark import benchmark_cards, benchmark_section
from orchestrator.report.run_sections import (
    jobs_section,
    monitoring_section,
    notes_section,
    rerun_section,
    served_section,
)
from orchestrator.report.search import Search, search_cards, search_section
from orchestrator.report.traces import read_requests, read_trials
from orchestrator.report.untrusted import as_count, as_list, as_map, as_maps, as_number, as_text
from orchestrator.report.views import Callout, Fact, Page, Section
from orchestrator.report.wording import moment, state_badge, time_span
from orchestrator.rundir import RunDir


def write_report(run: RunDir) -> Path:
    """Write the report of ``run`` from its summary and records, and return its path.

    Whatever is missing is said in words, up to a run without a summary.

    Raises:
        StorageError: it could not be written; an older report is kept.
    """
    page = build_page(run, as_map(read_json(run.summary)))
    write_text(run.report, render("report/report.html.j2", {"page": page}))
    return run.report


def build_page(run: RunDir, summary: Mapping[str, Any]) -> Page:
    """Return what the report of ``run`` shows; any field of ``summary`` may be absent or wrong."""
    stages = as_map(summary.get("stages"))
    benchmark, search = as_map(stages.get("benchmark")), Search.read(as_map(stages.get("hpo")))
    sections = (
        served_section(as_map(summary.get("served"))),
        _benchmark(run, benchmark, summary),
        _search(run, search, summary),
        jobs_section(as_maps(summary.get("jobs"))),
        monitoring_section(as_map(summary.get("monitoring"))),
        notes_section(as_list(summary.get("notes"))),
        rerun_section(as_map(summary.get("provenance")), run.recipe),
    )
    return Page(
        name=as_text(summary.get("name"), 200) or as_text(run.root.name, 200) or "run",
        badge=state_badge(summary.get("state")),
        facts=tuple(_facts(run, summary)),
        callouts=tuple(_callouts(summary)),
        cards=(*benchmark_cards(benchmark), *search_cards(search)),
        sections=sections,
        footer=f"Written by orch on {moment(time.time())} from summary.json and the run's records.",
    )


def _benchmark(run: RunDir, benchmark: Mapping[str, Any], summary: Mapping[str, Any]) -> Section:
    trace = read_requests(run, as_count(benchmark.get("total_queries")))
    return benchmark_section(benchmark, trace, _why_absent("no benchmark", summary))


def _search(run: RunDir, search: Search, summary: Mapping[str, Any]) -> Section:
    traces = read_trials(run) if search.figures else []
    return search_section(search, traces, _why_absent("no hyperparameter search", summary))


def _why_absent(what: str, summary: Mapping[str, Any]) -> str:
    if summary.get("state") == "completed":
        return f"There was {what}: the recipe does not ask for one."
    return f"There was {what}: the recipe does not ask for one, or the run ended before it."


def _facts(run: RunDir, summary: Mapping[str, Any]) -> list[Fact]:
    duration_s = as_number(summary.get("duration_s"))
    return [
        Fact("Run", as_text(summary.get("run_id"), 100) or "unknown"),
        Fact("Started", moment(as_number(summary.get("started_at"))) or "not recorded"),
        Fact("Ended", moment(as_number(summary.get("finished_at"))) or "not recorded"),
        Fact("Took", "not recorded" if duration_s is None else time_span(duration_s)),
        Fact("Scheduler", as_text(summary.get("scheduler"), 60) or "not recorded"),
        Fact("Folder", as_text(summary.get("run_dir"), 1000) or as_text(run.root, 1000) or "unknown"),
    ]


def _callouts(summary: Mapping[str, Any]) -> list[Callout]:
    if not summary:
        text = "This run has no summary.json: it is still under way, or it was ended before it could write one."
        return [Callout("warn", text)]
    error = as_text(summary.get("error"), 20_000)
    state = as_text(summary.get("state"))
    if error:
        return [Callout("bad", "The run ended with this error:", code=error)]
    if state == "failed":
        return [Callout("bad", "The run failed and left no word of why; see logs/orch.log and the jobs below.")]
    if state in {"interrupted", "stopped"}:
        return [Callout("warn", f"The run was {state} before its end: what it had by then is shown.")]
    return []
