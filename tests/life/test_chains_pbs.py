"""Chains between runs whose orchestrators are batch jobs of PBS: tests/standin/pbs, and Slurm's own qsub."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.own_job import OwnJob
from orchestrator.queued_job import scheduler_of
from tests.life.conftest import PROJECT
from tests.life.test_chains_slurm import in_squeue, ledger, names, wait_for
from tests.life.test_run_pbs import pbs_orch, pbs_recipe, pbs_state
from tests.life.test_run_slurm import WHY_NO_SLURM

__all__ = ["pbs_recipe", "pbs_state"]


class Front:
    """pbs_orch.sh as a user calls it."""

    def __init__(self, folder: Path, document: dict[str, Any]) -> None:
        self.folder, self.output_dir, self._document = folder, folder / "output", document

    def call(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """Run pbs_orch.sh outside of a job."""
        options = f"-o {self.folder}/orch.out"
        flags = ("--output-dir", str(self.output_dir))
        return pbs_orch("./pbs_orch.sh", *map(str, words), *flags, ORCH_QSUB_OPTIONS=options)

    def submit(self, *words: str | Path) -> str:
        """Submit an orchestrator; return its job's id."""
        done = self.call(*words)
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith(".pbshost\n")
        return done.stdout.strip()

    def recipe(self, name: str, environment: dict[str, str], *after: Any) -> Path:
        """Write a recipe that begins after others."""
        document = copy.deepcopy(self._document)
        document["job"] |= {"name": name, "after": list(after), "monitoring": "off"}
        document["job"]["engine"]["environment"] = environment
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps(document))
        return path

    def run_of(self, name: str) -> Path:
        """Return the directory of a run that a batch job has begun, when its jobs are submitted."""
        return Path(
            wait_for(lambda: next((p for p in self.output_dir.glob(f"*_{name}_*") if "deployed" in names(p)), None))
        )


@pytest.fixture
def front(tmp_path: Path, pbs_recipe: dict[str, Any]) -> Iterator[Front]:
    """The front door; what is left of its jobs at the end of the test is deleted."""
    yield Front(tmp_path, pbs_recipe)
    if jobs():
        subprocess.run(["qdel", *jobs()], timeout=30, check=False)
        wait_for(lambda: not jobs(), 30)


def jobs() -> dict[str, dict[str, Any]]:
    """Return the jobs that PBS still has to do with, by id."""
    said = subprocess.run(["qstat", "-f", "-F", "json"], capture_output=True, text=True, timeout=30, check=True)
    found: dict[str, dict[str, Any]] = json.loads(said.stdout).get("Jobs", {})
    return found


def test_pbs_job_of_a_run_after_another_is_held_and_starts_after_it(front: Front) -> None:
    first_id = front.submit(front.recipe("first", {"STANDIN_START_DELAY_S": "10"}))
    first = front.run_of("first")
    second_id = front.submit(front.recipe("second", {}, first.name))
    assert jobs()[second_id]["job_state"] == "H"
    assert jobs()[second_id]["depend"] == f"afterok:{first_id}"
    assert list(front.output_dir.glob("*_second_*")) == []
    second = front.run_of("second")
    wait_for(lambda: not jobs())
    assert names(first)[-1] == names(second)[-1] == "run_finished"
    assert OwnJob.from_json(ledger(first)[0]["own_job"]) == OwnJob("pbs", first_id)
    assert ledger(second)[0]["at"] > ledger(first)[-1]["at"]
    assert [event["state"] for event in (ledger(first)[-1], ledger(second)[-1])] == ["completed", "completed"]


def test_pbs_job_of_a_run_after_one_that_fails_is_never_started(front: Front) -> None:
    front.submit(front.recipe("first", {"STANDIN_CRASH_AFTER_S": "8"}))
    first = front.run_of("first")
    front.submit(front.recipe("second", {}, first.name))
    front.submit(front.recipe("third", {}, {"run": first.name, "when": "ended"}))
    third = front.run_of("third")
    wait_for(lambda: not jobs())
    assert (ledger(first)[-1]["state"], ledger(third)[-1]["state"]) == ("failed", "completed")
    assert list(front.output_dir.glob("*_second_*")) == []


def test_pbs_job_of_a_planned_run_can_be_depended_on(front: Front) -> None:
    recipe, flags = front.recipe("first", {"STANDIN_START_DELAY_S": "5"}), ("--output-dir", str(front.output_dir))
    assert pbs_orch(str(PROJECT / ".venv/bin/python"), "orch.py", str(recipe), "--dry-run", *flags).returncode == 0
    (first,) = front.output_dir.glob("*_first_*")
    first_id = front.submit("resume", first)
    second_id = front.submit(front.recipe("second", {}, first.name))
    assert jobs()[second_id]["depend"] == f"afterok:{first_id}"
    wait_for(lambda: not jobs())
    assert [event["state"] for event in ledger(front.run_of("second")) if event["event"] == "run_finished"] == [
        "completed"
    ]


def test_pbs_job_of_the_latest_run_is_that_runs_and_stop_deletes_it(front: Front) -> None:
    def orch(*words: str | Path) -> str:
        flags = ("--output-dir", str(front.output_dir))
        done = pbs_orch(str(PROJECT / ".venv/bin/python"), "orch.py", *map(str, words), *flags)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def planned(name: str, *after: str) -> Path:
        orch(front.recipe(name, {}, *after), "--dry-run")
        return next(front.output_dir.glob(f"*_{name}_*"))

    first_id = front.submit(front.recipe("first", {"STANDIN_START_DELAY_S": "20"}))
    first = front.run_of("first")
    third_id = front.submit(front.recipe("third", {}, "latest"))
    second = planned("second", first.name)
    second_id = front.submit("resume", second.name)
    assert [jobs()[job_id]["depend"] for job_id in (second_id, third_id)] == [f"afterok:{first_id}"] * 2
    assert f"job.after.run={first}" in jobs()[third_id]["Variable_List"]["ORCH_FLAGS"]
    assert str(second) in jobs()[second_id]["Variable_List"]["ORCH_FLAGS"]
    assert orch("stop", second) == f"Stopped: orchestrator (batch job {second_id}).\n"
    wait_for(lambda: second_id not in jobs(), 20)
    third = front.run_of("third")
    wait_for(lambda: not jobs())
    assert (names(second), names(third)[-1]) == (["run_queued", "run_stopped"], "run_finished")


@pytest.mark.slurm
@pytest.mark.skipif(bool(WHY_NO_SLURM), reason=WHY_NO_SLURM or "-")
def test_pbs_option_is_understood_by_slurms_qsub(tmp_path: Path) -> None:
    qsub = shutil.which("qsub")
    if qsub is None or "Slurm" not in Path(qsub).read_text(errors="replace"):
        pytest.skip("no qsub of Slurm is installed (Debian: slurm-wlm-torque)")

    def submit(text: str, *options: str) -> str:
        script = tmp_path / "job.sh"
        script.write_text(f"#!/bin/bash\n#PBS -j oe\n#PBS -o {tmp_path}/log\n#PBS -l walltime=00:01:00\n{text}\n")
        argv = ["qsub", *options, str(script)]
        done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=True)
        return done.stdout.strip().partition(".")[0]

    option = scheduler_of("pbs").dependency_option
    first = submit("sleep 5; exit 3")
    waiting, whichever = submit("true", *option([first], [])), submit("true", *option([], [first]))
    try:
        assert in_squeue(waiting) == in_squeue(whichever) == ("PENDING", "Dependency")
        wait_for(lambda: in_squeue(whichever)[0] == "COMPLETED", 60)
        assert in_squeue(waiting)[0] == "PENDING"
    finally:
        subprocess.run(["scancel", first, waiting, whichever], timeout=30, check=False)
