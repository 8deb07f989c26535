"""Replicas behind the balancer: one is killed outright in the middle of a benchmark, and another takes its place."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.life.conftest import OrchRun, orch, processes_with
from tests.life.test_run_slurm import WHY_NO_SLURM, jobs_of, slurm_recipe
from tests.standin.openai_server import streams

__all__ = ["slurm_recipe"]
Start = Callable[..., OrchRun]
REQUESTS = 400


def with_replicas(recipe: dict[str, Any], **balancer: str) -> dict[str, Any]:
    """Return ``recipe`` with two replicas that are asked for some seconds."""
    recipe["job"]["service"] |= {"n_clients": 4, "n_requests_per_client": REQUESTS // 4, "replicas": 2}
    recipe["job"]["service"] |= {"balancer": balancer} if balancer else {}
    recipe["job"]["engine"]["environment"] = {"STANDIN_TOKEN_DELAY_S": "0.02"}
    recipe["job"]["benchmark"] |= {"warmup_requests": 0}
    recipe["job"]["monitoring"] = {"mode": "off"}
    return recipe


def kill_outright(run: OrchRun, name: str) -> None:
    """Kill everything of a job at once: its script, its supervisor, its server."""
    server = f"--port {run.json(f'endpoints/{name}.json')['port']} "
    pids = [*processes_with(f"{run.run_dir}/scripts/{name}"), *processes_with(server)]
    assert len(pids) >= 2
    for pid in set(pids):
        os.kill(pid, signal.SIGKILL)


def failed_requests(benchmark: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the records of the requests that failed; all of them had got a byte of their answer before."""
    requests = [json.loads(line) for line in Path(benchmark["records"]).read_text().splitlines()]
    failed = [request for request in requests if request["error_class"] is not None]
    assert all(request["first_byte_at_s"] is not None for request in failed), "the others were asked again elsewhere"
    return failed


def run_with_a_loss(run: OrchRun, timeout_s: float) -> dict[str, Any]:
    """Kill a replica under load and return the summary; the requests that it had given bytes of are all that failed."""
    run.wait_for(lambda: streams(run.run_dir, "has ended") > 20, "the benchmark", timeout_s)
    kill_outright(run, "vllm-2")
    assert run.wait(timeout_s) == 0, run.stderr
    summary = run.json("summary.json")
    benchmark = summary["stages"]["benchmark"]
    assert benchmark["total_queries"] == REQUESTS
    assert benchmark["failed"] <= 4, "those that were under way on the dead one, of four clients"
    assert benchmark["successful"] == REQUESTS - benchmark["failed"]
    assert len(failed_requests(benchmark)) == benchmark["failed"]
    assert benchmark["valid"] is False
    assert benchmark["invalid_reasons"][-1] == "replicas came or went while they were measured: vllm-2"
    assert "vllm-2: job" in run.stderr
    assert "takes the place of" in run.stderr
    served = [log.read_text().count("a stream begins") for log in run.run_dir.glob("logs/vllm-2_*.out")]
    assert len(served) == 2
    assert all(served), "the one that took its place served as well"
    return summary


def test_replica_killed_on_this_machine_is_replaced_and_only_its_own_requests_fail(
    recipe: dict[str, Any], start: Start
) -> None:
    run = start(with_replicas(recipe))
    summary = run_with_a_loss(run, 120)
    assert (summary["served"]["replicas"], summary["state"]) == (2, "completed")
    assert processes_with(str(run.run_dir)) == []


@pytest.mark.slurm
@pytest.mark.skipif(bool(WHY_NO_SLURM), reason=WHY_NO_SLURM or "-")
def test_replica_killed_on_slurm_is_replaced_and_only_its_own_requests_fail(
    slurm_recipe: dict[str, Any], start: Start
) -> None:
    run = start(with_replicas(slurm_recipe, policy="prefix"))
    summary = run_with_a_loss(run, 240)
    assert jobs_of(summary["run_id"]) == {}


@pytest.mark.slurm
@pytest.mark.skipif(bool(WHY_NO_SLURM), reason=WHY_NO_SLURM or "-")
def test_replica_whose_job_slurm_can_never_start_again_is_cancelled_and_replaced(
    slurm_recipe: dict[str, Any], start: Start
) -> None:
    document = with_replicas(slurm_recipe)
    document["job"]["infrastructure"]["requeue"] = True
    document["job"]["engine"]["environment"] = {"STANDIN_TOKEN_DELAY_S": "0.2"}
    run = start(document)
    run.wait_for(lambda: streams(run.run_dir, "has ended") > 4, "the benchmark", 240)
    job_id = run.json("endpoints/vllm-2.json")["job_id"]
    sbatch = ["sbatch", "--parsable", "--wait", "--output=/dev/null", "--wrap=false"]
    failed_id = subprocess.run(sbatch, capture_output=True, text=True, check=False).stdout.strip()
    for words in (["requeuehold", job_id], ["update", f"JobId={job_id}", f"Dependency=afterok:{failed_id}"]):
        subprocess.run(["scontrol", *words], check=True)
    subprocess.run(["scontrol", "release", job_id], check=True)
    run.wait_for(lambda: f"takes the place of {job_id}" in run.stderr, "the replacement", 60)
    assert f"({job_id}) can never start" in run.stderr
    run.interrupt(signal.SIGINT)
    run.wait(60)
    assert jobs_of(run.json("summary.json")["run_id"]) == {}


def test_run_whose_replicas_all_die_fails_with_the_reason_of_the_last_one(recipe: dict[str, Any], start: Start) -> None:
    document = with_replicas(recipe)
    document["job"]["engine"]["environment"] = {"STANDIN_CRASH_AFTER_S": "0.2"}
    run = start(document)
    assert run.wait(30) == 1
    assert "CUDA error: out of memory (made up)" in run.stderr
    assert "takes the place of" not in run.stderr, "it is the fault of them all"
    assert processes_with(str(run.run_dir)) == []


def test_run_with_replicas_that_is_left_is_resumed_with_those_that_live(recipe: dict[str, Any], start: Start) -> None:
    run = start(with_replicas(recipe))
    run.wait_for(lambda: streams(run.run_dir, "has ended") > 20, "the benchmark", 60)
    before = {name: run.json(f"endpoints/{name}.json")["job_id"] for name in ("vllm-1", "balancer")}
    run.interrupt(signal.SIGKILL)
    run.wait()
    kill_outright(run, "vllm-2")
    done = orch(run, "resume")
    assert done.returncode == 0, done.stderr
    summary = run.json("summary.json")
    ids = {job["name"]: job["job_id"] for job in summary["jobs"]}
    assert {name: ids[name] for name in before} == before
    assert summary["state"] == "completed"
    assert summary["stages"]["benchmark"]["failed"] <= 4, "those that were under way on the dead one"
    assert processes_with(str(run.run_dir)) == []


def test_resume_goes_on_without_a_dead_replica_that_cannot_be_submitted(recipe: dict[str, Any], start: Start) -> None:
    run = start(with_replicas(recipe))
    run.wait_for(lambda: streams(run.run_dir, "has ended") > 20, "the benchmark", 60)
    run.interrupt(signal.SIGKILL)
    run.wait()
    kill_outright(run, "vllm-2")
    # No script can be written there.
    (run.run_dir / "scripts" / "vllm-2-r2.sh").mkdir()
    done = orch(run, "resume")
    assert done.returncode == 0, done.stderr
    assert "vllm-2: no job was submitted in the place of" in done.stderr
    assert run.json("summary.json")["state"] == "completed"
    assert processes_with(str(run.run_dir)) == []
