"""Job arrays on a cluster that is reached over SSH: a real sshd on loopback, a real Slurm behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.life.conftest import HPO
from tests.life.held_trainer import HeldTrainer
from tests.life.test_run_remote import Start, far, pytestmark, remote_recipe, remote_run, server
from tests.life.test_run_slurm import jobs_of

__all__ = ["far", "pytestmark", "remote_recipe", "server"]


def test_search_on_a_remote_cluster_submits_arrays_and_brings_their_logs_home(
    remote_recipe: dict[str, Any], start: Start, tmp_path: Path
) -> None:
    trainer, job = HeldTrainer(tmp_path).write(), remote_recipe["job"]
    job["hosts"]["cluster"]["environment"] = {"python": str(trainer.python)}
    job["benchmark"]["enabled"] = False
    job["hpo"] = {**HPO, "trials": 4, "sampler": "random", "job_arrays": True, "evaluate_winner": False}
    run = start(remote_recipe)
    assert run.wait(280) == 0, run.stderr
    summary = run.json("summary.json")
    assert [trial["state"] for trial in summary["stages"]["hpo"]["trials"]] == ["COMPLETE"] * 4
    assert sorted(trainer.starts()) == ["0", "1", "2", "3"]
    ids = {job["name"]: job["job_id"] for job in summary["jobs"]}
    assert ids["trial_0001"] == ids["trial_0000"].replace("_0", "_1")
    assert "#SBATCH --array=0-1\n" in (remote_run(remote_recipe, run) / "scripts" / "trial_0000-array.sh").read_text()
    log = run.run_dir / "logs" / f"trial_0001_{ids['trial_0001']}.batch"
    assert "trial_0001 exited with code 0" in log.read_text()
    assert jobs_of(summary["run_id"]) == {}
