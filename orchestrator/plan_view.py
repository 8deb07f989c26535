"""The plan as a table for people."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.allocation.within import WITHIN
from orchestrator.forecast.ask import NO_PARTITION
from orchestrator.forecast.document import Forecast, StageCost, clock
from orchestrator.plan import Plan, PlannedJob
from orchestrator.recipe.hosts import STEPS
from orchestrator.recipe.infrastructure import RoleResources


def show_plan(plan: Plan, console: Console) -> None:
    """Print ``plan``: jobs, resources, GPU-hours, notes."""
    console.print(_render(plan))


def _render(plan: Plan) -> RenderableType:
    table = Table(
        title=f"Plan of run {plan.run_id} on {plan.scheduler}", title_justify="left", title_style="bold", box=None
    )
    for name in ("job", "role", "where"):
        table.add_column(name, no_wrap=name != "where")
    for name in ("nodes", "cpus", "gpus", "mem"):
        table.add_column(name, justify="right")
    table.add_column("time", no_wrap=True)
    for job in plan.jobs:
        table.add_row(job.name, *_cells(job))
    if plan.trial is not None:
        table.add_row(f"trial × {plan.trials}", *_cells(plan.trial))
    gpu_hours = plan.gpu_hours()
    total = (
        f"GPU-hours at most: {gpu_hours:.4g}" if gpu_hours is not None else "GPU-hours at most: no time limit is set"
    )
    forecast = plan.forecast
    lines = [
        *([] if plan.array is None else [f"Trials: as job arrays of up to {len(plan.array.members)}"]),
        *([] if forecast is None else _told(forecast, plan.trial.name if plan.trial else None)),
        f"Scripts: {plan.run.root}/scripts",
        *(f"Note: {note}" for note in plan.notes),
    ]
    costs = [] if forecast is None else [_stage_table(forecast)]
    warnings = [] if forecast is None else [Text(f"Warning: {text}", style="yellow") for text in forecast.warnings]
    return Group(table, *costs, Text(total), *(Text(line, overflow="fold") for line in lines), *warnings)


def _stage_table(forecast: Forecast) -> Table:
    table = Table(box=None, pad_edge=True)
    for name in ("stage", "lasts", "GPU-hours"):
        table.add_column(name, justify="left" if name == "stage" else "right", no_wrap=True)
    table.add_column("made of", overflow="fold")
    for stage in forecast.stages:
        table.add_row(stage.name, _length(stage), _hours(stage.gpu_hours), Text(stage.made_of))
    return table


def _length(stage: StageCost) -> str:
    if stage.lasts_s is None:
        return "no bound"
    return f"{'≤' if stage.is_bound else 'about'} {clock(stage.lasts_s)}"


def _hours(hours: float | None) -> str:
    return "no bound" if hours is None else f"{hours:.4g}"


def _told(forecast: Forecast, trial: str | None) -> list[str]:
    """Return what is known of starts, accounts and memory, one line for each."""
    by_words: dict[str, list[str]] = {}
    for start in forecast.starts:
        words = "it would be refused" if start.refusal else start.at or start.unknown or "-"
        by_words.setdefault(words, []).append("trial" if start.job == trial else start.job)
    return [
        *(f"Start: {words} ({', '.join(names)})" for words, names in by_words.items()),
        *([] if forecast.account.startswith("not applicable") else [f"Account: {forecast.account}"]),
        *([] if forecast.limits == NO_PARTITION else [f"Partitions: {forecast.limits}"]),
        *([] if forecast.fit.verdict == "does not fit" else [f"Memory: {forecast.fit.text}"]),
    ]


def _cells(job: PlannedJob) -> tuple[str | Text, ...]:
    resources = job.resources
    return (
        job.role,
        Text({STEPS: "a step of it", WITHIN: "this batch job"}.get(job.host) or _place(resources)),
        _shown(resources.nodes),
        _shown(resources.cpus, "any"),
        _shown(resources.gpus, "0"),
        f"{resources.mem_gb:g}G" if resources.mem_gb else "no limit",
        resources.time or ("-" if job.host == WITHIN else "default"),
    )


def _place(resources: RoleResources) -> str:
    named = (resources.partition, resources.account, resources.qos)
    return "/".join(value for value in named if value) or "this machine"


def _shown(value: int | None, absent: str = "-") -> str:
    return absent if value is None else str(value)
