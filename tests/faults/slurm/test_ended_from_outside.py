"""Jobs ended by others: their users, their time limit, a signal."""

from __future__ import annotations

import signal

import pytest

from tests.faults.slurm.conftest import SlurmScene, whole_suite

FIRST = "trial_0000"


@whole_suite
def test_service_cancelled_from_outside_ends_the_run_and_resume_completes_it(search: SlurmScene) -> None:
    search.hold.touch()
    run = search.start()
    search.await_state(run, FIRST, "running")
    job_id = search.record("vllm")["job_id"]
    search.cluster.do("scancel", job_id)
    assert run.wait(90) == 1
    assert "job 'vllm' ended: CANCELLED: the scheduler says CANCELLED" in run.stderr
    summary = search.summary()
    assert (summary["state"], search.summary_job("vllm")["state"]) == ("failed", "CANCELLED")
    search.check_nothing_is_left()
    search.hold.unlink()
    again = search.resume()
    assert again.wait(150) == 0, again.stderr
    search.check_completed()
    hpo = search.summary()["stages"]["hpo"]
    assert [trial["state"] for trial in hpo["trials"]].count("COMPLETE") == 3
    assert max(search.starts().values()) == 1


@whole_suite
def test_trial_cancelled_from_outside_has_failed_with_slurms_word_and_the_search_goes_on(search: SlurmScene) -> None:
    search.hold.touch()
    run = search.start()
    search.await_state(run, FIRST, "running")
    search.cluster.do("scancel", search.record(FIRST)["job_id"])
    run.wait_for(lambda: "trial 0 (random)" in run.stderr, "the end of the trial")
    search.hold.unlink()
    assert run.wait(120) == 0, run.stderr
    search.check_completed()
    trials = search.summary()["stages"]["hpo"]["trials"]
    assert [trial["state"] for trial in trials] == ["FAIL", "COMPLETE", "COMPLETE"]
    assert "CANCELLED: the scheduler says CANCELLED" in trials[0]["cause"]


@whole_suite
def test_pending_trial_cancelled_from_outside_has_failed_with_slurms_word(search: SlurmScene) -> None:
    search.job["resources"]["trial"] = {"partition": "gpu", "cpus": 8, "mem_gb": 1, "gpus": 0, "nodes": 2}
    run = search.start()
    job_id = run.wait_for(
        lambda: (
            next((key for key, job in search.own_queue().items() if job[2].endswith(FIRST)), None)
            if search.output_dir.is_dir() and list(search.output_dir.glob("*_*/plan.json"))
            else None
        ),
        "the trial in the queue",
        90,
    )
    search.cluster.do("scancel", job_id)
    run.wait_for(lambda: "trial 0 (random)" in run.stderr, "the end of the trial")
    assert "its supervisor never started" in run.stderr
    run.interrupt()
    assert run.wait(60) == 130
    search.check_nothing_is_left()


@whole_suite
@pytest.mark.timeout(500)
def test_trial_over_its_wall_time_has_failed_with_slurms_word(search: SlurmScene) -> None:
    search.job["resources"]["trial"]["time"] = "00:01:00"
    search.job["hpo"].update(trials=1, max_failed_trials=1)
    search.hold.touch()
    run = search.start()
    search.await_state(run, FIRST, "running")
    run.wait_for(lambda: "trial 0 (random)" in run.stderr, "the end of the trial", 240)
    search.hold.unlink()
    assert run.wait(120) == 1
    assert "TIMEOUT: the scheduler says TIMEOUT (TimeLimit)" in run.stderr
    assert search.summary_job(FIRST)["state"] == "TIMEOUT"
    search.check_nothing_is_left()


@whole_suite
@pytest.mark.timeout(500)
def test_service_over_its_wall_time_ends_the_run_with_slurms_word(search: SlurmScene) -> None:
    search.job["infrastructure"]["time"] = "00:01:00"
    search.job["resources"]["client"]["time"] = "00:10:00"
    search.job["resources"]["trial"]["time"] = "00:10:00"
    search.hold.touch()
    run = search.start()
    search.await_state(run, FIRST, "running")
    assert run.wait(240) == 1
    assert "job 'vllm' ended: TIMEOUT: the scheduler says TIMEOUT (TimeLimit)" in run.stderr
    search.hold.unlink()
    search.check_nothing_is_left()


@whole_suite
def test_orchestrator_terminated_leaves_its_jobs_and_resume_goes_on(search: SlurmScene) -> None:
    search.hold.touch()
    run = search.start()
    search.await_state(run, FIRST, "running")
    run.interrupt(signal.SIGTERM)
    assert run.wait(60) == 143
    assert len(search.own_queue()) == 3
    search.hold.unlink()
    again = search.resume()
    assert again.wait(120) == 0, again.stderr
    search.check_completed()
    search.check_trials()
