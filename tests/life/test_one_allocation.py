"""A whole run as the steps of a single Slurm job: services and trials side by side, nothing submitted but that job."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from orchestrator.ledger import Ledger
from tests.life.conftest import HPO, PROJECT, OrchRun, orch, processes_with
from tests.life.test_run_slurm import WHY_NO_SLURM, Start, await_end, jobs_of, slurm_recipe

__all__ = ["slurm_recipe"]  # a fixture
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(bool(WHY_NO_SLURM), reason=WHY_NO_SLURM or "-"),
    pytest.mark.timeout(400),
]


@pytest.fixture
def one(slurm_recipe: dict[str, Any]) -> dict[str, Any]:
    """Return the recipe of a run in one allocation."""
    job = slurm_recipe["job"]
    job["infrastructure"]["placement"] = "one_allocation"
    job["hpo"] = HPO
    return slurm_recipe


def submitted(run: OrchRun) -> list[str]:
    """Return the names of the run's jobs that the batch system knows, of those that its ledger tells of."""
    events = Ledger(run.run_dir / "events.jsonl").events("job_submitted")
    return [event["job"] for event in events if event["job_id"].isdigit()]


def test_run_in_one_allocation_completes_and_leaves_nothing(one: dict[str, Any], start: Start) -> None:
    run = start(one)
    assert run.wait(240) == 0, run.stderr
    summary = run.json("summary.json")
    assert summary["state"] == "completed"
    assert summary["stages"]["benchmark"]["successful"] == 6
    assert [trial["state"] for trial in summary["stages"]["hpo"]["trials"]] == ["COMPLETE", "COMPLETE"]
    assert submitted(run) == ["allocation"]
    names = {job["name"] for job in summary["jobs"]}
    assert {"allocation", "vllm", "client", "trial_0000", "trial_0001"} <= names
    assert jobs_of(summary["run_id"]) == {}
    assert processes_with(str(run.run_dir)) == []


def test_parts_on_other_partitions_are_components_of_one_heterogeneous_job(one: dict[str, Any], start: Start) -> None:
    for role in ("client", "trial"):
        one["job"]["resources"][role]["partition"] = "gpu"
    run = start(one)
    assert run.wait(240) == 0, run.stderr
    summary = run.json("summary.json")
    assert summary["state"] == "completed"
    nodes = {job["name"]: job["node"] for job in summary["jobs"]}
    assert nodes["vllm"].startswith("cpu")
    assert nodes["client"].startswith("gpu")
    assert nodes["trial_0000"].startswith("gpu")
    assert submitted(run) == ["allocation"]


def test_allocation_that_is_ended_from_outside_ends_the_run_with_its_reason(one: dict[str, Any], start: Start) -> None:
    one["job"]["hpo"] = {**HPO, "fixed": {**HPO["fixed"], "num_epochs": 400}}  # type: ignore[dict-item]
    run = start(one)
    run.wait_for(lambda: run.status("trial_0000").get("state") == "running", "a running trial", 180)
    subprocess.run(["scancel", run.status("allocation")["job_id"]], check=True, timeout=30)
    assert run.wait(120) == 1
    assert "job 'allocation' ended: CANCELLED" in run.stderr
    assert processes_with(str(run.run_dir)) == []


def test_orchestrator_that_is_killed_is_resumed_in_the_same_allocation(one: dict[str, Any], start: Start) -> None:
    run = start(one)
    run.wait_for(lambda: run.status("vllm").get("state") == "ready", "a ready server", 180)
    allocation = run.status("allocation")["job_id"]
    run.process.send_signal(signal.SIGKILL)
    run.process.wait()
    done = orch(run, "resume")
    assert done.returncode == 0, done.stderr
    summary = run.json("summary.json")
    assert summary["state"] == "completed"
    assert submitted(run) == ["allocation"]
    assert {job["name"]: job["job_id"] for job in summary["jobs"]}["allocation"] == allocation
    assert jobs_of(summary["run_id"]) == {}


def test_allocation_that_is_too_small_for_its_services_ends_the_run(one: dict[str, Any], start: Start) -> None:
    roles = ["server", "client", "monitoring", "trial"]
    one["job"]["infrastructure"]["allocation"] = [{"roles": roles, "nodes": 1, "cpus": 1, "mem_gb": 4}]
    run = start(one)
    assert run.wait(120) == 2, run.stderr
    assert "waits for 1 CPU" in run.stderr
    assert "services that do not end hold all the rest" in run.stderr
    assert processes_with(str(run.run_dir)) == []


def test_orchestrator_in_a_batch_job_uses_that_job_and_submits_nothing(one: dict[str, Any], tmp_path: Path) -> None:
    path, output_dir = tmp_path / "recipe.json", tmp_path / "output"
    path.write_text(json.dumps(one))
    size = ["--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--cpus-per-task=4", "--mem=8G"]
    options = [*size, "--partition=cpu", "--time=10"]
    argv = ["sbatch", "--parsable", *options, f"--output={tmp_path}/orch.out", "slurm_orch.sh", str(path)]
    answer = subprocess.run(
        [*argv, "--output-dir", str(output_dir)], cwd=PROJECT, capture_output=True, text=True, timeout=60, check=True
    )
    job_id = answer.stdout.strip()
    try:
        await_end(job_id, 300)
    finally:
        subprocess.run(["scancel", job_id], check=False, timeout=30)
    said = (tmp_path / "orch.out").read_text()
    run_dir = (output_dir / "latest").resolve()
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["state"] == "completed", said
    ids = [event["job_id"] for event in Ledger(run_dir / "events.jsonl").events("job_submitted")]
    assert len(ids) >= 5
    assert not [found for found in ids if found.isdigit()], "nothing was submitted"
    nodes = {job["node"] for job in summary["jobs"] if job["name"] != "allocation"}
    assert nodes <= {"cpu1", "cpu2", "cpu3"}
    assert processes_with(str(run_dir)) == []


def test_allocation_that_ended_while_nobody_looked_is_asked_for_again(one: dict[str, Any], start: Start) -> None:
    one["job"]["hpo"] = {**HPO, "fixed": {**HPO["fixed"], "num_epochs": 60}}  # type: ignore[dict-item]
    run = start(one)
    run.wait_for(lambda: run.status("trial_0000").get("state") == "running", "a running trial", 180)
    allocation = run.status("allocation")["job_id"]
    run.process.send_signal(signal.SIGKILL)
    run.process.wait()
    subprocess.run(["scancel", allocation], check=True, timeout=30)
    await_end(allocation, 60)
    done = orch(run, "resume")
    assert done.returncode == 0, done.stderr
    summary = run.json("summary.json")
    assert summary["state"] == "completed"
    assert submitted(run) == ["allocation", "allocation"]
    assert jobs_of(summary["run_id"]) == {}
    assert processes_with(str(run.run_dir)) == []
