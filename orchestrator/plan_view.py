"""The plan as a table for people."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.plan import Plan, PlannedJob
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
    lines = [
        f"GPU-hours at most: {gpu_hours:g}" if gpu_hours is not None else "GPU-hours at most: no time limit is set",
        f"Scripts: {plan.run.root}/scripts",
        *(f"Note: {note}" for note in plan.notes),
    ]
    return Group(table, *(Text(line, overflow="fold") for line in lines))


def _cells(job: PlannedJob) -> tuple[str | Text, ...]:
    resources = job.resources
    return (
        job.role,
        Text(_place(resources)),
        _shown(resources.nodes),
        _shown(resources.cpus, "any"),
        _shown(resources.gpus, "0"),
        f"{resources.mem_gb:g}G" if resources.mem_gb else "no limit",
        resources.time or "default",
    )


def _place(resources: RoleResources) -> str:
    named = (resources.partition, resources.account, resources.qos)
    return "/".join(value for value in named if value) or "this machine"


def _shown(value: int | None, absent: str = "-") -> str:
    return absent if value is None else str(value)
