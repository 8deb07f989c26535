"""Runs whose orchestrator is itself in a batch job that ends before they do, or that was not there when they began."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.ledger import Ledger
from tests.life.conftest import HPO, PROJECT, processes_with
from tests.life.test_run_slurm import WHY_NO_SLURM, await_end, slurm_recipe

__all__ = ["slurm_recipe"]  # a fixture
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(bool(WHY_NO_SLURM), reason=WHY_NO_SLURM or "-"),
    pytest.mark.timeout(400),
]
SIZE = ["--nodes=1", "--ntasks=1", "--cpus-per-task=6", "--mem=8G", "--partition=cpu", "--time=10"]


class BatchRuns:
    """One recipe, and orch in batch jobs and outside of them."""

    def __init__(self, folder: Path, recipe: dict[str, Any]) -> None:
        self.folder, self.output_dir = folder, folder / "output"
        self.jobs: list[str] = []
        self.recipe = folder / "recipe.json"
        recipe["job"]["infrastructure"]["placement"] = "one_allocation"
        self.recipe.write_text(json.dumps(recipe))

    @property
    def run_dir(self) -> Path:
        (found,) = [path for path in self.output_dir.iterdir() if not path.is_symlink()]
        return found

    @property
    def said(self) -> str:
        """What the newest batch job has said."""
        path = self.folder / f"{self.jobs[-1]}.out"
        return path.read_text() if path.exists() else ""

    def submit(self, *words: str) -> None:
        """Start orch in a batch job."""
        argv = ["sbatch", "--parsable", *SIZE, f"--output={self.folder}/%j.out", "slurm_orch.sh", *words]
        argv += ["--output-dir", str(self.output_dir)]
        answer = subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True, timeout=60, check=True)
        self.jobs.append(answer.stdout.strip())

    def wait_for(self, condition: Callable[[], Any], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, self.said
            time.sleep(0.1)

    def orch(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run orch outside of a batch job."""
        argv = [sys.executable, str(PROJECT / "orch.py"), *words, "--output-dir", str(self.output_dir)]
        return subprocess.run(argv, capture_output=True, text=True, timeout=200, check=False)

    def submitted(self) -> list[str]:
        """Return the hosts of the submitted allocations, in their order."""
        planned = [event["planned"] for event in Ledger(self.run_dir / "events.jsonl").events("job_intent")]
        return [job["host"] for job in planned if job["name"] == "allocation"]

    def completed(self) -> dict[str, Any]:
        summary: dict[str, Any] = json.loads((self.run_dir / "summary.json").read_text())
        assert summary["state"] == "completed", self.said
        assert processes_with(str(self.run_dir)) == []
        return summary


@pytest.fixture
def runs(slurm_recipe: dict[str, Any], tmp_path: Path) -> Iterator[BatchRuns]:
    """Return a run whose search takes a while."""
    slurm_recipe["job"]["monitoring"] = {"mode": "off"}
    slurm_recipe["job"]["hpo"] = {**HPO, "fixed": {**HPO["fixed"], "num_epochs": 60}}  # type: ignore[dict-item]
    runs = BatchRuns(tmp_path, slurm_recipe)
    yield runs
    for job in runs.jobs:
        subprocess.run(["scancel", job], check=False, timeout=30)
    runs.orch("stop")


def cut_off(runs: BatchRuns, is_outright: bool = False) -> None:
    """Start the run in a batch job, which ends in the middle of it: out of wall time, or killed outright."""
    runs.submit(str(runs.recipe))
    runs.wait_for(lambda: "trial_0000: running" in runs.said, 120)
    if is_outright:
        for pid in processes_with(str(runs.output_dir)):
            os.kill(pid, signal.SIGKILL)
    else:  # as slurm_orch.sh asks for with --signal=B:TERM@60
        subprocess.run(["scancel", "--batch", "--signal=TERM", runs.jobs[-1]], check=True, timeout=30)
    await_end(runs.jobs[-1], 60)
    # Nothing outlives the batch job, though this cluster does not follow what is in a session of its own.
    runs.wait_for(lambda: processes_with("steps.py", str(runs.run_dir)) == [], 20)


def test_batch_job_that_ends_is_followed_by_another_in_which_the_run_goes_on(runs: BatchRuns) -> None:
    cut_off(runs)
    name = runs.run_dir.name
    assert f"its services end with this batch job; `sbatch slurm_orch.sh resume {name}` goes on" in runs.said
    runs.submit("resume", name)
    await_end(runs.jobs[-1], 240)
    summary = runs.completed()
    assert summary["stages"]["benchmark"]["successful"] == 6
    assert runs.submitted() == ["@within", "@within"]
    assert "allocation: job" not in runs.said, "the broker of before is not adopted"


def test_batch_job_that_is_killed_outright_is_no_allocation_of_the_next(runs: BatchRuns) -> None:
    cut_off(runs, is_outright=True)
    time.sleep(10)  # as long as heartbeats are fresh
    runs.submit("resume", runs.run_dir.name)
    await_end(runs.jobs[-1], 240)
    runs.completed()
    assert runs.submitted() == ["@within", "@within"]


def test_run_that_was_left_in_a_batch_job_goes_on_outside_of_one_in_a_job_of_its_own(runs: BatchRuns) -> None:
    cut_off(runs)
    done = runs.orch("resume", runs.run_dir.name)
    assert done.returncode == 0, done.stderr
    jobs = {job["name"]: job["job_id"] for job in runs.completed()["jobs"]}
    assert runs.submitted() == ["@within", "here"]
    assert jobs["allocation"].isdigit()


def test_run_that_was_planned_outside_uses_the_batch_job_that_it_is_resumed_in(runs: BatchRuns) -> None:
    planned = runs.orch(str(runs.recipe), "--dry-run")
    assert planned.returncode == 0, planned.stderr
    runs.submit("resume", runs.run_dir.name)
    await_end(runs.jobs[-1], 240)
    runs.completed()
    assert runs.submitted() == ["@within"]
    assert "note: allocation: planned anew as this batch job" in runs.said
    ids = [event["job_id"] for event in Ledger(runs.run_dir / "events.jsonl").events("job_submitted")]
    assert not [found for found in ids if found.isdigit()], "nothing was submitted"
    allocation = json.loads((runs.run_dir / "recipe.json").read_text())["job"]["infrastructure"]["allocation"]
    assert [part.get("cpus") for part in allocation] == [None]


def test_services_cannot_be_kept_within_a_batch_job(runs: BatchRuns) -> None:
    runs.submit(str(runs.recipe), "--keep")
    await_end(runs.jobs[-1], 60)
    assert "--keep: the run's services are steps of the batch job that orch itself is, and end with it" in runs.said
    assert not runs.output_dir.exists()
