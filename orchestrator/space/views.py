"""Sizes and deletions as tables of 80 columns, and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from orchestrator.space.selection import Item
from orchestrator.space.usage import KINDS, Usage
from orchestrator.space.wording import age_text, size_text


def usage_json(usage: Usage) -> dict[str, Any]:
    """Return what `du --json` prints; sizes in bytes."""
    runs = [{"name": run.name, **run.kinds, "total": run.total} for run in usage.runs]
    return {
        "where": usage.where,
        "runs": runs,
        "others": dict(usage.others),
        "total": usage.total,
        "problems": list(usage.problems),
    }


def show_usage(usage: Usage, console: Console) -> None:
    """Print what lies where."""
    console.print(usage.where, soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("run", overflow="fold")
    for name in (*KINDS, "total"):
        table.add_column(name, justify="right", no_wrap=True)
    for run in usage.runs:
        cells = [size_text(run.kinds[kind]) if run.kinds[kind] else "-" for kind in KINDS]
        table.add_row(run.name, *cells, size_text(run.total))
    for name, size in usage.others.items():
        table.add_row(name, *[""] * len(KINDS), size_text(size))
    table.add_row("all", *[""] * len(KINDS), size_text(usage.total), style="bold")
    console.print(table)
    for problem in usage.problems:
        console.print(f"not counted: {problem}", soft_wrap=True)


def item_json(item: Item) -> dict[str, Any]:
    """Return one thing as `clean --json` prints it."""
    return {
        "what": item.what,
        "name": item.name,
        "bytes": item.n_bytes,
        "age_s": round(item.age_s),
        "state": item.state or None,
        "why_left": item.why_left or None,
    }


def show_items(items: Sequence[Item], console: Console) -> None:
    """Print what would go, then what stays and why."""
    going = [item for item in items if not item.why_left]
    staying = [item for item in items if item.why_left]
    if going:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("to delete", "name", "state", "age", "size"):
            table.add_column(
                name, overflow="fold", no_wrap=name != "name", justify="right" if name == "size" else "left"
            )
        for item in going:
            age = age_text(item.age_s) if item.age_s else "-"
            table.add_row(item.what, item.name, item.state or "-", age, size_text(item.n_bytes))
        console.print(table)
    for item in staying:
        console.print(f"left: {item.name}: {item.why_left}")
