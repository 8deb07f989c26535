"""What one step of a check found, and the order in which steps are tried."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from orchestrator.errors import OrchError, TransportError
from orchestrator.interrupts import TerminatedError


class Verdict(StrEnum):
    """How a step ended."""

    OK = "ok"
    FAILED = "failed"
    WARNING = "warning"
    NOT_APPLICABLE = "n/a"
    NOT_TRIED = "not tried"
    PLANNED = "dry run"


_BLOCKS = frozenset({Verdict.FAILED, Verdict.NOT_TRIED})


@dataclass(frozen=True)
class Finding:
    """What a step found.

    Attributes:
        verdict: How it ended.
        words: What was seen, or why it was not looked at.
        remedy: What to do; empty where nothing is wrong.
    """

    verdict: Verdict
    words: str
    remedy: str = ""


def ok(words: str) -> Finding:
    """Return that all is well."""
    return Finding(Verdict.OK, words)


def failed(words: str, remedy: str) -> Finding:
    """Return that a run would not work."""
    return Finding(Verdict.FAILED, words, remedy)


def warning(words: str, remedy: str) -> Finding:
    """Return that a run may not work, or that something could not be proven."""
    return Finding(Verdict.WARNING, words, remedy)


def not_applicable(why: str) -> Finding:
    """Return that there is nothing to look at."""
    return Finding(Verdict.NOT_APPLICABLE, why)


def not_tried(why: str) -> Finding:
    """Return that it was not looked at."""
    return Finding(Verdict.NOT_TRIED, why)


def planned(words: str) -> Finding:
    """Return what would be done, of a step that changes something."""
    return Finding(Verdict.PLANNED, words)


@dataclass(frozen=True)
class Check:
    """One step before it is tried.

    Attributes:
        name: What is looked at.
        look: Looks; an OrchError is a failure.
        needs: Steps without which it makes no sense.
    """

    name: str
    look: Callable[[], Finding]
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Step:
    """One step that was tried, or why it was not."""

    name: str
    finding: Finding
    took_s: float = 0.0


def try_checks(checks: Sequence[Check], tell: Callable[[str], None]) -> Iterator[Step]:
    """Try ``checks`` in their order; one whose precondition failed is not tried.

    Args:
        checks: In an order in which each comes after what it needs.
        tell: Hears the name of each step before it is tried.
    """
    blocked: set[str] = set()
    for check in checks:
        missing = [name for name in check.needs if name in blocked]
        if missing:
            step = Step(check.name, not_tried(f"needs: {', '.join(missing)}"))
        else:
            tell(check.name)
            started = time.monotonic()
            step = Step(check.name, _look(check), time.monotonic() - started)
        if step.finding.verdict in _BLOCKS:
            blocked.add(check.name)
        yield step


def _look(check: Check) -> Finding:
    try:
        return check.look()
    except TerminatedError:
        raise
    except TransportError as error:
        return failed(error.what, error.remedy or "Look whether the connection is there: `ssh` by hand.")
    except OrchError as error:
        what, _, remedy = str(error).partition("\n")
        return failed(what, remedy)
