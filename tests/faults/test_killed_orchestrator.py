"""The orchestrator is killed at a step boundary and resumed: no job twice, none orphaned, no finished work lost.

`make test-faults` kills it at every boundary, `make test` at a few of each kind (killable.py prints what each is).
"""

from __future__ import annotations

import json
import os

import pytest

from tests.faults.conftest import TRIALS, Scene

IS_WHOLE = os.environ.get("ORCH_FAULTS") == "all"
# A whole run has about 140 steps; a boundary beyond its last lets it complete.
BOUNDARIES = range(1, 151) if IS_WHOLE else (27, 56, 123)
PLANNED = 26


@pytest.mark.parametrize("fatal", BOUNDARIES)
def test_run_killed_at_a_step_is_completed_by_resume(fatal: int, scene: Scene) -> None:
    code = scene.start(fatal=fatal)
    assert code in {-9, 0}, scene.said
    if scene.run_dir is None:
        assert fatal <= PLANNED
        assert scene.started() == {}
        return
    assert scene.resume() == 0, scene.said
    check_complete(scene)


@pytest.mark.parametrize("fatal", [30] if not IS_WHOLE else range(1, 60, 4))
def test_run_whose_resume_is_killed_too_is_completed_by_another(fatal: int, scene: Scene) -> None:
    assert scene.start(fatal=70) == -9, scene.said
    assert scene.resume(fatal=fatal) in {-9, 0}, scene.said
    assert scene.resume() == 0, scene.said
    check_complete(scene)


def test_run_killed_is_ended_by_stop_and_completed_by_resume(scene: Scene) -> None:
    assert scene.start(fatal=77) == -9
    assert scene.orch("stop") == 0, scene.said
    assert scene.left() == []
    assert scene.summary()["state"] == "stopped"
    assert scene.resume() == 0, scene.said
    check_complete(scene, repeats=1)


def test_dry_run_is_started_by_resume_and_a_completed_run_has_nothing_missing(scene: Scene) -> None:
    assert scene.start_dry() == 0, scene.said
    assert scene.left() == []
    assert scene.resume() == 0, scene.said
    check_complete(scene)
    assert scene.summary()["resumed"] == 0
    assert scene.resume() == 0
    assert "nothing is missing" in scene.said


def check_complete(scene: Scene, repeats: int = 0) -> None:
    """Check that the run has everything that its recipe asks for, each once.

    Args:
        scene: The run.
        repeats: How many trials were cancelled with their run, to be replaced by others.
    """
    summary = scene.summary()
    assert (summary["state"], summary["error"]) == ("completed", None)
    benchmark, hpo = summary["stages"]["benchmark"], summary["stages"]["hpo"]
    assert (benchmark["successful"], benchmark["failed"]) == (4, 0)
    complete = [trial for trial in hpo["trials"] if trial["state"] == "COMPLETE"]
    assert len(complete) == hpo["finished"] == TRIALS
    # A trial that was cut off while it was being asked for never had a job.
    unasked = [trial for trial in hpo["trials"] if trial["state"] == "FAIL" and not scene.started()[trial["job_id"]]]
    assert len(hpo["trials"]) - len(unasked) <= TRIALS + repeats
    assert hpo["test_accuracy"] is not None
    assert scene.run_dir is not None
    results = [json.loads(path.read_text()) for path in scene.run_dir.glob("trials/*/results.json")]
    assert TRIALS <= len(results) <= TRIALS + repeats
    assert {name: count for name, count in scene.started().items() if count > 1} == {}
    assert scene.left() == []
