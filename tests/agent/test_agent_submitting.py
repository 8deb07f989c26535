"""Trials submitted together: what the search makes of room, refusals, silence, the cap on GPU-hours and resume.

The jobs are real ones of this machine, which has no arrays: each is submitted by itself behind the tracker.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from agent import submitting
from orchestrator.arrays import PlannedArray
from orchestrator.errors import StageError, SubmitError
from orchestrator.gpu_guard import GpuCapError, Spending
from orchestrator.jobs import JobTracker
from orchestrator.plan import PlannedJob
from orchestrator.service import JobDraft
from orchestrator.tracked import TrackedJob
from tests.agent.bench import Bench

NewBench = Callable[..., Bench]
RANDOM = {"sampler": "random", "evaluate_winner": False}


class Together:
    """Lets a bench's trials be submitted together, and keeps the names of each submission."""

    def __init__(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bench, self.sent = bench, list[list[str]]()
        self.answer: Callable[[], None] = lambda: None
        bench.plan_array = self.plan
        bench.restart()
        monkeypatch.setattr(JobTracker, "submit_array", lambda _, array: self.submit(array))

    def plan(self, drafts: Sequence[JobDraft]) -> PlannedArray:
        members = tuple(self.bench.plan_job(draft) for draft in drafts)
        return PlannedArray("array", self.bench.run.script("array"), "#!/bin/bash\n", members)

    def submit(self, array: PlannedArray) -> list[TrackedJob]:
        self.sent.append([member.name for member in array.members])
        self.answer()
        return [self.bench.jobs.submit(member) for member in array.members]


def cap_at(bench: Bench, most: int) -> None:
    """Let the guard refuse a trial beside which ``most`` others run or are submitted."""

    def guard(planned: PlannedJob) -> None:
        running = sum(not job.state.is_final for job in bench.jobs.jobs)
        if running + len(bench.beside) >= most:
            raise GpuCapError(planned.name, Spending(spent=0.0, services=0.0, tasks=1.0), 0.5, 1.0)

    bench.guard = guard


def test_search_submits_as_many_together_as_there_is_room_for(
    new_bench: NewBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = new_bench({**RANDOM, "trials": 5, "parallel_trials": 3}, {"sleep_s": 0.5})
    together = Together(bench, monkeypatch)

    figures = bench.search()

    assert (figures["finished"], figures["failed"]) == (5, 0)
    assert together.sent[0] == ["trial_0000", "trial_0001", "trial_0002"]
    assert sorted(name for names in together.sent[1:] for name in names) in ([], ["trial_0003", "trial_0004"])
    assert bench.most_at_once == 3


def test_search_submits_a_single_trial_as_a_job(new_bench: NewBench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = new_bench({**RANDOM, "trials": 3, "parallel_trials": 2})
    together = Together(bench, monkeypatch)
    bench.guard = lambda planned: None

    assert bench.search()["finished"] == 3

    assert all(len(names) == 2 for names in together.sent)
    assert len(bench.jobs.jobs) == 3


@pytest.mark.parametrize(("most", "first"), [(2, ["trial_0000", "trial_0001"]), (1, None)])
def test_search_under_a_cap_submits_those_that_fit_and_the_others_later(
    most: int, first: list[str] | None, new_bench: NewBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = new_bench({**RANDOM, "trials": 4, "parallel_trials": 3}, {"sleep_s": 0.3})
    together = Together(bench, monkeypatch)
    cap_at(bench, most)

    figures = bench.search()

    assert (figures["finished"], figures["failed"], figures["stopped_by"]) == (4, 0, None)
    assert bench.most_at_once == most
    assert (together.sent[0] if together.sent else None) == first


def test_search_refused_together_fails_each_trial_and_counts_one_refusal(
    new_bench: NewBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = new_bench({**RANDOM, "trials": 20, "parallel_trials": 2, "max_failed_trials": 19})
    together = Together(bench, monkeypatch)

    def refuse() -> None:
        raise SubmitError(("sbatch",), 1, "Invalid job array specification", "refused")

    together.answer = refuse
    with pytest.raises(StageError, match=r"refused 3 submissions in a row(.|\n)*Invalid job array"):
        bench.search()

    assert [len(names) for names in together.sent] == [2, 2, 2]
    assert [(row["state"], row["job_state"]) for row in bench.trials()] == [("FAIL", "REFUSED")] * 6


def test_search_submits_together_again_what_met_a_silent_scheduler(
    new_bench: NewBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submitting, "SUBMIT_AGAIN_S", 0.05)
    bench = new_bench({**RANDOM, "trials": 3, "parallel_trials": 3})
    together = Together(bench, monkeypatch)

    def fall_silent_once() -> None:
        if len(together.sent) == 1:
            raise SubmitError(("sbatch",), None, "", "no answer in time", is_refusal=False)

    together.answer = fall_silent_once

    assert bench.search()["finished"] == 3

    assert together.sent == [["trial_0000", "trial_0001", "trial_0002"]] * 2
    assert "hpo: trials 0 to 2 are submitted again later: no answer in time" in "\n".join(bench.progress.said)


def test_search_resumed_submits_together_what_was_proposed_and_has_no_job(
    new_bench: NewBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = new_bench({**RANDOM, "trials": 4, "parallel_trials": 3})
    together = Together(bench, monkeypatch)

    class KilledError(BaseException):
        pass

    def die() -> None:
        raise KilledError

    together.answer = die
    with pytest.raises(KilledError):
        bench.search()

    together.answer = lambda: None
    bench.restart()
    figures = bench.search()

    assert together.sent[:2] == [["trial_0000", "trial_0001", "trial_0002"]] * 2
    assert (figures["finished"], len(figures["trials"])) == (4, 4)
