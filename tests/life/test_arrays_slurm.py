"""A search whose trials are job arrays, on a real Slurm: tests/cluster/up.sh starts one on this machine."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.life.conftest import HPO, OrchRun, orch
from tests.life.held_trainer import HeldTrainer
from tests.life.test_run_slurm import Start, jobs_of, pytestmark, slurm_recipe

__all__ = ["pytestmark", "slurm_recipe"]
TRIALS, PARALLEL = 12, 4
TASK = re.compile(r"(\d+)_(\d+)")


@pytest.fixture
def trainer(tmp_path: Path) -> HeldTrainer:
    """The stand-in trainer, which notes its starts and can be held."""
    return HeldTrainer(tmp_path).write()


@pytest.fixture
def recipe_of_arrays(slurm_recipe: dict[str, Any], trainer: HeldTrainer) -> dict[str, Any]:
    """The quick recipe with 12 trials, 4 at once."""
    job = slurm_recipe["job"]
    job["environment"] = {"python": str(trainer.python)}
    job["benchmark"] = {"enabled": False}
    job["hpo"] = {**HPO, "sampler": "random", "trials": TRIALS, "parallel_trials": PARALLEL, "job_arrays": True}
    job["hpo"]["evaluate_winner"] = False
    job["resources"]["trial"] = {"cpus": 1, "mem_gb": 0.5, "gpus": 0}
    return slurm_recipe


def ids_of(run: OrchRun) -> dict[str, str]:
    """Return the ids of the submitted trials by the job's name."""
    lines = (run.run_dir / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    return {
        event["job"]: event["job_id"]
        for event in events
        if event["event"] == "job_submitted" and event["job"].startswith("trial_")
    }


def check_each_once(run: OrchRun, trainer: HeldTrainer, states: Counter[str]) -> None:
    """Check that every trial ended as told, that no trainer was started twice, and that nothing is left."""
    summary = run.json("summary.json")
    trials = summary["stages"]["hpo"]["trials"]
    assert Counter(trial["state"] for trial in trials) == states
    assert Counter(trainer.starts()) == Counter(str(trial["number"]) for trial in trials)
    assert jobs_of(summary["run_id"]) == {}


def test_search_of_12_trials_submits_them_as_arrays_and_each_once(
    recipe_of_arrays: dict[str, Any], start: Start, trainer: HeldTrainer
) -> None:
    run = start(recipe_of_arrays, "--no-monitoring")
    assert run.wait(240) == 0, run.stderr
    check_each_once(run, trainer, Counter(COMPLETE=TRIALS))
    ids = ids_of(run)
    first = [TASK.fullmatch(ids[f"trial_{number:04}"]) for number in range(PARALLEL)]
    assert [match and match.group(2) for match in first] == ["0", "1", "2", "3"]
    assert len({match.group(1) for match in first if match}) == 1
    assert len({job_id.partition("_")[0] for job_id in ids.values()}) < TRIALS
    log = run.run_dir / "logs" / f"trial_0001_{ids['trial_0001']}.batch"
    assert "trial_0001 exited with code 0" in log.read_text()
    shown = orch(run, "logs", "trial_0001")
    assert "trial_0001 exited with code 0" in shown.stdout


def test_search_whose_array_has_one_task_cancelled_loses_that_trial_alone(
    recipe_of_arrays: dict[str, Any], start: Start, trainer: HeldTrainer
) -> None:
    trainer.hold.touch()
    run = start(recipe_of_arrays, "--no-monitoring")
    run.wait_for(lambda: len(trainer.starts()) == PARALLEL, "the first array", 120)
    subprocess.run(["scancel", ids_of(run)["trial_0002"]], check=True, timeout=30)
    run.wait_for(lambda: "trial 2 (random)" in run.stderr, "the end of the trial", 60)
    trainer.hold.unlink()
    assert run.wait(240) == 0, run.stderr
    check_each_once(run, trainer, Counter(COMPLETE=TRIALS - 1, FAIL=1))
    (failed,) = [trial for trial in run.json("summary.json")["stages"]["hpo"]["trials"] if trial["state"] == "FAIL"]
    assert failed["number"] == 2
    assert "CANCELLED: the scheduler says CANCELLED" in failed["cause"]


def test_search_whose_orchestrator_is_killed_beside_an_array_goes_on_with_its_tasks(
    recipe_of_arrays: dict[str, Any], start: Start, trainer: HeldTrainer
) -> None:
    trainer.hold.touch()
    run = start(recipe_of_arrays, "--no-monitoring")
    run.wait_for(lambda: len(trainer.starts()) == PARALLEL, "the first array", 120)
    before = ids_of(run)
    run.interrupt(signal.SIGKILL)
    run.process.wait(30)
    trainer.hold.unlink()
    done = orch(run, "resume")
    assert done.returncode == 0, done.stderr
    check_each_once(run, trainer, Counter(COMPLETE=TRIALS))
    assert {name: ids_of(run)[name] for name in before} == before


@pytest.mark.parametrize("is_taken", [True, False])
def test_search_whose_orchestrator_is_killed_while_it_submits_an_array_has_each_trial_once(
    is_taken: bool, recipe_of_arrays: dict[str, Any], start: Start, trainer: HeldTrainer, tmp_path: Path
) -> None:
    real = shutil.which("sbatch")
    shims = tmp_path / "shims"
    shims.mkdir()
    shim = shims / "sbatch"
    submits = f'{real} "$@" >/dev/null; ' if is_taken else ""
    shim.write_text(
        f"#!/bin/bash\nif [[ $2 == *trial_*-array.sh && ! -e {tmp_path}/killed ]]; then\n"
        f'  touch {tmp_path}/killed; {submits}kill -9 "$PPID"; exit 1\nfi\nexec {real} "$@"\n'
    )
    shim.chmod(0o700)
    run = start(recipe_of_arrays, "--no-monitoring", env={"PATH": f"{shims}:{os.environ['PATH']}"})
    assert run.wait(120) == -signal.SIGKILL, run.stderr
    assert ids_of(run) == {}
    done = orch(run, "resume")
    assert done.returncode == 0, done.stderr
    check_each_once(run, trainer, Counter(COMPLETE=TRIALS))
    tokens = {path.name for path in (run.run_dir / "status").glob("*.fence")}
    assert len(tokens) == (0 if is_taken else PARALLEL)
