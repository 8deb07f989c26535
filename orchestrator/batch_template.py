"""A centre's own batch template in place of the shipped skeleton: it may add whatever it likes, and drop nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from orchestrator.errors import UserError
from orchestrator.render import render, render_text

PREFIXES = {"slurm": "#SBATCH ", "pbs": "#PBS "}


def render_job(shipped: str, own: str | None, scheduler: str, context: dict[str, Any]) -> str:
    """Return a job's script by the shipped skeleton, or by the centre's own template where there is one.

    Args:
        shipped: The skeleton, below templates/.
        own: Path of the centre's template, which is given the same values, or None.
        scheduler: Kind of the scheduler.
        context: Values of the skeleton.

    Raises:
        UserError: the own template cannot be read, or drops what the job must carry.
        RenderError: a template is wrong, or a value cannot be put into the script safely.
    """
    text = render(shipped, context)
    if own is None:
        return text
    path = Path(own).expanduser()
    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"batch_template = {own}: it cannot be read: {error}") from error
    found = render_text(source, str(path), context)
    problems = _dropped(text, found, PREFIXES.get(scheduler), render(context["job"]["body"], context))
    if problems:
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise UserError(
            f"batch_template = {own}: the script of job '{context['job']['name']}' lacks what it must carry:\n{lines}\n"
            f"Begin with a copy of templates/{shipped}; add lines to it and drop none."
        )
    return found


def _dropped(shipped: str, own: str, prefix: str | None, body: str) -> list[str]:
    """Return what ``own`` lacks of ``shipped``, each in words."""
    problems = []
    if not own.startswith("#!"):
        problems.append("the first line, with the interpreter: #!/bin/bash")
    if prefix is not None:
        there = set(_directives(own, prefix))
        problems += [line for line in _directives(shipped, prefix) if line not in there]
    if body.strip() not in own:
        problems.append("the command that starts the supervisor: {% include job.body %}")
    return problems


def _directives(script: str, prefix: str) -> list[str]:
    """Return the directives that the batch system reads: those before the first command."""
    found = []
    for line in script.splitlines():
        if line.startswith(prefix):
            found.append(line.rstrip())
        elif line.strip() and not line.startswith("#"):
            break
    return found
