"""A check as people and machines read it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.sitecheck.findings import Step, Verdict

_STYLES = {
    Verdict.OK: "green",
    Verdict.FAILED: "bold red",
    Verdict.WARNING: "yellow",
    Verdict.NOT_APPLICABLE: "bright_black",
    Verdict.NOT_TRIED: "bright_black",
    Verdict.PLANNED: "cyan",
}


def exit_code(steps: Sequence[Step]) -> int:
    """Return 1 if a step failed, 0 otherwise."""
    return int(any(step.finding.verdict == Verdict.FAILED for step in steps))


def show_steps(steps: Sequence[Step], console: Console) -> None:
    """Print one row for each step, with the remedy below what is wrong, and how many ended how."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("step", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("what was found", overflow="fold")
    for step in steps:
        table.add_row(*_cells(step))
    console.print(table)
    show_counts(steps, console)


def show_step(step: Step, console: Console, name_width: int) -> None:
    """Print the row of one step, as it ends; rows with the same ``name_width`` make a table."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True, width=name_width)
    table.add_column(no_wrap=True, width=max(map(len, Verdict)))
    table.add_column(overflow="fold")
    table.add_row(*_cells(step))
    console.print(table)


def _cells(step: Step) -> tuple[str, Text, Text]:
    finding = step.finding
    style = _STYLES[finding.verdict]
    is_quiet = finding.verdict in {Verdict.NOT_APPLICABLE, Verdict.NOT_TRIED}
    words = Text(finding.words, style=style if is_quiet else "")
    if finding.remedy:
        words.append(f"\n→ {finding.remedy}", style=style)
    return step.name, Text(finding.verdict, style=style), words


def show_counts(steps: Sequence[Step], console: Console) -> None:
    """Print how many steps ended how."""
    counts = Counter(step.finding.verdict for step in steps)
    console.print(", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict if counts[verdict]))


def as_json(name: str, site: str, steps: Sequence[Step], was_interrupted: bool) -> dict[str, Any]:
    """Return the check for ``--json``; times are in seconds."""
    return {
        "host": name,
        "site": site,
        "ok": not exit_code(steps) and not was_interrupted,
        "interrupted": was_interrupted,
        "steps": [
            {
                "name": step.name,
                "state": step.finding.verdict.value,
                "found": step.finding.words,
                "remedy": step.finding.remedy or None,
                "took_s": round(step.took_s, 2),
            }
            for step in steps
        ],
    }
