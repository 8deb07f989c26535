"""A search whose trials are subjobs of array jobs: tests/standin/pbs stands in for OpenPBS."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.life.conftest import HPO, OrchRun, orch, processes_with
from tests.life.held_trainer import HeldTrainer
from tests.life.test_run_pbs import Start, names_of_jobs, pbs_recipe, pbs_state

__all__ = ["pbs_recipe", "pbs_state"]
SUBJOB = re.compile(r"(\d+)\[(\d+)\]\.pbshost")


@pytest.fixture
def trainer(tmp_path: Path) -> HeldTrainer:
    """The stand-in trainer, which notes its starts and can be held."""
    return HeldTrainer(tmp_path).write()


@pytest.fixture
def recipe_of_arrays(pbs_recipe: dict[str, Any], trainer: HeldTrainer) -> dict[str, Any]:
    """The quick recipe with 4 trials, two at once."""
    job = pbs_recipe["job"]
    job["environment"] = {"python": str(trainer.python)}
    job["benchmark"]["enabled"] = False
    job["hpo"] = {**HPO, "trials": 4, "sampler": "random", "job_arrays": True, "evaluate_winner": False}
    return pbs_recipe


def ids_of(run: OrchRun) -> dict[str, list[str]]:
    """Return the ids under which each trial was submitted."""
    lines = (run.run_dir / "events.jsonl").read_text().splitlines()
    submitted = [event for event in map(json.loads, lines) if event["event"] == "job_submitted"]
    trials = [event for event in submitted if event["job"].startswith("trial_")]
    return {event["job"]: [other["job_id"] for other in trials if other["job"] == event["job"]] for event in trials}


def test_search_on_pbs_submits_its_trials_as_array_jobs(
    recipe_of_arrays: dict[str, Any], start: Start, trainer: HeldTrainer
) -> None:
    run = start(recipe_of_arrays, "--no-monitoring")
    assert run.wait(240) == 0, run.stderr
    summary = run.json("summary.json")
    assert Counter(trial["state"] for trial in summary["stages"]["hpo"]["trials"]) == {"COMPLETE": 4}
    ids = ids_of(run)
    first, second = (SUBJOB.fullmatch(ids[name][0]) for name in ("trial_0000", "trial_0001"))
    assert first is not None
    assert second is not None
    assert (first.group(1), first.group(2), second.group(2)) == (second.group(1), "0", "1")
    assert all(len(own) == 1 for own in ids.values())
    log = run.run_dir / "logs" / f"trial_0001_{second.group()}.batch"
    assert "trial_0001 exited with code 0" in log.read_text()
    assert names_of_jobs() == []
    assert processes_with(str(run.run_dir)) == []


def test_search_on_pbs_loses_the_subjob_that_is_deleted_and_no_other(
    recipe_of_arrays: dict[str, Any], start: Start, trainer: HeldTrainer
) -> None:
    trainer.hold.touch()
    run = start(recipe_of_arrays, "--no-monitoring")
    run.wait_for(lambda: len(trainer.starts()) == 2, "the first array", 120)
    job_id = run.status("trial_0000-array_1")["job_id"]
    assert SUBJOB.fullmatch(job_id)
    subprocess.run(["qdel", job_id], check=True, timeout=30)
    run.wait_for(lambda: "trial 1 (random)" in run.stderr, "the end of the trial", 60)
    trainer.hold.unlink()
    assert run.wait(300) == 0, run.stderr
    trials = run.json("summary.json")["stages"]["hpo"]["trials"]
    assert [trial["state"] for trial in trials] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert names_of_jobs() == []


def test_search_on_pbs_whose_orchestrator_is_killed_takes_the_subjobs_up_again(
    recipe_of_arrays: dict[str, Any], start: Start, trainer: HeldTrainer
) -> None:
    trainer.hold.touch()
    run = start(recipe_of_arrays, "--no-monitoring")
    run.wait_for(lambda: len(trainer.starts()) == 2, "the first array", 120)
    run.interrupt(signal.SIGKILL)
    run.process.wait(30)
    trainer.hold.unlink()
    done = orch(run, "resume")
    assert done.returncode == 0, done.stderr
    summary = run.json("summary.json")
    assert Counter(trial["state"] for trial in summary["stages"]["hpo"]["trials"]) == {"COMPLETE": 4}
    assert all(len(own) == 1 for own in ids_of(run).values())
    assert sorted(trainer.starts()) == ["0", "1", "2", "3"]
    assert names_of_jobs() == []
