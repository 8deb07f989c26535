"""The cap on a run's GPU-hours: what was used, what open jobs can still use, and whether one more may start."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.errors import UserError
from orchestrator.ledger import Ledger
from orchestrator.plan import PlannedJob
from orchestrator.recipe.base import time_limit_s
from orchestrator.records import StatusRecord, read_heartbeat, read_status
from orchestrator.rundir import RunDir
from orchestrator.schedulers import JobState

STOPPED_BY = "max_gpu_hours"
# In these states a job has its GPUs; UNKNOWN tells of the scheduler, not of the job.
_HOLDING = frozenset({JobState.RUNNING, JobState.SUSPENDED, JobState.UNKNOWN})
_WAITING = frozenset({JobState.PENDING, JobState.REQUEUED})


class GpuCapError(UserError):
    """A job was not submitted: with it the run could use more GPU-hours than ``job.guard.max_gpu_hours``.

    Attributes:
        may_fit_later: Whether it would fit if the trials that are under way end before their time limit.
    """

    def __init__(self, job: str, state: Spending, own: float | None, cap: float) -> None:
        self.may_fit_later = state.spent < cap and (own is None or state.spent + state.services + own <= cap)
        asked = "has no wall time to count with" if own is None else f"can use {own:.3g}"
        super().__init__(
            f"job '{job}' is not submitted: job.guard.max_gpu_hours = {cap:g}; {state.spent:.3g} GPU-hours are used, "
            f"open jobs can still use {state.services + state.tasks:.3g}, and it {asked}.\n"
            "Raise the cap, or shorten wall times (job.infrastructure.time, job.resources, job.hpo.trial_timeout_s)."
        )


@dataclass(frozen=True)
class Spending:
    """GPU-hours of a run at one moment.

    Attributes:
        spent: Used so far, running jobs up to now.
        services: What open services can still use within their wall time.
        tasks: The same of open trials.
    """

    spent: float
    services: float
    tasks: float


@dataclass
class _Use:
    """One submitted job, put together from the ledger."""

    planned: Mapping[str, Any]
    spans: list[tuple[float, float | None]] = field(default_factory=list)
    state: str = JobState.PENDING

    def note(self, state: str, at: float) -> None:
        """Take a change of state."""
        is_open = bool(self.spans) and self.spans[-1][1] is None
        if state == JobState.RUNNING and not is_open:
            self.spans.append((at, None))
        elif state not in _HOLDING and is_open:
            self.spans[-1] = (self.spans[-1][0], at)
        self.state = state

    def refine(self, record: StatusRecord, heartbeat_at: float | None) -> None:
        """Put the last attempt's own word in the place of what was seen of it, which may have been hours later."""
        seen_end = None
        if self.spans and (self.spans[-1][1] is None or self.spans[-1][1] > record.started_at):
            seen_end = self.spans.pop()[1]
        end = record.finished_at
        if end is None and seen_end is not None:
            end = heartbeat_at or seen_end
        self.spans.append((record.started_at, end))
        if record.is_finished and self.state not in _WAITING:
            self.state = JobState.COMPLETED

    @property
    def is_open(self) -> bool:
        """Whether the job may use more."""
        return not JobState(self.state).is_final

    def ran_s(self, now: float) -> float:
        """Return for how long the job has held its GPUs, all attempts together, in seconds."""
        return sum(max(0.0, (now if end is None else end) - start) for start, end in self.spans)

    @property
    def gpus(self) -> int:
        resources = self.planned["resources"]
        return (resources.get("gpus") or 0) * (resources.get("nodes") or 1)


class GpuGuard:
    """Judges submissions of one run."""

    def __init__(
        self,
        run: RunDir,
        cap: float | None,
        trial_timeout_s: float | None,
        limits_s: Mapping[str, float | None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Make the guard.

        Args:
            run: Its ledger and records tell what was used, by earlier orchestrators as well.
            cap: GPU-hours that the run may use; None for no cap.
            trial_timeout_s: After how long the search ends a trial, in seconds, or None.
            limits_s: By role, the wall time in seconds of jobs that ask for none, where the partition has one.
            clock: Returns seconds since the epoch.
        """
        self._run, self._cap, self._clock = run, cap, clock
        self._trial_timeout_s, self._limits_s = trial_timeout_s, limits_s

    def check(self, planned: PlannedJob) -> None:
        """Let ``planned`` be submitted, or not.

        Raises:
            GpuCapError: the run could go over its cap.
        """
        gpus = (planned.resources.gpus or 0) * (planned.resources.nodes or 1)
        if self._cap is None or not gpus:
            return
        state = self.spending()
        limit_s = self._limit_s(planned.as_json(""))
        own = None if limit_s is None else gpus * limit_s / 3600
        if state.spent >= self._cap or state.spent + state.services + state.tasks + (own or 0.0) > self._cap:
            error = GpuCapError(planned.name, state, own, self._cap)
            Ledger(self._run.events).append("job_over_cap", job=planned.name, cap=self._cap, spent=state.spent)
            raise error

    def figures(self) -> dict[str, Any]:
        """Return what summary.json says of GPU-hours."""
        return {"used": round(self.spending().spent, 4), "cap": self._cap}

    def spending(self) -> Spending:
        """Return what was used, and what open jobs can still use; a job without any limit counts up to now only."""
        now = self._clock()
        spent = services = tasks = 0.0
        for use in self._uses():
            ran_s = use.ran_s(now)
            spent += use.gpus * ran_s / 3600
            limit_s = self._limit_s(use.planned) if use.is_open else None
            left = use.gpus * max(0.0, (limit_s or 0.0) - _since_start(use, now)) / 3600
            if use.planned["kind"] == "service":
                services += left
            else:
                tasks += left
        return Spending(spent, services, tasks)

    def _limit_s(self, planned: Mapping[str, Any]) -> float | None:
        wall_time = planned["resources"].get("time")
        limits = [time_limit_s(wall_time) if wall_time else self._limits_s.get(planned["role"])]
        if planned["role"] == "trial":
            limits.append(self._trial_timeout_s)
        return min((limit for limit in limits if limit is not None), default=None)

    def _uses(self) -> Iterable[_Use]:
        """Return every job that was ever submitted in the run and has GPUs."""
        intents: dict[str, Mapping[str, Any]] = {}
        uses: dict[str, _Use] = {}
        by_id: dict[str, _Use] = {}
        for event in Ledger(self._run.events).events("job_intent", "job_submitted", "job_state"):
            if event["event"] == "job_intent":
                intents[event["token"]] = event["planned"]
            elif event["event"] == "job_submitted" and event["token"] in intents:
                use = _Use(intents[event["token"]])
                if use.gpus:
                    uses[event["token"]] = by_id[event["job_id"]] = use
            elif event["event"] == "job_state" and event["job_id"] in by_id:
                by_id[event["job_id"]].note(event["state"], event["at"])
        for token, use in uses.items():
            record = read_status(self._run, token)
            if record is not None:
                use.refine(record, read_heartbeat(self._run, token))
        return uses.values()


def _since_start(use: _Use, now: float) -> float:
    """Return for how long the present attempt has run: a requeued job gets its whole wall time again."""
    if not use.spans or use.spans[-1][1] is not None:
        return 0.0
    return now - use.spans[-1][0]
