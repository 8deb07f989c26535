"""Extra `#PBS` directives of a recipe: which may be given, and which would undo what orch relies on."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from orchestrator.errors import UnsupportedFieldError
from orchestrator.recipe.sections import PbsSchedulerSpec

# Source: qsub(1B). What orch sets itself, and where the recipe sets it.
_SET_BY_ORCH = {
    "N": "the job's name is how a lost submission is found again",
    "o": "the log belongs into the run directory",
    "e": "the log belongs into the run directory",
    "j": "the log belongs into the run directory",
    "S": "the scripts are bash",
    "q": "use partition",
    "A": "use account",
    "m": "use job.scheduler.mail_events",
    "M": "use job.scheduler.mail_users",
    "r": "use job.scheduler.rerunnable",
}
# What would make something else of the job than a batch job with one id.
_REFUSED = {
    "C": "it would hide orch's own directives",
    "G": "jobs are not interactive",
    "I": "jobs are not interactive",
    "J": "orch makes one job of each script",
    "X": "jobs are not interactive",
    "z": "qsub would not tell the job's id",
    "-": "the script is what runs",
}
_RESOURCES = {
    "select": "use nodes, cpus, mem_gb, gpus and job.scheduler.chunk",
    "walltime": "use time",
    "nodes": "it cannot be mixed with select",
    "ncpus": "use cpus",
    "mem": "use mem_gb",
    "ngpus": "use gpus",
}
_TAKES_NO_VALUE = frozenset("fhV")


def check_directives(role: str, directives: Sequence[str], spec: PbsSchedulerSpec) -> None:
    """Refuse directives that are no options of qsub, or that orch sets itself.

    Raises:
        UnsupportedFieldError: one of them is.
    """
    for line in directives:
        why = _objection(line, spec)
        if why:
            raise UnsupportedFieldError(
                f"directives: '{line}' for the {role} job",
                "scheduler 'pbs'",
                f"{why}.",
                "A directive is one option of qsub with its value, such as '-l filesystems=home:scratch'.",
            )


def has_resource(directives: Sequence[str], name: str) -> bool:
    """Return whether one of the checked ``directives`` asks for the job-wide resource ``name``."""
    return any(name in _resources(*_option(shlex.split(line))) for line in directives)


def _objection(line: str, spec: PbsSchedulerSpec) -> str:
    if "\\" in line:
        return "a backslash at the end of a directive swallows the next one"
    try:
        words = shlex.split(line)
    except ValueError as error:
        return f"its quotes are not closed ({error})"
    if not words or len(words[0]) < 2 or words[0][0] != "-":
        return "it is no option of qsub"
    letter, value = _option(words)
    if letter in _SET_BY_ORCH:
        return f"orch sets -{letter} itself: {_SET_BY_ORCH[letter]}"
    if letter in _REFUSED:
        return f"-{letter} is not possible: {_REFUSED[letter]}"
    if letter not in _TAKES_NO_VALUE and not value:
        return f"-{letter} needs a value"
    if letter == "W" and value.replace(" ", "").startswith("block="):
        return "qsub would wait for the job's end"
    return _resource_objection(_resources(letter, value), spec)


def _resource_objection(names: Sequence[str], spec: PbsSchedulerSpec) -> str:
    for name in names:
        if name in _RESOURCES:
            return f"orch sets -l {name} itself: {_RESOURCES[name]}"
        if name in {"place", "filesystems"} and getattr(spec, name) is not None:
            return f"job.scheduler.{name} is set as well"
    return ""


def _option(words: Sequence[str]) -> tuple[str, str]:
    letter, glued = words[0][1], words[0][2:]
    return letter, " ".join([*([glued] if glued else []), *words[1:]])


def _resources(letter: str, value: str) -> list[str]:
    return [item.partition("=")[0].strip() for item in value.split(",")] if letter == "l" else []
