"""How a job's own records and the scheduler's answers make one state."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.records import StatusRecord
from orchestrator.schedulers import JobState, Seen
from orchestrator.truth import FRESH_S, LOST_AFTER_S, Evidence, judge

NOW = 10_000.0
ALIVE = NOW - 1
SILENT = NOW - 3600


def record(state: str = "ready", **fields: Any) -> StatusRecord:
    """Return a status record."""
    return StatusRecord("t", "1", "a", "node", state, 0.0, **fields)


def ended(reason: str = "exited", exit_code: int | None = None, message: str | None = None) -> StatusRecord:
    """Return a sentinel."""
    return record("finished", reason=reason, exit_code=exit_code, message=message)


def seen(state: JobState, reason: str | None = None) -> Seen:
    """Return the scheduler's word."""
    return Seen("1", "t", state, "node", reason)


def evidence(**fields: Any) -> Evidence:
    """Return evidence of a cluster's job of an hour that nobody has seen anything of."""
    given: dict[str, Any] = {
        "now": NOW,
        "submitted_at": SILENT,
        "record": None,
        "heartbeat_at": None,
        "seen": None,
        "scheduler_answered": True,
        "is_absence_final": False,
    }
    return Evidence(**{**given, **fields})


S = JobState
CASES: dict[str, tuple[dict[str, Any], JobState]] = {
    # The scheduler's word, while the job has not ended.
    "pending": ({"seen": seen(S.PENDING, "Priority")}, S.PENDING),
    "running": ({"seen": seen(S.RUNNING), "record": record(), "heartbeat_at": ALIVE}, S.RUNNING),
    "suspended and silent": ({"seen": seen(S.SUSPENDED), "record": record(), "heartbeat_at": SILENT}, S.SUSPENDED),
    "state that is not known": ({"seen": seen(S.UNKNOWN)}, S.UNKNOWN),
    # The sentinel decides.
    "ended well": ({"record": ended(exit_code=0)}, S.COMPLETED),
    "ended well, scheduler says failed": ({"record": ended(exit_code=0), "seen": seen(S.FAILED)}, S.COMPLETED),
    "ended well, scheduler says cancelled": ({"record": ended(exit_code=0), "seen": seen(S.CANCELLED)}, S.COMPLETED),
    "ended well, scheduler still says running": ({"record": ended(exit_code=0), "seen": seen(S.RUNNING)}, S.COMPLETED),
    "ended badly, scheduler says completed": ({"record": ended(exit_code=3), "seen": seen(S.COMPLETED)}, S.FAILED),
    "ended badly, not listed": ({"record": ended(exit_code=1)}, S.FAILED),
    "ended, no answer": ({"record": ended(exit_code=0), "scheduler_answered": False}, S.COMPLETED),
    "out of memory": ({"record": ended("out_of_memory"), "seen": seen(S.FAILED)}, S.OUT_OF_MEMORY),
    "startup time-out": ({"record": ended("startup_timeout")}, S.FAILED),
    "port in use": ({"record": ended("port_in_use")}, S.FAILED),
    "lease expired": ({"record": ended("lease_expired")}, S.CANCELLED),
    "cancelled by us": ({"record": ended("signal"), "cancelled": True, "seen": seen(S.RUNNING)}, S.CANCELLED),
    "cancelled by us, no answer": (
        {"record": ended("signal"), "cancelled": True, "scheduler_answered": False},
        S.CANCELLED,
    ),
    # A signal that was not ours: only the scheduler knows why.
    "signal, still listed": ({"record": ended("signal"), "seen": seen(S.RUNNING)}, S.RUNNING),
    "signal, time limit": ({"record": ended("signal"), "seen": seen(S.TIMEOUT, "TimeLimit")}, S.TIMEOUT),
    "signal, preempted": ({"record": ended("signal"), "seen": seen(S.PREEMPTED)}, S.PREEMPTED),
    "signal, cancelled by its owner": ({"record": ended("signal"), "seen": seen(S.CANCELLED)}, S.CANCELLED),
    "signal, failed": ({"record": ended("signal"), "seen": seen(S.FAILED)}, S.FAILED),
    "signal, not listed": ({"record": ended("signal")}, S.FAILED),
    "signal, no answer": ({"record": ended("signal"), "scheduler_answered": False}, S.UNKNOWN),
    "signal, on one machine": (
        {"record": ended("signal"), "is_absence_final": True, "seen": seen(S.RUNNING)},
        S.FAILED,
    ),
    # A requeue: the sentinel is the earlier attempt's.
    "ended and pending again": ({"record": ended("signal"), "seen": seen(S.PENDING, "BeginTime")}, S.REQUEUED),
    "ended well and pending again": ({"record": ended(exit_code=0), "seen": seen(S.PENDING)}, S.REQUEUED),
    "a task ended well and pending again": (
        {"record": ended(exit_code=0), "seen": seen(S.PENDING), "is_task": True},
        S.COMPLETED,
    ),
    "a task ended badly and pending again": (
        {"record": ended(exit_code=1), "seen": seen(S.PENDING), "is_task": True},
        S.REQUEUED,
    ),
    "ended and requeued": ({"record": ended(exit_code=1), "seen": seen(S.REQUEUED)}, S.REQUEUED),
    "ended, pending by an old answer": (
        {"record": ended(exit_code=0), "seen": seen(S.PENDING), "scheduler_answered": False},
        S.COMPLETED,
    ),
    # The scheduler's end counts only when the job is silent.
    "node failed, silent": ({"seen": seen(S.NODE_FAIL), "record": record(), "heartbeat_at": SILENT}, S.NODE_FAIL),
    "node failed, alive": ({"seen": seen(S.NODE_FAIL), "record": record(), "heartbeat_at": ALIVE}, S.RUNNING),
    "failed, alive": ({"seen": seen(S.FAILED), "record": record(), "heartbeat_at": ALIVE}, S.RUNNING),
    "failed, alive on one machine": (
        {"seen": seen(S.FAILED), "record": record(), "heartbeat_at": ALIVE, "is_absence_final": True},
        S.FAILED,
    ),
    "failed before it started": ({"seen": seen(S.FAILED, "JobLaunchFailure")}, S.FAILED),
    "completed without a word": ({"seen": seen(S.COMPLETED), "record": record(), "heartbeat_at": SILENT}, S.LOST),
    # Not listed is not an end.
    "not listed, just submitted": ({"submitted_at": NOW - 1}, S.UNKNOWN),
    "not listed, alive": ({"record": record(), "heartbeat_at": ALIVE}, S.RUNNING),
    "not listed, silent for a moment": ({"record": record(), "heartbeat_at": NOW - FRESH_S - 1}, S.UNKNOWN),
    "not listed, silent for long": ({"record": record(), "heartbeat_at": NOW - LOST_AFTER_S - 1}, S.LOST),
    "not listed, pending a moment ago": ({"listed_at": NOW - 5}, S.UNKNOWN),
    "not listed, pending long ago": ({"listed_at": NOW - LOST_AFTER_S - 1}, S.LOST),
    "not listed on one machine": ({"record": record(), "is_absence_final": True}, S.FAILED),
    # No answer is no end either.
    "no answer, alive": ({"scheduler_answered": False, "heartbeat_at": ALIVE, "record": record()}, S.RUNNING),
    "no answer, silent": ({"scheduler_answered": False, "heartbeat_at": SILENT, "record": record()}, S.UNKNOWN),
    "no answer, never seen": ({"scheduler_answered": False}, S.UNKNOWN),
    "no answer, an old answer said failed": ({"scheduler_answered": False, "seen": seen(S.FAILED)}, S.UNKNOWN),
}


@pytest.mark.parametrize("name", CASES)
def test_judge_of_the_evidence_gives_the_state(name: str) -> None:
    fields, state = CASES[name]
    assert judge(evidence(**fields)).state == state


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"seen": seen(S.PENDING, "Priority")}, "Priority"),
        ({"seen": seen(S.RUNNING, "None")}, None),
        ({"record": ended(exit_code=0, message="done")}, None),
        ({"record": ended(exit_code=7)}, "exit code 7"),
        ({"record": ended("port_in_use", message="port 8000 is taken")}, "port 8000 is taken"),
        ({"seen": seen(S.FAILED, "JobLaunchFailure")}, "(JobLaunchFailure); its supervisor never started"),
        ({"seen": seen(S.COMPLETED), "record": record()}, "killed outright, without a last word"),
        ({"seen": seen(S.FAILED), "record": record(), "heartbeat_at": ALIVE}, "but it is alive"),
        ({"record": ended("signal"), "seen": seen(S.TIMEOUT, "TimeLimit")}, "TIMEOUT (TimeLimit)"),
        ({"scheduler_answered": False}, "the scheduler does not answer"),
        ({}, "silent for 3600 s"),
    ],
)
def test_judge_says_why_in_words(fields: dict[str, Any], why: str | None) -> None:
    told = judge(evidence(**fields)).why
    if why is None:
        assert told is None
    else:
        assert told is not None
        assert why in told


def test_states_that_are_final_are_exactly_the_ends() -> None:
    going_on = {S.PENDING, S.RUNNING, S.SUSPENDED, S.REQUEUED, S.UNKNOWN}
    assert {state for state in S if not state.is_final} == going_on


@pytest.mark.parametrize("is_absence_final", [False, True])
@pytest.mark.parametrize(("own", "state"), [(None, JobState.PENDING), (record(), JobState.RUNNING)])
def test_job_that_is_younger_than_the_last_answer_is_not_missing_in_it(
    own: StatusRecord | None, state: JobState, is_absence_final: bool
) -> None:
    verdict = judge(evidence(record=own, seen=None, was_asked=False, is_absence_final=is_absence_final))
    assert verdict.state == state
