"""The cap on a run's GPU-hours: what was used, what open jobs can still use, and whether one more may start."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.errors import UserError
from orchestrator.ledger import Ledger
from orchestrator.plan import PlannedJob
from orchestrator.recipe.base import time_limit_s
from orchestrator.recipe.hosts import STEPS
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
    """One submitted job, put together from the ledger.

    Attributes:
        planned: Its line of the plan.
        spans: From when to when each attempt was seen to have its GPUs; None for one that still has them.
        state: The last that was seen of it.
        seen_at: When that was; seconds since the epoch as everything here.
    """

    planned: Mapping[str, Any]
    spans: list[tuple[float, float | None]] = field(default_factory=list)
    state: str = JobState.PENDING
    seen_at: float = 0.0

    def note(self, state: str, at: float) -> None:
        """Take a change of state."""
        is_open = bool(self.spans) and self.spans[-1][1] is None
        if state == JobState.RUNNING and not is_open:
            self.spans.append((at, None))
        elif state not in _HOLDING and is_open:
            self.spans[-1] = (self.spans[-1][0], at)
        self.state, self.seen_at = state, at

    def refine(self, record: StatusRecord, heartbeat_at: float | None) -> None:
        """Put an attempt's own word in the place of what was seen of it, which may have been hours later.

        The record is the last attempt's that has begun: a requeued job may have its GPUs again, and its supervisor not
        have written its first word yet. An attempt begins after the one before it was seen to have ended.
        """
        count = len(self.spans)
        index = next((i for i, (_, end) in enumerate(self.spans) if end is None or end > record.started_at), count)
        end = record.finished_at
        if end is None:
            seen_end = self.spans[index][1] if index < count else self._seen_end(record.started_at)
            if seen_end is not None:
                end = seen_end if heartbeat_at is None else min(heartbeat_at, seen_end)
        self.spans[index : index + 1] = [(record.started_at, end)]
        if record.is_finished and index >= count - 1 and self.state not in _WAITING:
            self.state = JobState.COMPLETED

    def _seen_end(self, started_at: float) -> float | None:
        """Return when an attempt that was never seen running was seen to have ended, or None."""
        if not self.is_open or (self.state in _WAITING and started_at < self.seen_at):
            return self.seen_at
        return None

    @property
    def is_open(self) -> bool:
        """Whether the job may use more."""
        return not JobState(self.state).is_final

    def ran_s(self, now: float) -> float:
        """Return for how long the job has held its GPUs, all attempts together, in seconds."""
        return sum(max(0.0, (now if end is None else end) - start) for start, end in self.spans)

    @property
    def gpus(self) -> int:
        if self.planned.get("host") == STEPS:
            return 0  # they are its allocation's
        parts = (self.planned["resources"], *self.planned.get("components", ()))
        return sum((part.get("gpus") or 0) * (part.get("nodes") or 1) for part in parts)


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

    def check(self, planned: PlannedJob, *beside: PlannedJob) -> None:
        """Let ``planned`` be submitted, or not, with the jobs ``beside`` it that are to be submitted together with it.

        Raises:
            GpuCapError: the run could go over its cap.
        """
        if self._cap is None or not planned.gpus:
            return
        state = self.spending()
        own = self._most(planned)
        state = replace(state, tasks=state.tasks + sum(self._most(other) or 0.0 for other in beside))
        if state.spent >= self._cap or state.spent + state.services + state.tasks + (own or 0.0) > self._cap:
            error = GpuCapError(planned.name, state, own, self._cap)
            Ledger(self._run.events).append("job_over_cap", job=planned.name, cap=self._cap, spent=state.spent)
            raise error

    def _most(self, planned: PlannedJob) -> float | None:
        """Return the GPU-hours that a job can use, or None if it has no wall time to count with."""
        limit_s = self._limit_s(planned.as_json(""))
        return None if limit_s is None else planned.gpus * limit_s / 3600

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
        uses: dict[tuple[str, str], _Use] = {}
        # A scheduler that lost its memory gives an id out again; of one name only the last job is watched.
        watched: dict[tuple[str, str], _Use] = {}
        for event in Ledger(self._run.events).events("job_intent", "job_submitted", "job_state"):
            if event["event"] == "job_intent":
                intents[event["token"]] = event["planned"]
            elif event["event"] == "job_submitted" and event["token"] in intents:
                use = uses.setdefault((event["token"], event["job_id"]), _Use(intents[event["token"]]))
                watched[event["job"], event["job_id"]] = use
            elif event["event"] == "job_state" and (event["job"], event["job_id"]) in watched:
                watched[event["job"], event["job_id"]].note(event["state"], event["at"])
        for (token, job_id), use in uses.items():
            record = read_status(self._run, token)
            if record is not None and record.job_id == job_id:
                use.refine(record, read_heartbeat(self._run, token))
        return [use for use in uses.values() if use.gpus]


def _since_start(use: _Use, now: float) -> float:
    """Return for how long the present attempt has run: a requeued job gets its whole wall time again."""
    if not use.spans or use.spans[-1][1] is not None:
        return 0.0
    return now - use.spans[-1][0]
