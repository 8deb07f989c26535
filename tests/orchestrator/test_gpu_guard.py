"""The cap on GPU-hours: what ledger and records say was used, and which submissions are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.atomic import write_json
from orchestrator.gpu_guard import GpuCapError, GpuGuard, Spending
from orchestrator.ledger import Ledger
from orchestrator.plan import PlannedJob
from orchestrator.rundir import RunDir
from tests.builders import plan_run, recipe_document

HPO = {"dataset": {"kind": "digits"}}
NOW = 1_000_000.0


class Costly:
    """A run whose server has two GPUs and whose trials have one, for an hour each at most."""

    def __init__(self, folder: Path, **job: Any) -> None:
        self.run = RunDir(folder / "run")
        self.run.make()
        document = recipe_document(
            "slurm",
            "vllm",
            **{
                "infrastructure": {"partition": "gpu", "gpus_per_node": 2, "time": "60"},
                "resources": {"trial": {"gpus": 1}},
                "hpo": HPO,
                **job,
            },
        )
        planned = plan_run(document, self.run.root).jobs
        self.server, self.trial = planned["vllm"], planned["trial_example"]

    def log(self, event: str, at: float, **data: Any) -> None:
        """Write an event of the past."""
        ledger = Ledger(self.run.events)
        ledger.append(event, **data)
        lines = self.run.events.read_text().splitlines()
        lines[-1] = lines[-1].replace(lines[-1].split(",")[0], f'{{"at": {at}', 1)
        self.run.events.write_text("\n".join(lines) + "\n")

    def submitted(self, job: PlannedJob, job_id: str, *states: tuple[float, str]) -> None:
        """Write that a job was submitted, and what was seen of it: hours before now, and state."""
        self.log("job_intent", NOW - 9e5, token=job.token, planned=job.as_json("slurm"))
        self.log("job_submitted", NOW - 9e5, job=job.name, token=job.token, job_id=job_id)
        for hours_ago, state in states:
            self.log("job_state", NOW - hours_ago * 3600, job=job.name, job_id=job_id, state=state)

    def record(self, job: PlannedJob, started: float, finished: float | None = None) -> None:
        """Write a job's own record: hours before now."""
        state = {"token": job.token, "job_id": "1", "attempt": "a", "host": "h", "started_at": NOW - started * 3600}
        if finished is not None:
            state |= {"finished_at": NOW - finished * 3600, "reason": "exited", "exit_code": 0}
        write_json(self.run.status(job.token), {**state, "state": "running" if finished is None else "finished"})

    def heartbeat(self, job: PlannedJob, hours_ago: float) -> None:
        """Write a job's last sign of life."""
        write_json(self.run.heartbeat(job.token), {"attempt": "a", "at": NOW - hours_ago * 3600})

    def guard(self, cap: float | None = 10.0, trial_timeout_s: float | None = None, **limits_s: float) -> GpuGuard:
        return GpuGuard(self.run, cap, trial_timeout_s, limits_s, lambda: NOW)


def near(spending: Spending) -> tuple[float, float, float]:
    """Return the figures without the dust of floating point."""
    return round(spending.spent, 9), round(spending.services, 9), round(spending.tasks, 9)


@pytest.fixture
def costly(tmp_path: Path) -> Costly:
    return Costly(tmp_path)


def test_run_that_has_not_begun_has_used_nothing(costly: Costly) -> None:
    spending = costly.guard().spending()
    assert (spending.spent, spending.services, spending.tasks) == (0, 0, 0)
    assert costly.guard(5).figures() == {"used": 0, "cap": 5}


def test_running_job_counts_up_to_now_and_its_rest_is_still_open(costly: Costly) -> None:
    costly.submitted(costly.server, "1", (0.5, "RUNNING"))
    spending = costly.guard().spending()
    assert near(spending) == (1, 1, 0)


def test_pending_job_has_used_nothing_and_all_of_it_is_open(costly: Costly) -> None:
    costly.submitted(costly.trial, "1", (5, "PENDING"))
    spending = costly.guard().spending()
    assert near(spending) == (0, 0, 1)


def test_ended_job_counts_by_its_own_record_not_by_when_it_was_seen(costly: Costly) -> None:
    # The orchestrator was away for ten hours.
    costly.submitted(costly.server, "1", (11, "RUNNING"), (1, "COMPLETED"))
    costly.record(costly.server, 11.25, 10.75)
    spending = costly.guard().spending()
    assert near(spending) == (1, 0, 0)


def test_job_that_was_never_seen_running_counts_by_its_record(costly: Costly) -> None:
    costly.submitted(costly.trial, "1", (1, "COMPLETED"))
    costly.record(costly.trial, 2, 1.5)
    assert costly.guard().spending().spent == pytest.approx(0.5)


def test_job_without_a_record_counts_as_it_was_seen(costly: Costly) -> None:
    costly.submitted(costly.trial, "1", (3, "PENDING"), (2, "RUNNING"), (1.5, "UNKNOWN"), (1, "NODE_FAIL"))
    assert costly.guard().spending().spent == pytest.approx(1)


def test_requeued_job_counts_all_its_attempts(costly: Costly) -> None:
    states = (4.0, "RUNNING"), (3.5, "REQUEUED"), (1.0, "RUNNING"), (0.25, "TIMEOUT")
    costly.submitted(costly.trial, "1", *states)
    costly.record(costly.trial, 1.0, 0.5)
    assert costly.guard().spending().spent == pytest.approx(1.0)


def test_requeued_job_that_waits_is_not_running_and_has_its_whole_time_again(costly: Costly) -> None:
    costly.submitted(costly.trial, "1", (4, "RUNNING"), (3.5, "REQUEUED"))
    costly.record(costly.trial, 4)  # the first attempt was killed outright
    spending = costly.guard().spending()
    assert near(spending) == (0.5, 0, 1)


def test_requeued_job_that_has_not_claimed_its_new_attempt_counts_the_old_one_once(costly: Costly) -> None:
    # The record is the first attempt's until the second one's supervisor has written its own.
    costly.submitted(costly.trial, "1", (4, "RUNNING"), (3.5, "REQUEUED"), (0.25, "RUNNING"))
    costly.record(costly.trial, 4)  # killed outright
    assert near(costly.guard().spending()) == (0.75, 0, 0.75)
    costly.record(costly.trial, 4, 3.5)  # or ended by a signal
    assert near(costly.guard().spending()) == (0.75, 0, 0.75)
    costly.record(costly.trial, 0.25)  # now it has
    assert near(costly.guard().spending()) == (0.75, 0, 0.75)


def test_new_attempt_that_the_scheduler_has_not_told_of_counts_beside_the_old_one(costly: Costly) -> None:
    costly.submitted(costly.trial, "1", (4, "RUNNING"), (3.5, "REQUEUED"))
    costly.record(costly.trial, 0.25)
    assert near(costly.guard().spending()) == (0.75, 0, 0.75)


def test_attempt_that_was_never_seen_running_ends_where_its_job_was_seen_to_end(costly: Costly) -> None:
    costly.submitted(costly.trial, "1", (4, "PENDING"), (1, "NODE_FAIL"))
    costly.record(costly.trial, 2)
    assert near(costly.guard().spending()) == (1, 0, 0)
    costly.heartbeat(costly.trial, 1.5)
    assert near(costly.guard().spending()) == (0.5, 0, 0)


def test_id_that_was_given_out_again_counts_for_each_of_its_jobs(costly: Costly) -> None:
    # A Slurm controller that lost its memory gives the id of a job that it forgot to the next one.
    costly.submitted(costly.trial, "1", (4, "RUNNING"), (3.5, "LOST"))
    costly.submitted(costly.server, "1", (1, "RUNNING"))
    costly.log("job_state", NOW - 0.75 * 3600, job=costly.trial.name, job_id="1", state="LOST")
    assert near(costly.guard().spending()) == (2.5, 0, 0)


def test_submission_that_is_in_the_ledger_twice_counts_once(costly: Costly) -> None:
    costly.submitted(costly.trial, "1", (4, "RUNNING"))
    costly.log("job_submitted", NOW, job=costly.trial.name, token=costly.trial.token, job_id="1", adopted=True)
    costly.log("job_state", NOW - 3.5 * 3600, job=costly.trial.name, job_id="1", state="TIMEOUT")
    assert costly.guard().spending().spent == pytest.approx(0.5)


def test_resumed_run_counts_the_jobs_of_before(costly: Costly) -> None:
    costly.submitted(costly.server, "1", (9, "RUNNING"), (8.5, "CANCELLED"))
    costly.record(costly.server, 9, 8.5)
    costly.log("run_resumed", NOW - 3600)
    again = plan_run(
        recipe_document("slurm", "vllm", infrastructure={"gpus_per_node": 2, "time": "60"}), costly.run.root
    )
    second = again.server
    object.__setattr__(second, "token", "orch-x-vllm-r2")
    costly.submitted(second, "2", (0.5, "RUNNING"))
    assert costly.guard().spending().spent == pytest.approx(2)


def test_job_of_several_nodes_counts_the_gpus_of_each(tmp_path: Path) -> None:
    costly = Costly(tmp_path, infrastructure={"partition": "gpu", "gpus_per_node": 2, "nodes": 3, "time": "60"})
    costly.submitted(costly.server, "1", (0.5, "RUNNING"))
    assert costly.guard().spending().spent == pytest.approx(3)


def test_submission_that_fits_is_let_through_and_one_that_could_go_over_is_refused(costly: Costly) -> None:
    costly.submitted(costly.server, "1", (0.5, "RUNNING"))
    costly.guard(3.0).check(costly.trial)
    with pytest.raises(GpuCapError) as caught:
        costly.guard(2.9).check(costly.trial)
    text = str(caught.value)
    assert "max_gpu_hours = 2.9; 1 GPU-hours are used, open jobs can still use 1, and it can use 1." in text
    assert caught.value.exit_code == 2
    assert not caught.value.may_fit_later, "the server's rest does not come free before the end"
    assert [event["job"] for event in Ledger(costly.run.events).events("job_over_cap")] == ["trial_example"]


def test_submission_beside_open_trials_may_fit_later(costly: Costly) -> None:
    costly.submitted(costly.trial, "1", (0.5, "RUNNING"))
    with pytest.raises(GpuCapError) as caught:
        costly.guard(1.6).check(costly.trial)
    assert caught.value.may_fit_later


def test_submission_is_bounded_by_the_searchs_own_time_limit(costly: Costly) -> None:
    costly.guard(0.5, trial_timeout_s=1800).check(costly.trial)
    with pytest.raises(GpuCapError):
        costly.guard(0.5).check(costly.trial)


def test_submission_without_a_wall_time_counts_with_the_partitions_and_else_with_what_was_used(tmp_path: Path) -> None:
    costly = Costly(tmp_path, infrastructure={"partition": "gpu", "gpus_per_node": 2})
    costly.guard(0.1).check(costly.trial)
    with pytest.raises(GpuCapError):
        costly.guard(0.1, trial=3600).check(costly.trial)
    costly.submitted(costly.trial, "1", (2, "RUNNING"), (1, "COMPLETED"))
    with pytest.raises(GpuCapError, match="has no wall time to count with"):
        costly.guard(1.0).check(costly.trial)


def test_submission_without_gpus_or_without_a_cap_is_never_refused(tmp_path: Path) -> None:
    costly = Costly(tmp_path, resources={"trial": {"gpus": 0}})
    costly.submitted(costly.server, "1", (5, "RUNNING"))
    costly.guard(1.0).check(costly.trial)
    costly.guard(None).check(costly.server)
    with pytest.raises(GpuCapError):
        costly.guard(1.0).check(costly.server)
