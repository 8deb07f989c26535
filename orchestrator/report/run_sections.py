"""What the run itself was: what was served, its jobs, its monitoring, notes and versions."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.report.untrusted import as_list, as_map, as_maps, as_number, as_text
from orchestrator.report.views import Cell, Fact, Section, Table, number_cell
from orchestrator.report.wording import moment, plural, quantity, state_badge, time_span

_MAX_ROWS = 300


def served_section(served: Mapping[str, Any]) -> Section:
    """Return what was served, where and how."""
    labels = (
        ("model", "Model"),
        ("model_source", "From"),
        ("engine", "Engine"),
        ("precision", "Precision"),
        ("device", "Device"),
        ("replicas", "Replicas"),
        ("node", "Node"),
        ("job_id", "Job id"),
        ("url", "Address"),
    )
    facts = [Fact(label, text) for key, label in labels if (text := as_text(served.get(key), 300))]
    if not facts:
        return Section(
            "served", "What was served", absence="No model was served: none was asked for, or none became ready."
        )
    ready_s = as_number(served.get("ready_after_s"))
    facts.append(Fact("Ready", "not recorded" if ready_s is None else f"after {time_span(ready_s)}"))
    return Section("served", "What was served", facts=tuple(facts))


def jobs_section(jobs: Sequence[Mapping[str, Any]]) -> Section:
    """Return every job that the run submitted."""
    if not jobs:
        return Section("jobs", "Jobs", absence="No job was submitted.")
    rows = []
    for job in jobs[:_MAX_ROWS]:
        ready_s = as_number(job.get("ready_after_s"))
        rows.append(
            (
                Cell(as_text(job.get("name"), 120) or "–"),
                Cell(as_text(job.get("role"), 60) or as_text(job.get("kind"), 60) or "–"),
                Cell(as_text(job.get("job_id"), 120) or "never submitted"),
                Cell(as_text(job.get("node"), 200) or "–"),
                Cell(badge=state_badge(job.get("state"))),
                number_cell(time_span(ready_s)),
                Cell(as_text(job.get("why")) or "–"),
            )
        )
    left = len(jobs) - len(rows)
    columns = ("Name", "Role", "Job id", "Node", "State", "Time to ready", "Why")
    remark = f"{plural(left, 'further job')} in summary.json." if left > 0 else None
    table = Table("Jobs of this run", columns, tuple(rows), is_wide=True, remark=remark)
    return Section("jobs", "Jobs", tables=(table,))


def monitoring_section(monitoring: Mapping[str, Any]) -> Section:
    """Return what Prometheus held at the end of the run."""
    title = "Monitoring"
    if not monitoring:
        return Section("monitoring", title, absence="Nothing was recorded about monitoring.")
    why = as_text(monitoring.get("why"))
    url = as_text(monitoring.get("prometheus_url"), 300)
    facts = (Fact("Prometheus", url, "while the run lasted"),) if url else ()
    rows = _series_rows(as_maps(monitoring.get("series")))
    if not rows:
        words = "Prometheus has seen nothing of this run" + (f": {why}" if why else ", and why was not recorded.")
        return Section("monitoring", title, absence=words, facts=facts)
    paragraphs = (f"Not everything was seen: {why}",) if why else ()
    left = len(rows) - _MAX_ROWS
    table = Table(
        "What Prometheus saw",
        ("Metric", "Series", "Samples", "Last value", "Last seen"),
        tuple(rows[:_MAX_ROWS]),
        is_wide=True,
        remark=f"{plural(left, 'further metric')} in summary.json." if left > 0 else None,
    )
    return Section("monitoring", title, facts=facts, tables=(table,), paragraphs=paragraphs)


def _series_rows(series: Sequence[Mapping[str, Any]]) -> list[tuple[Cell, ...]]:
    by_name: dict[str, list[list[tuple[float, float]]]] = {}
    for item in series:
        name = as_text(as_map(item.get("metric")).get("__name__"), 200) or "without a name"
        by_name.setdefault(name, []).append(_samples(item.get("values")))
    rows: list[tuple[Cell, ...]] = []
    for name, traces in sorted(by_name.items()):
        last = [trace[-1] for trace in traces if trace]
        values = [value for _, value in last]
        words = quantity(values[0]) if len(set(values)) == 1 else ""
        if len(set(values)) > 1:
            words = f"{quantity(min(values))} to {quantity(max(values))}"
        seen = moment(max(at_s for at_s, _ in last)) if last else None
        samples = sum(len(trace) for trace in traces)
        rows.append(
            (
                Cell(name),
                number_cell(f"{len(traces):,}"),
                number_cell(f"{samples:,}"),
                number_cell(words or "no value"),
                Cell(seen or "–"),
            )
        )
    return rows


def _samples(values: object) -> list[tuple[float, float]]:
    """Return the (seconds since the epoch, value) of a range answer; Prometheus writes values as text."""
    samples = []
    for pair in as_list(values):
        if not isinstance(pair, list) or len(pair) != 2:
            continue
        at_s, value = as_number(pair[0]), as_number(pair[1])
        if value is None and isinstance(pair[1], str):
            try:
                value = as_number(float(pair[1]))
            except ValueError:
                continue
        if at_s is not None and value is not None:
            samples.append((at_s, value))
    return samples


def notes_section(notes: Sequence[object]) -> Section:
    """Return what the run remarked on."""
    texts = tuple(text for note in notes if (text := as_text(note)))
    return Section("notes", "Notes", paragraphs=texts, absence=None if texts else "The run left no notes.")


def rerun_section(provenance: Mapping[str, Any], recipe: Path) -> Section:
    """Return what the run was made with and how to repeat it."""
    labels = (("orch_version", "orch"), ("python", "Python"), ("recipe_sha256", "Recipe (SHA-256)"))
    facts = tuple(Fact(label, text) for key, label in labels if (text := as_text(provenance.get(key), 200)))
    packages = as_map(provenance.get("packages")).items()
    facts += tuple(Fact(as_text(name, 100) or "–", as_text(version, 100) or "–") for name, version in packages)
    return Section(
        "rerun",
        "Versions and rerun",
        facts=facts,
        paragraphs=() if facts else ("No versions were recorded.",),
        code=f"python orch.py {shlex.quote(as_text(recipe, 4000) or '')}",
    )
