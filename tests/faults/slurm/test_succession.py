"""A serving job whose wall time is shorter than the run: a successor takes over before it ends."""

from __future__ import annotations

import signal

import pytest

from tests.faults.slurm.conftest import FaultRun, SlurmScene, whole_suite

FIRST = "trial_0000"
pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def chained(search: SlurmScene) -> SlurmScene:
    """Return a search by the model whose server is due for its successor after 10 seconds."""
    search.job["infrastructure"] |= {"time": "00:05:00", "successor_lead": "00:04:50"}
    search.job["resources"]["client"]["time"] = "00:20:00"
    search.job["hpo"]["sampler"] = "llm"
    search.job["service"]["request_timeout_s"] = 5
    search.hold.touch()
    return search


def tokens(scene: SlurmScene, event: str) -> list[str]:
    """Return the tokens of the server's jobs that an event tells of, without the run's part."""
    found = [item["token"] for item in scene.events(event) if item["job"] == "vllm"]
    return [token.removeprefix(f"orch-{scene.run_id}-") for token in found]


def await_handover(scene: SlurmScene, run: FaultRun) -> None:
    """Wait until the second server answers in the place of the first."""
    run.wait_for(lambda: "vllm-r2" in tokens(scene, "job_handed_over"), "the handing over", 90)


def test_successor_takes_over_and_the_one_before_it_ends(chained: SlurmScene) -> None:
    run = chained.start()
    first = chained.await_state(run, "vllm", "ready")
    chained.await_state(run, FIRST, "running")
    await_handover(chained, run)
    second = chained.record("vllm-r2")
    assert chained.endpoint("vllm")["attempt"] == second["attempt"] != first["attempt"]
    assert chained.record("vllm")["state"] == "ready", "requests under way are answered by the one before it"
    run.wait_for(lambda: chained.record("vllm")["state"] == "finished", "the end of the first server", 60)
    assert chained.endpoint("vllm")["token"].startswith(f"orch-{chained.run_id}-vllm-r"), "it left the record alone"
    chained.hold.unlink()
    assert run.wait(120) == 0, run.stderr
    chained.check_completed()
    chained.check_trials()
    sources = {trial["source"] for trial in chained.summary()["stages"]["hpo"]["trials"]}
    assert sources <= {"llm", "llm_repaired"}, "the model is asked at its new address"
    assert f"job {second['job_id']} has taken over from {first['job_id']}" in run.stderr


@whole_suite
def test_successor_that_is_ended_from_outside_is_tried_again_and_the_run_goes_on(chained: SlurmScene) -> None:
    run = chained.start()
    chained.await_state(run, FIRST, "running")
    run.wait_for(lambda: "vllm-r2" in tokens(chained, "job_submitted"), "the successor", 60)
    (job_id,) = [item["job_id"] for item in chained.events("job_submitted") if item["token"].endswith("vllm-r2")]
    chained.cluster.do("scancel", job_id)
    run.wait_for(lambda: "the successor of vllm" in run.stderr, "the word of its end", 60)
    chained.hold.unlink()
    assert run.wait(120) == 0, run.stderr
    chained.check_completed()


@whole_suite
@pytest.mark.parametrize("is_handed_over", [False, True])
def test_orchestrator_killed_around_a_handing_over_takes_up_both_servers(
    chained: SlurmScene, is_handed_over: bool
) -> None:
    run = chained.start()
    chained.await_state(run, FIRST, "running")
    if is_handed_over:
        await_handover(chained, run)
    else:
        run.wait_for(lambda: "vllm-r2" in tokens(chained, "job_submitted"), "the successor", 60)
    run.process.send_signal(signal.SIGKILL)
    run.process.wait()
    again = chained.resume()
    again.wait_for(lambda: "vllm-r2" in tokens(chained, "job_handed_over"), "the handing over", 90)
    chained.hold.unlink()
    assert again.wait(120) == 0, again.stderr
    chained.check_completed()
    chained.check_trials()
    assert tokens(chained, "job_handed_over").count("vllm-r2") == 1


@whole_suite
def test_first_server_dead_before_its_successor_is_ready_is_waited_for(chained: SlurmScene) -> None:
    run = chained.start()
    first = chained.await_state(run, "vllm", "ready")
    chained.await_state(run, FIRST, "running")
    run.wait_for(lambda: "vllm-r2" in tokens(chained, "job_submitted"), "the successor", 60)
    chained.cluster.do("scancel", first["job_id"])
    await_handover(chained, run)
    chained.await_state(run, "vllm-r2", "ready")
    chained.hold.unlink()
    assert run.wait(120) == 0, run.stderr
    chained.check_completed()
    chained.check_trials()
