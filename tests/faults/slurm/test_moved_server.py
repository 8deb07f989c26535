"""An LLM server that Slurm starts again while it is asked: the question, and the benchmark, are put to the new one."""

from __future__ import annotations

import time

import pytest

from client.stage import RESTARTED
from tests.faults.conftest import TRIALS
from tests.faults.slurm.conftest import SlurmScene, whole_suite
from tests.standin.openai_server import streams

FIRST = "trial_0000"
pytestmark = [whole_suite, pytest.mark.timeout(300)]


def test_server_requeued_while_it_is_benchmarked_is_measured_once_more(scene: SlurmScene) -> None:
    scene.job["engine"]["environment"] = {"STANDIN_TOKEN_DELAY_S": "0.3"}
    scene.job["service"]["n_requests_per_client"] = 8
    run = scene.start()
    before = scene.await_state(run, "vllm", "ready")
    run.wait_for(lambda: streams(scene.output_dir, "has ended") > 4, "its first requests after the warm-up", 90)
    scene.cluster.do("scontrol", "requeue", before["job_id"])
    assert run.wait(150) == 0, run.stderr
    benchmark = scene.summary()["stages"]["benchmark"]
    assert (benchmark["id"], benchmark["valid"]) == (f"run-{scene.run_id}-2", True)
    (earlier,) = benchmark["earlier"]
    assert (earlier["id"], earlier["valid"]) == (f"run-{scene.run_id}", False)
    assert earlier["invalid_reasons"][-1] == RESTARTED
    assert earlier["successful"] >= 4
    assert "it is measured once more" in run.stderr
    assert scene.record("vllm")["attempt"] != before["attempt"]
    scene.check_completed(requests=16)


def test_question_to_a_server_that_is_requeued_is_asked_again_where_it_is_then(search: SlurmScene) -> None:
    silence = search.folder / "silence"
    search.job["hpo"]["sampler"] = "llm"
    search.job["engine"]["environment"] = {"STANDIN_SILENCE": str(silence)}
    search.hold.touch()
    run = search.start()
    before = search.await_state(run, "vllm", "ready")
    search.await_state(run, FIRST, "running")
    silence.touch()
    search.hold.unlink()
    run.wait_for(lambda: search.record(FIRST).get("state") == "finished", "the end of the first trial")
    time.sleep(2)  # the next question is on its way
    search.cluster.do("scontrol", "requeue", before["job_id"])
    search.await_state(run, "vllm", "finished")
    silence.unlink()
    run.wait_for(lambda: search.record("vllm")["attempt"] != before["attempt"], "the second attempt", 60)
    search.await_state(run, "vllm", "ready")
    began = time.monotonic()
    run.wait_for(lambda: search.record("trial_0001"), "the second trial", 60)
    took_s = time.monotonic() - began
    print(f"the second trial began {took_s:.1f} s after the server was ready again")
    assert took_s < 10, "long before hpo.llm.request_timeout_s = 120 s"
    assert run.wait(120) == 0, run.stderr
    search.check_completed()
    search.check_trials()
    hpo = search.summary()["stages"]["hpo"]
    assert [trial["source"] for trial in hpo["trials"]] == ["llm"] * TRIALS
    assert hpo["llm"]["failed_requests"] == 0, "no failure of the model"
    assert "has ended or moved while it was asked" in (search.run_dir / "logs" / "orch.log").read_text()
