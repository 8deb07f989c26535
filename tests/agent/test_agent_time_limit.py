"""``job.hpo.trial_timeout_s``: a trial that hangs is ended by its job's id, and has failed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from agent import time_limit
from agent.time_limit import TimeLimit
from orchestrator.errors import CommandError
from orchestrator.interrupts import TerminatedError
from orchestrator.records import StatusRecord
from orchestrator.schedulers import JobState
from orchestrator.tracked import TrackedJob
from tests.agent.bench import Bench

NewBench = Callable[..., Bench]
HPO = {"trials": 2, "sampler": "random", "evaluate_winner": False, "trial_timeout_s": 2.0}
CAUSE = "time limit: it ran for longer than job.hpo.trial_timeout_s = 2 s"


def job_in(state: JobState, started_ago_s: float | None = None) -> TrackedJob:
    """Return a job in a state, with a record of its own if it has started."""
    job = TrackedJob(None, "42", time.time(), state)  # type: ignore[arg-type]
    if started_ago_s is not None:
        job.record = StatusRecord("t", "42", "a", "h", "started", time.time() - started_ago_s)
    return job


def test_search_ends_a_hung_trial_and_goes_on(new_bench: NewBench) -> None:
    bench = new_bench(HPO, {"0": {"sleep_s": 600}})

    figures = bench.search()

    hung, fine = figures["trials"]
    assert (hung["state"], hung["cause"], hung["job_state"]) == ("FAIL", CAUSE, "CANCELLED")
    assert not hung["interrupted"]
    assert fine["state"] == "COMPLETE"
    assert (figures["finished"], figures["failed"]) == (2, 1)
    assert bench.states() == {"trial_0000": JobState.CANCELLED, "trial_0001": JobState.COMPLETED}
    assert any(said.startswith("trial 0: time limit") for said in bench.progress.said)


def test_search_without_a_limit_lets_trials_run(new_bench: NewBench) -> None:
    bench = new_bench({**HPO, "trials": 1, "trial_timeout_s": None}, {"sleep_s": 2.5})
    assert bench.search()["trials"][0]["state"] == "COMPLETE"


def test_search_cut_off_while_it_ends_a_hung_trial_knows_the_cause_later(new_bench: NewBench) -> None:
    bench = new_bench({**HPO, "trials": 1, "max_failed_trials": 1}, {"sleep_s": 600})

    def terminate() -> None:
        if any(said.startswith("trial 0: time limit") for said in bench.progress.said):
            raise TerminatedError(15)

    bench.on_wait = terminate
    with pytest.raises(TerminatedError):
        bench.search()
    bench.on_wait = lambda: None
    bench.jobs.wait_for_end(20.0)

    with pytest.raises(Exception, match="1 of 1 trials failed"):
        bench.search()

    assert [(row["cause"], row["interrupted"]) for row in bench.trials()] == [(CAUSE, False)]


def test_search_ends_a_hung_measurement_of_test_accuracy(new_bench: NewBench) -> None:
    bench = new_bench({**HPO, "trials": 1, "evaluate_winner": True}, {"evaluation": "hangs"})

    figures = bench.search()

    assert figures["test_accuracy"] is None
    assert figures["warnings"] == [f"test accuracy was not measured: {CAUSE}"]
    assert bench.states()["evaluate"] == JobState.CANCELLED


def test_search_asks_again_where_the_scheduler_did_not_cancel(
    new_bench: NewBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time_limit, "CANCEL_AGAIN_S", 0.5)
    bench = new_bench({**HPO, "trials": 2}, {"0": {"sleep_s": 600}})
    cancel, calls = bench.jobs.cancel, []

    def unreliable(jobs: Any) -> None:
        calls.append([job.job_id for job in jobs])
        if len(calls) == 1:
            raise CommandError(["scancel"], 1, "try again", "the scheduler did not cancel the jobs")
        cancel(jobs)

    monkeypatch.setattr(bench.jobs, "cancel", unreliable)
    figures = bench.search()
    assert figures["trials"][0]["cause"] == CAUSE
    assert calls[:2] == [[bench.jobs["trial_0000"].job_id]] * 2


@pytest.mark.parametrize("state", [JobState.PENDING, JobState.REQUEUED, JobState.UNKNOWN, JobState.COMPLETED])
def test_time_limit_counts_running_jobs_only(state: JobState) -> None:
    assert not TimeLimit(1.0).is_due(job_in(state, started_ago_s=100.0))


def test_time_limit_of_an_adopted_job_counts_from_its_start() -> None:
    limit = TimeLimit(50.0)
    assert not limit.is_due(job_in(JobState.RUNNING, started_ago_s=40.0))
    assert limit.is_due(job_in(JobState.RUNNING, started_ago_s=60.0))
    assert limit.was_exceeded


def test_time_limit_is_due_again_only_after_a_while() -> None:
    limit = TimeLimit(1.0)
    assert [limit.is_due(job_in(JobState.RUNNING, started_ago_s=60.0)) for _ in range(3)] == [True, False, False]


def test_time_limit_begins_anew_when_the_job_is_requeued(monkeypatch: pytest.MonkeyPatch) -> None:
    limit, now = TimeLimit(50.0), 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    assert not limit.is_due(job_in(JobState.RUNNING))
    now = 1040.0
    assert not limit.is_due(job_in(JobState.REQUEUED))
    assert not limit.is_due(job_in(JobState.RUNNING))
    now = 1080.0
    assert not limit.is_due(job_in(JobState.RUNNING))
    now = 1091.0
    assert limit.is_due(job_in(JobState.RUNNING))
