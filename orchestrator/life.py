"""The life of a run as its ledger tells it, event by event."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.own_job import OwnJob

LIFE_EVENTS = (
    "run_queued", "run_started", "run_resumed", "run_finished", "orchestrator_left", "run_stopped", "waiting", "waited",
)  # fmt: skip
ENDED = frozenset({"completed", "failed", "interrupted", "stopped"})


@dataclass
class Life:
    """What the events of a run add up to; whether its orchestrator lives is another question.

    Attributes:
        state: planned, running, left, completed, failed, interrupted, stopped.
        started_at: Seconds since the epoch, or None if it was only planned.
        kept: Whether its services were left up.
        resumed: How many times it was resumed.
        waits_for: Directories of the runs that it waits for.
        has_waited: Whether the runs that it had to wait for have ended as they had to.
        own_job: The batch job that its last orchestrator is or was, or None.
        queued_as: The batch job in the queue that will start or resume it, or None.
        queued: All batch jobs that were submitted to start or resume it and have not begun.
        withdrawn: Those that a stop came after: they are to touch nothing when they start.
    """

    state: str = "planned"
    started_at: float | None = None
    finished_at: float | None = None
    kept: bool = False
    resumed: int = 0
    waits_for: tuple[str, ...] = ()
    has_waited: bool = False
    own_job: OwnJob | None = None
    queued_as: OwnJob | None = None
    queued: tuple[OwnJob, ...] = ()
    withdrawn: frozenset[OwnJob] = frozenset()

    def take(self, event: Mapping[str, Any]) -> None:
        """Take in the next one of LIFE_EVENTS."""
        match event["event"]:
            case "run_queued":
                job = _own_job(event)
                # It may have started before it was recorded.
                self.queued_as = job if job != self.own_job else None
                self._leave_queue(job)
                if self.queued_as is not None:
                    self.queued = (*self.queued, self.queued_as)
                    self.withdrawn -= {self.queued_as}
                return
            case "waiting":
                self.waits_for = tuple(event["runs"])
                return
            case "waited":
                self.has_waited = True
            case "run_started":
                self.state, self.started_at = "running", event["at"]
                self._begin(_own_job(event))
            case "run_resumed":
                self.state, self.finished_at, self.kept = "running", None, False
                self._begin(_own_job(event))
                self.resumed += 1
            case "run_finished":
                self.state, self.finished_at, self.kept = event["state"], event["at"], bool(event.get("kept"))
            case "run_stopped":
                self.kept = False
                self.withdrawn |= {*self.queued, *([self.own_job] if self.own_job else [])}
                self.queued_as, self.queued = None, ()
                if self.state in {"running", "left"}:
                    self.state, self.finished_at = "stopped", event["at"]
            case _:
                self.state = "left"
        self.waits_for = ()

    def _begin(self, job: OwnJob | None) -> None:
        self.own_job, self.queued_as = job, None
        self._leave_queue(job)

    def _leave_queue(self, job: OwnJob | None) -> None:
        self.queued = tuple(other for other in self.queued if other != job)


def _own_job(event: Mapping[str, Any]) -> OwnJob | None:
    return OwnJob.from_json(event.get("own_job"))
