"""Trials on a real Slurm whose wall time is shorter than their training."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import pytest

from tests.life.conftest import HPO, OrchRun
from tests.life.test_run_slurm import WHY_NO_SLURM, jobs_of, slurm_recipe

__all__ = ["slurm_recipe"]  # a fixture
WHY_NOT = WHY_NO_SLURM or ("" if os.environ.get("ORCH_FAULTS") == "all" else "takes minutes: make test-faults")
pytestmark = [pytest.mark.slurm, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "-"), pytest.mark.timeout(900)]


def test_trial_longer_than_its_wall_time_is_requeued_and_goes_on_from_its_checkpoint(
    slurm_recipe: dict[str, Any], start: Callable[..., OrchRun]
) -> None:
    job = slurm_recipe["job"]
    job["monitoring"] = {"mode": "off"}
    job["benchmark"] = {"enabled": False}
    job["resources"]["trial"] |= {"time": "00:02:00", "requeue": True}
    fixed = {**HPO["fixed"], "num_epochs": 400}  # type: ignore[dict-item]
    job["hpo"] = {**HPO, "trials": 1, "fixed": fixed, "sampler": "random", "evaluate_winner": False}
    run = start(slurm_recipe)
    assert run.wait(800) == 0, run.stderr
    (trial,) = run.json("summary.json")["stages"]["hpo"]["trials"]
    assert trial["state"] == "COMPLETE"
    assert run.status("trial_0000")["restart_count"] >= 1
    assert ": requeued" in run.stderr
    (metrics,) = (run.run_dir / "trials").glob("*/metrics.jsonl")
    epochs = [json.loads(line)["epoch"] for line in metrics.read_text().splitlines()]
    assert epochs == list(range(1, 401))
    assert jobs_of(run.json("summary.json")["run_id"]) == {}
