"""Chains between runs whose orchestrators are batch jobs of a real Slurm (tests/cluster/up.sh)."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.own_job import OwnJob
from tests.life.conftest import PROJECT
from tests.life.test_run_slurm import WHY_NO_SLURM, slurm_recipe

__all__ = ["slurm_recipe"]
pytestmark = [pytest.mark.slurm, pytest.mark.skipif(bool(WHY_NO_SLURM), reason=WHY_NO_SLURM or "-")]


class Front:
    """slurm_orch.sh as a user calls it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.output_dir = folder, folder / "output"
        self.submitted: list[str] = []
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("SBATCH_")},
            "XDG_CONFIG_HOME": str(folder / "config"),
            "ORCH_SBATCH_OPTIONS": f"--partition=cpu --mem=1G --time=5 --output={folder}/%j.out",
        }

    def call(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """Run slurm_orch.sh outside of a job, from a folder that is not the project's."""
        argv = [str(PROJECT / "slurm_orch.sh"), *map(str, words), "--output-dir", str(self.output_dir)]
        return self._run(argv)

    def submit(self, *words: str | Path) -> str:
        """Submit an orchestrator; return its job's id."""
        done = self.call(*words)
        assert done.returncode == 0, done.stderr
        job_id = done.stdout.split()[-1]
        assert done.stdout == f"Submitted batch job {job_id}\n"
        self.submitted.append(job_id)
        return job_id

    def orch(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """Run orch.py."""
        argv = [sys.executable, str(PROJECT / "orch.py"), *map(str, words), "--output-dir", str(self.output_dir)]
        return self._run(argv)

    def _run(self, argv: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            argv, cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=60, check=False
        )

    def recipe(self, document: dict[str, Any], name: str, *after: Any) -> Path:
        """Write a recipe that begins after others."""
        document = copy.deepcopy(document)
        document["job"] |= {"name": name, "after": list(after)}
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps(document))
        return path

    def planned(self, recipe: Path) -> Path:
        """Plan a run without starting it; return its directory."""
        done = self.orch(recipe, "--dry-run", "--json")
        assert done.returncode == 0, done.stderr
        return Path(json.loads(done.stdout)["run_dir"])

    def run_of(self, name: str) -> Path:
        """Return the directory of a run that a batch job has begun, when its jobs are submitted."""
        return Path(
            wait_for(lambda: next((p for p in self.output_dir.glob(f"*_{name}_*") if "deployed" in names(p)), None))
        )

    def state(self, run: Path) -> str:
        """Return a run's state."""
        done = self.orch("status", run, "--json")
        return str(json.loads(done.stdout)["state"])


def wait_for(condition: Callable[[], Any], timeout_s: float = 120) -> Any:
    """Return the first true value of ``condition``."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.2)
    pytest.fail(f"waited {timeout_s} s")


def names(run: Path) -> list[str]:
    """Return the events of a run's ledger."""
    path = run / "events.jsonl"
    return [event["event"] for event in ledger(run)] if path.is_file() else []


def ledger(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


def in_squeue(job_id: str) -> tuple[str, str]:
    """Return a job's state and the reason, as squeue has them."""
    argv = ["squeue", "--noheader", "--states=all", f"--jobs={job_id}", "--format=%T|%r"]
    said = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    state, _, reason = said.partition("|")
    return state, reason


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Front]:
    """The front door; what is left of its jobs at the end of the test is cancelled."""
    made = Front(tmp_path)
    yield made
    for job_id in made.submitted:
        subprocess.run(["scancel", job_id], timeout=30, check=False)
    for run in made.output_dir.glob("*_*_*"):
        made.orch("stop", run)


@pytest.fixture
def quick(slurm_recipe: dict[str, Any]) -> dict[str, Any]:
    slurm_recipe["job"]["monitoring"] = "off"
    return slurm_recipe


@pytest.fixture
def slow(quick: dict[str, Any]) -> dict[str, Any]:
    document = copy.deepcopy(quick)
    document["job"]["engine"]["environment"] = {"STANDIN_START_DELAY_S": "12"}
    return document


def test_batch_job_of_a_run_after_another_waits_in_slurms_queue_and_starts_after_it(
    slow: dict[str, Any], quick: dict[str, Any], front: Front
) -> None:
    first_id = front.submit(front.recipe(slow, "first"))
    first = front.run_of("first")
    second_id = front.submit(front.recipe(quick, "second", first.name))
    wait_for(lambda: in_squeue(second_id) == ("PENDING", "Dependency"), 20)
    assert list(front.output_dir.glob("*_second_*")) == []
    second = front.run_of("second")
    assert in_squeue(first_id)[0] == "COMPLETED"
    wait_for(lambda: in_squeue(second_id)[0] == "COMPLETED")
    assert (front.state(first), front.state(second)) == ("completed", "completed")
    assert OwnJob.from_json(ledger(first)[0]["own_job"]) == OwnJob("slurm", first_id, "orchtest")
    begun = next(event["at"] for event in ledger(second) if event["event"] == "run_started")
    assert begun > next(event["at"] for event in ledger(first) if event["event"] == "run_finished")


def test_batch_job_of_a_run_after_one_that_fails_is_cancelled_by_slurm(
    slow: dict[str, Any], quick: dict[str, Any], front: Front
) -> None:
    slow["job"]["engine"]["environment"] = {"STANDIN_CRASH_AFTER_S": "12"}
    first_id = front.submit(front.recipe(slow, "first"))
    first = front.run_of("first")
    completed = front.recipe(quick, "second", str(first))
    second_id = front.submit(completed)
    third_id = front.submit(front.recipe(quick, "third", {"run": first.name, "when": "ended"}))
    wait_for(lambda: in_squeue(first_id)[0] == "FAILED")
    wait_for(lambda: in_squeue(second_id) == ("CANCELLED", "DependencyNeverSatisfied"), 60)
    wait_for(lambda: in_squeue(third_id)[0] == "COMPLETED")
    assert list(front.output_dir.glob("*_second_*")) == []
    refused = front.call(completed)
    assert refused.returncode == 2
    assert "has ended as failed and had to be completed" in refused.stderr


def test_chain_of_planned_runs_is_submitted_at_once_and_runs_in_its_order(
    slow: dict[str, Any], quick: dict[str, Any], front: Front
) -> None:
    runs = [front.planned(front.recipe(slow, "first"))]
    for name in ("second", "third"):
        runs.append(front.planned(front.recipe(quick, name, runs[-1].name)))
    ids = [front.submit("resume", run) for run in runs]
    assert [in_squeue(job_id) for job_id in ids[1:]] == [("PENDING", "Dependency")] * 2
    assert f"submitted as batch job {ids[2]}" in front.orch("status", runs[2]).stdout
    wait_for(lambda: in_squeue(ids[2])[0] == "COMPLETED", 180)
    assert [front.state(run) for run in runs] == ["completed"] * 3
    moments = [
        next(event["at"] for event in ledger(run) if event["event"] == name)
        for run in runs
        for name in ("run_started", "run_finished")
    ]
    assert moments == sorted(moments)


def test_dependency_on_a_job_that_slurm_has_forgotten_leaves_the_wait_to_orch(front: Front) -> None:
    """What orch counts on: such a job is taken and starts at once, and then its orchestrator waits."""
    argv = ["sbatch", "--parsable", "--partition=cpu", "--mem=100", "--time=1", "--output=/dev/null"]
    argv += ["--dependency=afterok:4000000", "--kill-on-invalid-dep=yes", "--wrap=true"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True)
    front.submitted.append(done.stdout.strip())
    wait_for(lambda: in_squeue(done.stdout.strip())[0] == "COMPLETED", 60)


HELD = "--partition=cpu --mem=1G --time=5 --hold"


def test_orchestrator_that_is_requeued_starts_no_second_run(slow: dict[str, Any], front: Front) -> None:
    first_id = front.submit(front.recipe(slow, "first"))
    run = front.run_of("first")
    again = subprocess.run(["scontrol", "requeue", first_id], capture_output=True, text=True, timeout=30, check=False)
    assert again.returncode != 0
    # Who asks for it all the same: the job that Slurm starts again names the run that it had begun.
    front.env["ORCH_SBATCH_OPTIONS"] += " --requeue --open-mode=append"
    second_id = front.submit(front.recipe(slow, "second"))
    second = front.run_of("second")
    subprocess.run(["scontrol", "requeue", second_id], timeout=30, check=True)
    wait_for(lambda: in_squeue(second_id)[0] == "FAILED", 240)
    said = (front.folder / f"{second_id}.out").read_text()
    assert "Slurm has started this batch job again (restart 1)" in said
    assert f"`./slurm_orch.sh resume {second}`" in said
    assert list(front.output_dir.glob("*_second_*")) == [second]
    wait_for(lambda: in_squeue(first_id)[0] == "COMPLETED")
    assert front.state(run) == "completed"


def test_stop_cancels_the_orchestrator_in_the_queue(quick: dict[str, Any], front: Front) -> None:
    front.env["ORCH_SBATCH_OPTIONS"] = HELD
    run = front.planned(front.recipe(quick, "first"))
    job_id = front.submit("resume", run)
    assert f"planned, submitted as batch job {job_id}" in front.orch("status", run).stdout
    for name in ("plan.json", "events.jsonl"):
        os.utime(run / name, (0, 0))
    cleaned = front.orch("clean", "--older-than", "2d", "--yes", "--json")
    assert f"batch job {job_id}, which will start or resume it, is in the queue" in cleaned.stdout
    assert run.is_dir()
    stopped = front.orch("stop", run)
    assert (stopped.returncode, stopped.stdout) == (0, f"Stopped: orchestrator (batch job {job_id}).\n")
    wait_for(lambda: in_squeue(job_id)[0] == "CANCELLED", 30)
    assert names(run) == ["run_queued", "run_stopped"]


def test_job_that_was_cancelled_by_hand_is_told_of_and_not_depended_on(quick: dict[str, Any], front: Front) -> None:
    options = front.env["ORCH_SBATCH_OPTIONS"]
    front.env["ORCH_SBATCH_OPTIONS"] = HELD
    run = front.planned(front.recipe(quick, "first"))
    job_id = front.submit("resume", run)
    subprocess.run(["scancel", job_id], timeout=30, check=True)
    wait_for(lambda: in_squeue(job_id)[0] == "CANCELLED", 30)
    assert f"planned, batch job {job_id} is gone from the queue" in front.orch("status", run).stdout
    front.env["ORCH_SBATCH_OPTIONS"] = options
    later_id = front.submit(front.recipe(quick, "second", run.name))
    assert front.orch("resume", run).returncode == 0
    wait_for(lambda: in_squeue(later_id)[0] == "COMPLETED", 60)


def test_latest_is_put_in_place_when_the_job_is_submitted(quick: dict[str, Any], front: Front) -> None:
    front.env["ORCH_SBATCH_OPTIONS"] += " --hold"
    wanted = front.planned(front.recipe(quick, "first"))
    resumes, follows = front.submit("resume"), front.submit(front.recipe(quick, "later", "latest"))
    other = front.planned(front.recipe(quick, "other"))
    subprocess.run(["scontrol", "release", resumes, follows], timeout=30, check=True)
    wait_for(lambda: in_squeue(follows)[0] == "COMPLETED", 120)
    (later,) = front.output_dir.glob("*_later_*")
    assert (front.state(wanted), front.state(later), front.state(other)) == ("completed", "completed", "planned")
    assert json.loads((later / "recipe.json").read_text())["job"]["after"][0]["run"] == str(wanted)
