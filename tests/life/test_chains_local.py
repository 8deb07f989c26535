"""Chains between runs on this machine: job.after, waited for by the later run's orchestrator."""

from __future__ import annotations

import copy
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.life.conftest import OrchRun, orch, processes_with, stop

Start = Callable[..., OrchRun]


def later(recipe: dict[str, Any], *after: Any) -> dict[str, Any]:
    """Return the recipe of a run that begins after others."""
    document = copy.deepcopy(recipe)
    document["job"] |= {"name": "later", "after": list(after)}
    return document


def events(run: OrchRun) -> list[dict[str, Any]]:
    """Return the run's ledger, empty if it has none yet."""
    path = run.run_dir / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def names_of(run: OrchRun) -> list[str]:
    return [event["event"] for event in events(run)]


@pytest.fixture
def slow(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe whose server takes its time to start, so that the run lasts."""
    recipe["job"]["monitoring"] = "off"
    document = copy.deepcopy(recipe)
    document["job"]["engine"]["environment"] = {"STANDIN_START_DELAY_S": "8"}
    return document


def started(start: Start, recipe: dict[str, Any]) -> OrchRun:
    """Start a run and wait until it has submitted its jobs."""
    run = start(recipe)
    run.wait_for(lambda: "deployed" in names_of(run), "its jobs")
    return run


def planned(start: Start, recipe: dict[str, Any]) -> OrchRun:
    """Return a run that was only planned."""
    run = start(recipe, "--dry-run")
    assert run.wait() == 0, run.stderr
    return run


def waiting(start: Start, recipe: dict[str, Any]) -> OrchRun:
    """Start a run and wait until it waits."""
    run = start(recipe)
    run.wait_for(lambda: "waiting" in names_of(run), "the wait")
    return run


def test_run_after_another_submits_nothing_until_that_one_is_completed(
    slow: dict[str, Any], recipe: dict[str, Any], start: Start
) -> None:
    first = started(start, slow)
    second = waiting(start, later(recipe, str(first.run_dir)))
    listed = json.loads(orch(second, "status", "--json").stdout)
    assert (listed["state"], listed["waits_for"]) == ("running", [str(first.run_dir)])
    assert f"waiting for {first.json('plan.json')['run_id']} " in orch(second, "list").stdout
    assert f"running, waiting for {first.run_dir.name} on local" in orch(second, "status").stdout
    assert first.process.poll() is None, "the first one still runs"
    assert (first.wait(), second.wait()) == (0, 0), second.stderr
    ended = next(event["at"] for event in events(first) if event["event"] == "run_finished")
    intents = [event["at"] for event in events(second) if event["event"] == "job_intent"]
    assert intents
    assert min(intents) > ended
    assert f"waits for {first.run_dir.name}, which is running" in second.stderr
    assert second.json("recipe.json")["job"]["after"] == [{"run": str(first.run_dir), "when": "completed"}]
    assert json.loads(orch(second, "status", "--json").stdout)["waits_for"] == []


def test_run_after_one_that_fails_ends_with_that_and_has_submitted_nothing(
    slow: dict[str, Any], recipe: dict[str, Any], start: Start
) -> None:
    slow["job"]["engine"]["environment"] = {"STANDIN_CRASH_AFTER_S": "6"}
    first = started(start, slow)
    second = waiting(start, later(recipe, str(first.run_dir)))
    whichever = waiting(start, later(recipe, {"run": str(first.run_dir), "when": "ended"}))
    assert (first.wait(), second.wait()) == (1, 1)
    assert f"{first.run_dir.name} has ended as failed and had to be completed: nothing was submitted" in second.stderr
    assert "Traceback" not in second.stderr
    assert "job_intent" not in names_of(second)
    assert second.json("summary.json")["state"] == "failed"
    assert whichever.wait() == 0, whichever.stderr


@pytest.mark.parametrize(
    ("end", "code", "state"), [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "left"), ("stop", 1, "stopped")]
)
def test_run_that_waits_can_be_ended(end: str, code: int, state: str, recipe: dict[str, Any], start: Start) -> None:
    first = planned(start, recipe)
    second = waiting(start, later(recipe, str(first.run_dir)))
    second.wait_for(lambda: f"planned: `orch.py resume {first.run_dir.name}` starts it" in second.stderr, "the hint")
    began = time.monotonic()
    if end == "stop":
        assert stop(second).returncode == 0
    else:
        second.interrupt(signal.Signals[end])
    assert second.wait(20) == code
    assert time.monotonic() - began < 10
    assert json.loads(orch(second, "status", "--json").stdout)["state"] == state
    assert "job_intent" not in names_of(second)
    assert "Traceback" not in second.stderr


def test_run_that_died_while_it_waited_is_resumed_and_waits_again(recipe: dict[str, Any], start: Start) -> None:
    first = planned(start, recipe)
    second = waiting(start, later(recipe, str(first.run_dir)))
    second.interrupt(signal.SIGKILL)
    second.wait()
    assert orch(first, "resume").returncode == 0
    resumed = orch(second, "resume")
    assert resumed.returncode == 0, resumed.stderr
    assert names_of(second).count("waiting") == 2
    assert names_of(second).count("waited") == 1
    assert processes_with(str(second.run_dir)) == []


def test_run_waits_for_one_that_is_left_until_it_is_resumed(
    slow: dict[str, Any], recipe: dict[str, Any], start: Start
) -> None:
    first = started(start, slow)
    second = waiting(start, later(recipe, str(first.run_dir)))
    first.interrupt(signal.SIGTERM)
    assert first.wait() == 143
    hint = f"which is left, its orchestrator ended before it did: `orch.py resume {first.run_dir.name}` goes on with it"
    second.wait_for(lambda: hint in second.stderr, "the hint")
    assert second.process.poll() is None
    assert orch(first, "resume").returncode == 0
    assert second.wait() == 0, second.stderr


def test_run_after_one_that_is_not_there_is_refused_and_a_dry_run_notes_it(
    recipe: dict[str, Any], start: Start, tmp_path: Path
) -> None:
    run = start(later(recipe, "nosuch"))
    assert run.wait() == 2
    assert "job.after: no run 'nosuch' in" in run.stderr
    assert not run.run_dir.exists()
    assert any("no run 'nosuch'" in note for note in planned(start, later(recipe, "nosuch")).json("plan.json")["notes"])


def test_runs_that_would_wait_for_each_other_do_not_start(recipe: dict[str, Any], start: Start, tmp_path: Path) -> None:
    first = planned(start, later(recipe, "second"))
    name = first.run_dir.name
    recipe["job"]["working_dirs"] = {"launch_iteration_pattern": "second_{run_id}"}
    path = tmp_path / "second.json"
    path.write_text(json.dumps(later(recipe, name)))
    assert orch(first, str(path), "--dry-run").returncode == 0
    (second,) = first.output_dir.glob("second_*")
    done = orch(first, "resume", second.name)
    assert done.returncode == 2
    assert f"would wait for itself: {second.name} after {name} after {second.name}" in done.stderr
