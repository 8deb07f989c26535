"""Trials that are tasks of a job array, of which Slurm starts one again or forgets the answer."""

from __future__ import annotations

from tests.faults.conftest import TRIALS
from tests.faults.slurm.conftest import SlurmScene
from tests.faults.slurm.fault_cluster import wait_until

TASK = "trial_0000-array_1"


def test_requeued_task_of_an_array_is_started_again_beside_the_others_and_counted_once(search: SlurmScene) -> None:
    search.job["hpo"] |= {"parallel_trials": TRIALS, "job_arrays": True}
    search.hold.touch()
    run = search.start()
    before = search.await_state(run, TASK, "running")
    run.wait_for(lambda: sum(search.starts().values()) == TRIALS, "the trainers")
    search.cluster.do("scontrol", "requeue", before["job_id"])
    run.wait_for(lambda: search.record(TASK)["attempt"] != before["attempt"], "the second attempt", 90)
    assert search.record(TASK)["job_id"] == before["job_id"]
    assert before["job_id"].endswith("_1")
    search.hold.unlink()
    assert run.wait(120) == 0, run.stderr
    search.check_trials(again=1)
    assert "REQUEUED" in search.states("trial_0001")
    assert "REQUEUED" not in search.states("trial_0000")
    wait_until(lambda: search.own_queue() == {}, "an empty queue", 30)
    assert search.left() == []


def test_array_whose_sbatch_hangs_after_it_has_submitted_is_looked_up(search: SlurmScene) -> None:
    search.job["hpo"] |= {"parallel_trials": TRIALS, "job_arrays": True}
    search.job["scheduler"]["command_timeout_s"] = 5
    search.shim("sbatch", '[[ $2 == *trial_*-array.sh ]] || exec $real "$@"\n$real "$@" >/dev/null; exec sleep 60')
    run = search.start()
    assert run.wait(180) == 0, run.stderr
    search.check_trials()
    submitted = [event["job_id"] for event in search.events("job_submitted") if event["job"].startswith("trial_")]
    assert [job_id.partition("_")[2] for job_id in submitted] == ["0", "1", "2"]
    assert len({job_id.partition("_")[0] for job_id in submitted}) == 1
    wait_until(lambda: search.own_queue() == {}, "an empty queue", 30)
    assert search.left() == []
