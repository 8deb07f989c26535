"""Jobs that Slurm itself starts again: preempted, requeued by hand, or because their node is gone."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.faults.slurm.conftest import SlurmScene, whole_suite
from tests.faults.slurm.fault_cluster import wait_until

FIRST = "trial_0000"


@whole_suite
def test_requeued_trial_is_started_again_and_counted_once(search: SlurmScene) -> None:
    search.hold.touch()
    run = search.start()
    before = search.await_state(run, FIRST, "running")
    run.wait_for(lambda: sum(search.starts().values()) == 1, "the trainer")
    search.cluster.do("scontrol", "requeue", before["job_id"])
    run.wait_for(lambda: search.record(FIRST)["attempt"] != before["attempt"], "the second attempt", 90)
    assert search.record(FIRST)["restart_count"] == 1
    search.hold.unlink()
    assert run.wait(120) == 0, run.stderr
    search.check_completed()
    search.check_trials(again=1)
    assert "REQUEUED" in search.states(FIRST)
    assert search.summary_job(FIRST)["job_id"] == before["job_id"]


@whole_suite
def test_trial_requeued_after_it_ended_is_not_counted_twice(search: SlurmScene) -> None:
    run = search.start()
    run.wait_for(lambda: search.record(FIRST).get("state") == "finished", "the end of the first trial", 90)
    search.hold.touch()
    # Slurm takes it only while it remembers the job; a trial that was told already stays told.
    requeued = search.cluster.run("scontrol", "requeue", search.record(FIRST)["job_id"]).returncode == 0
    search.hold.unlink()
    assert run.wait(180) == 0, run.stderr
    assert search.summary()["stages"]["hpo"]["finished"] == 3
    assert requeued
    search.check_nothing_is_left()


@whole_suite
def test_preempted_trial_is_started_again_and_counted_once(search: SlurmScene) -> None:
    search.job["resources"]["trial"]["partition"] = "cpu"
    search.job["infrastructure"]["partition"] = "gpu"
    search.hold.touch()
    run = search.start()
    before = search.await_state(run, FIRST, "running")
    run.wait_for(lambda: sum(search.starts().values()) == 1, "the trainer")
    node = search.cluster.node(before["job_id"])
    preempt(search, node)
    run.wait_for(lambda: search.record(FIRST)["attempt"] != before["attempt"], "the second attempt", 90)
    assert search.cluster.node(before["job_id"]) != node
    search.hold.unlink()
    assert run.wait(120) == 0, run.stderr
    search.check_completed()
    search.check_trials(again=1)


@pytest.mark.parametrize("partition", ["cpu", pytest.param("graced", marks=whole_suite)])
def test_preempted_service_comes_back_elsewhere_and_its_endpoint_is_found_again(
    partition: str, search: SlurmScene
) -> None:
    """With a GraceTime Slurm sends TERM first: the supervisor has ended long before Slurm would end it."""
    search.job["infrastructure"]["partition"] = partition
    search.job["hpo"]["sampler"] = "llm"
    search.hold.touch()
    run = search.start()
    before = search.await_state(run, "vllm", "ready")
    search.await_state(run, FIRST, "running")
    endpoint, node = search.endpoint("vllm"), search.cluster.node(before["job_id"])
    (targets,) = search.targets("vllm")
    assert before["attempt"] in targets.read_text()
    preempt(search, node)
    run.wait_for(lambda: search.endpoint("vllm") == {}, "the withdrawal of the endpoint")
    run.wait_for(lambda: not targets.exists(), "the withdrawal of the scrape targets")
    run.wait_for(lambda: search.record("vllm")["attempt"] != before["attempt"], "the second attempt", 90)
    search.await_state(run, "vllm", "ready")
    assert search.record("vllm")["job_id"] == before["job_id"]
    assert search.cluster.node(before["job_id"]) != node
    assert search.endpoint("vllm")["attempt"] == search.record("vllm")["attempt"] != endpoint["attempt"]
    assert search.record("vllm")["attempt"] in targets.read_text()
    search.hold.unlink()
    assert run.wait(120) == 0, run.stderr
    search.check_completed()
    search.check_trials()
    sources = [trial["source"] for trial in search.summary()["stages"]["hpo"]["trials"]]
    assert sources == ["llm"] * 3, "the model is asked at its new address"


@whole_suite
@pytest.mark.timeout(400)
def test_node_whose_slurmd_is_killed_has_its_trial_taken_over_and_counted_once(search: SlurmScene) -> None:
    search.job["resources"]["trial"]["partition"] = "cpu"
    search.job["infrastructure"]["partition"] = "gpu"
    search.hold.touch()
    run = search.start()
    before = search.await_state(run, FIRST, "running")
    run.wait_for(lambda: sum(search.starts().values()) == 1, "the trainer")
    node = search.cluster.node(before["job_id"])
    search.cluster.kill(node)
    run.wait_for(lambda: search.record(FIRST)["attempt"] != before["attempt"], "the second attempt", 120)
    # The first attempt's process lived on; it finds itself fenced with its next heartbeat.
    wait_until(lambda: not is_alive(before["pid"]), "the end of the first attempt", 30)
    search.hold.unlink()
    assert run.wait(180) == 0, run.stderr
    search.cluster.start(node)
    search.check_completed()
    search.check_trials(again=1)


@whole_suite
@pytest.mark.timeout(400)
def test_node_whose_slurmd_is_killed_has_its_service_moved(search: SlurmScene) -> None:
    search.job["hpo"]["sampler"] = "llm"
    search.hold.touch()
    run = search.start()
    before = search.await_state(run, "vllm", "ready")
    search.await_state(run, FIRST, "running")
    node = search.cluster.node(before["job_id"])
    search.cluster.kill(node)
    run.wait_for(lambda: search.record("vllm")["attempt"] != before["attempt"], "the second attempt", 120)
    search.await_state(run, "vllm", "ready")
    wait_until(lambda: not is_alive(before["pid"]), "the end of the first attempt", 30)
    assert search.endpoint("vllm")["attempt"] == search.record("vllm")["attempt"]
    search.hold.unlink()
    assert run.wait(180) == 0, run.stderr
    search.cluster.start(node)
    search.check_completed()
    search.check_trials()


@whole_suite
@pytest.mark.timeout(400)
def test_node_that_dies_with_all_its_processes_has_its_trial_started_elsewhere(search: SlurmScene) -> None:
    search.job["resources"]["trial"]["partition"] = "cpu"
    search.job["infrastructure"]["partition"] = "gpu"
    search.hold.touch()
    run = search.start()
    before = search.await_state(run, FIRST, "running")
    run.wait_for(lambda: sum(search.starts().values()) == 1, "the trainer")
    node = search.cluster.node(before["job_id"])
    step = int(stat_fields(before["pid"])[1])
    assert "slurmstepd" in Path(f"/proc/{step}/comm").read_text(), "the supervisor is the batch script itself"
    search.cluster.kill(node)
    # A step's daemon would still tell slurmctld of the end of its processes.
    for pid in (step, before["pid"]):
        os.kill(pid, signal.SIGKILL)
    run.wait_for(lambda: search.record(FIRST)["attempt"] != before["attempt"], "the second attempt", 120)
    search.hold.unlink()
    assert run.wait(180) == 0, run.stderr
    search.cluster.start(node)
    search.check_completed()
    search.check_trials(again=1)


@whole_suite
@pytest.mark.timeout(400)
def test_trial_killed_outright_has_failed_without_a_last_word(search: SlurmScene) -> None:
    search.hold.touch()
    run = search.start()
    before = search.await_state(run, FIRST, "running")
    run.wait_for(lambda: sum(search.starts().values()) == 1, "the trainer")
    os.kill(before["pid"], signal.SIGKILL)
    run.wait_for(lambda: "trial 0 (random)" in run.stderr, "the end of the trial", 60)
    search.hold.unlink()
    assert run.wait(120) == 0, run.stderr
    trials = search.summary()["stages"]["hpo"]["trials"]
    assert [trial["state"] for trial in trials] == ["FAIL", "COMPLETE", "COMPLETE"]
    assert "it was killed outright, without a last word" in trials[0]["cause"]
    search.check_completed()


def preempt(scene: SlurmScene, node: str) -> str:
    """Put a job that goes before all others on a node, and return its id."""
    words = ("--partition=urgent", f"--nodelist={node}", "--exclusive", "--job-name=urgent", "--time=5")
    return scene.cluster.do("sbatch", "--parsable", "--output=/dev/null", *words, "--wrap=sleep 60")


def is_alive(pid: int) -> bool:
    """Tell whether a process lives; a zombie does not."""
    try:
        return stat_fields(pid)[0] not in "ZX"
    except OSError:
        return False


def stat_fields(pid: int) -> list[str]:
    """Return a process's state, parent and so on: proc_pid_stat(5) from field 3."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
