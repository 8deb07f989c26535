"""How a job's own records and the scheduler's answers make one state. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.records import StatusRecord
from orchestrator.schedulers import JobState, Seen

# A supervisor renews its heartbeat every 3 s; shared file systems show it a few seconds late.
FRESH_S = 9.0
# How long a job that nobody knows of is looked for before it counts as lost.
LOST_AFTER_S = 90.0
_ENDED_FROM_OUTSIDE = frozenset(
    {JobState.TIMEOUT, JobState.PREEMPTED, JobState.NODE_FAIL, JobState.CANCELLED, JobState.OUT_OF_MEMORY}
)


@dataclass(frozen=True)
class Evidence:
    """All that is known of one job at one moment.

    Attributes:
        now: Seconds since the epoch.
        submitted_at: When it was submitted.
        record: Its own word, or None before it has given any.
        heartbeat_at: Its last sign of life, or None.
        seen: The scheduler's word, or None if the job was not in its answer.
        scheduler_answered: Whether the last status query was answered at all.
        is_absence_final: Whether a job missing from the answer has surely ended.
        cancelled: Whether we cancelled it.
        listed_at: When the scheduler last listed it, or None if it never did.
        is_task: Whether it ends by itself; a service does not.
        was_asked: Whether the scheduler has answered since the job was submitted.
    """

    now: float
    submitted_at: float
    record: StatusRecord | None
    heartbeat_at: float | None
    seen: Seen | None
    scheduler_answered: bool
    is_absence_final: bool
    cancelled: bool = False
    listed_at: float | None = None
    is_task: bool = False
    was_asked: bool = True


@dataclass(frozen=True)
class Verdict:
    """A state and why, in words (None where there is nothing to say)."""

    state: JobState
    why: str | None = None


def judge(evidence: Evidence) -> Verdict:
    """Return the state that the evidence shows.

    The sentinel decides how a job ended; the scheduler only says whether it is still there. An old process may outlive
    what the scheduler says of it, so a scheduler's end counts only when the job's heartbeat has stopped. A job that a
    signal ended, and not ours, may be preempted, requeued or out of time: who sent it only the scheduler knows.
    """
    record, seen = evidence.record, evidence.seen
    if record is not None and record.is_finished:
        if evidence.is_task and record.is_success:
            # Its work is done, though a scheduler that lost its memory may have it in the queue again.
            return Verdict(JobState.COMPLETED)
        is_doubtful = record.reason == "signal" and not evidence.cancelled and not evidence.is_absence_final
        if is_doubtful and not evidence.scheduler_answered:
            return Verdict(JobState.UNKNOWN, "a signal ended it, and the scheduler does not answer")
        if seen is not None and evidence.scheduler_answered:
            if seen.state in {JobState.PENDING, JobState.REQUEUED}:
                return Verdict(JobState.REQUEUED, seen.reason)
            if is_doubtful:
                return _by_signal(record, seen)
        return _by_sentinel(record, evidence.cancelled)
    alive = evidence.heartbeat_at is not None and evidence.now - evidence.heartbeat_at < FRESH_S
    if not evidence.scheduler_answered:
        return Verdict(JobState.RUNNING) if alive else Verdict(JobState.UNKNOWN, "the scheduler does not answer")
    if seen is None and not evidence.was_asked:
        # An answer from before the submission cannot have it.
        return Verdict(JobState.RUNNING if record is not None else JobState.PENDING)
    if seen is None:
        return _by_absence(evidence, alive)
    if not seen.state.is_final:
        return Verdict(seen.state, seen.reason if seen.state != JobState.RUNNING else None)
    if alive and not evidence.is_absence_final:
        return Verdict(JobState.RUNNING, f"the scheduler says {seen.state}, but it is alive")
    return _by_scheduler(seen, record)


def _by_sentinel(record: StatusRecord, cancelled: bool) -> Verdict:
    why = record.message or f"exit code {record.exit_code}"
    if record.is_success:
        return Verdict(JobState.COMPLETED)
    if record.reason == "out_of_memory":
        return Verdict(JobState.OUT_OF_MEMORY, why)
    if record.reason == "signal" and cancelled:
        return Verdict(JobState.CANCELLED, "ended by its run")
    if record.reason == "lease_expired":
        return Verdict(JobState.CANCELLED, why)
    return Verdict(JobState.FAILED, why)


def _by_signal(record: StatusRecord, seen: Seen) -> Verdict:
    if not seen.state.is_final:
        return Verdict(JobState.RUNNING, "a signal ended it; the scheduler has not said why")
    if seen.state in _ENDED_FROM_OUTSIDE:
        return Verdict(seen.state, f"the scheduler says {seen.state}" + (f" ({seen.reason})" if seen.reason else ""))
    return _by_sentinel(record, cancelled=False)


def _by_absence(evidence: Evidence, alive: bool) -> Verdict:
    if evidence.is_absence_final:
        return Verdict(JobState.FAILED, "it was killed outright, without a last word")
    if alive:
        return Verdict(JobState.RUNNING)
    last = max(evidence.heartbeat_at or 0.0, evidence.submitted_at, evidence.listed_at or 0.0)
    silent_s = evidence.now - last
    if silent_s < LOST_AFTER_S:
        return Verdict(JobState.UNKNOWN, "the scheduler does not list it")
    return Verdict(JobState.LOST, f"the scheduler does not list it and it has been silent for {silent_s:.0f} s")


def _by_scheduler(seen: Seen, record: StatusRecord | None) -> Verdict:
    words = f"the scheduler says {seen.state}" + (f" ({seen.reason})" if seen.reason else "")
    words += "; its supervisor never started" if record is None else "; it was killed outright, without a last word"
    if seen.state == JobState.COMPLETED:
        # It left no sentinel, so nothing proves that it did its work.
        return Verdict(JobState.LOST, words)
    return Verdict(seen.state, words)
