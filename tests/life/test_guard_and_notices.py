"""A run that has a cap on its GPU-hours, and one that tells others of itself."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.life.conftest import HPO, OrchRun, orch
from tests.life.test_run_slurm import WHY_NO_SLURM, slurm_recipe
from tests.orchestrator.test_notices import Receiver

__all__ = ["slurm_recipe"]  # a fixture
Start = Callable[..., OrchRun]
TRIAL_OF_SECONDS = {**HPO, "parallel_trials": 1, "sampler": "random"}


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A webhook on loopback that refuses the first request."""
    made = Receiver(503)
    yield made
    made.close()


@pytest.fixture
def quick(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe that only deploys."""
    recipe["job"] |= {"benchmark": {"enabled": False}, "monitoring": "off"}
    return recipe


@pytest.fixture
def one_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a GPU, as far as nvidia-smi says."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "nvidia-smi"
    program.write_text(
        '#!/bin/bash\nif [ "$1" = --list-gpus ]; then echo "GPU 0: NVIDIA A100 (UUID: GPU-1)"; '
        'else echo "40960, NVIDIA A100-SXM4-40GB"; fi\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_run_tells_a_command_and_a_webhook_when_it_is_ready_and_finished(
    quick: dict[str, Any], tmp_path: Path, receiver: Receiver, start: Start
) -> None:
    (tmp_path / "token").write_text("canary-token")
    told = tmp_path / "told"
    quick["job"]["notify"] = [
        {"command": ["sh", "-c", f'echo "$ORCH_EVENT $ORCH_STATE" >>{told}']},
        {"webhook": receiver.url, "token_file": str(tmp_path / "token")},
    ]
    run = start(quick, "--log-level", "DEBUG")
    assert run.wait(60) == 0, run.stderr
    assert told.read_text() == "ready running\nfinished completed\n"
    # The first request was answered with 503 and sent again.
    assert [body["event"] for body in receiver.bodies] == ["ready", "ready", "finished"]
    assert receiver.bodies[-1]["run_id"] == run.json("plan.json")["run_id"]
    assert (run.run_dir / "summary.json").is_file()
    log = (run.run_dir / "logs" / "orch.log").read_text()
    assert "canary" not in log + run.stderr


def test_run_that_fails_tells_so_and_a_webhook_that_is_gone_changes_nothing(
    quick: dict[str, Any], tmp_path: Path, receiver: Receiver, start: Start
) -> None:
    receiver.close()
    told = tmp_path / "told"
    quick["job"]["engine"]["environment"] = {"STANDIN_CRASH_AFTER_S": "0.2"}
    quick["job"]["notify"] = [
        {"on": ["failed"], "command": ["sh", "-c", f"cat >{told}"]},
        {"on": ["failed"], "webhook": receiver.url},
    ]
    run = start(quick)
    assert run.wait(60) == 1
    event = json.loads(told.read_text())
    assert (event["event"], event["state"]) == ("failed", "failed")
    assert "job 'vllm' ended" in event["text"]
    assert "notify failed: webhook at 127.0.0.1: ConnectionError" in run.stderr
    assert "canary" not in (run.run_dir / "logs" / "orch.log").read_text()


def test_run_near_the_end_of_its_own_wall_time_tells_so(quick: dict[str, Any], tmp_path: Path, start: Start) -> None:
    told = tmp_path / "told"
    quick["job"]["notify"] = [{"on": ["near_end"], "command": ["sh", "-c", f"cat >>{told}"]}]
    run = start(quick, env={"SLURM_JOB_END_TIME": "1700000000"})
    assert run.wait(60) == 0, run.stderr
    event = json.loads(told.read_text())
    assert (event["event"], event["job"]) == ("near_end", "the orchestrator's own batch job")


def test_run_with_a_command_that_is_not_there_is_refused_before_anything_starts(
    quick: dict[str, Any], start: Start
) -> None:
    quick["job"]["notify"] = [{"command": ["no-such-program-at-all"]}]
    run = start(quick)
    assert run.wait(60) == 2
    assert "job.notify: the command 'no-such-program-at-all' was not found here" in run.stderr


@pytest.mark.usefixtures("one_gpu")
def test_search_that_reaches_the_cap_ends_with_the_best_that_it_has(quick: dict[str, Any], start: Start) -> None:
    cap = 0.0025  # 9 s of one GPU
    quick["job"] |= {
        "hpo": {**TRIAL_OF_SECONDS, "trials": 50},
        "resources": {"server": {"gpus": 0}, "trial": {"gpus": 1}},
        "guard": {"max_gpu_hours": cap},
    }
    run = start(quick)
    assert run.wait(180) == 0, run.stderr
    summary = run.json("summary.json")
    hpo = summary["stages"]["hpo"]
    assert (summary["state"], hpo["stopped_by"]) == ("completed", "max_gpu_hours")
    assert 1 <= hpo["finished"] < 50
    assert hpo["best"]["objective"] > 0
    assert summary["gpu_hours"]["cap"] == cap
    assert cap <= summary["gpu_hours"]["used"] < cap + 120 / 3600
    assert hpo["test_accuracy"] is None
    assert any("max_gpu_hours" in warning for warning in hpo["warnings"])
    assert "no further trials: job 'trial_" in run.stderr
    events = [json.loads(line) for line in (run.run_dir / "events.jsonl").read_text().splitlines()]
    over = next(at for at, event in enumerate(events) if event["event"] == "job_over_cap")
    assert not any(event["event"] == "job_intent" for event in events[over:])
    assert sum(trial["state"] == "COMPLETE" for trial in hpo["trials"]) == hpo["finished"]


@pytest.mark.usefixtures("one_gpu")
def test_services_over_the_cap_are_not_started_again_by_resume(quick: dict[str, Any], start: Start) -> None:
    quick["job"] |= {"resources": {"server": {"gpus": 1}}, "guard": {"max_gpu_hours": 0.00001}}
    quick["job"]["engine"]["environment"] = {"STANDIN_CRASH_AFTER_S": "0.5"}
    run = start(quick)
    assert run.wait(60) == 1, run.stderr
    again = orch(run, "resume")
    assert again.returncode == 2
    assert "job 'vllm' is not submitted: job.guard.max_gpu_hours = 1e-05" in again.stderr


@pytest.mark.slurm
@pytest.mark.skipif(bool(WHY_NO_SLURM), reason=WHY_NO_SLURM or "-")
def test_search_on_slurm_holds_trials_back_while_others_could_use_the_rest_of_the_cap(
    slurm_recipe: dict[str, Any], tmp_path: Path, start: Start
) -> None:
    told = tmp_path / "told"
    # Each trial can use 1/6 GPU-hour; two fit at once, and all fit one after the other.
    slurm_recipe["job"] |= {
        "benchmark": {"enabled": False},
        "monitoring": "off",
        "hpo": {**TRIAL_OF_SECONDS, "trials": 4, "parallel_trials": 4},
        "guard": {"max_gpu_hours": 0.4},
        "notify": [
            {"on": ["near_end"], "near_end_minutes": 15, "command": ["sh", "-c", f"cat >>{told}; echo >>{told}"]}
        ],
    }
    slurm_recipe["job"]["resources"]["trial"] |= {"gpus": 1, "partition": "gpu"}
    run = start(slurm_recipe)
    assert run.wait(240) == 0, run.stderr
    hpo = run.json("summary.json")["stages"]["hpo"]
    assert ([trial["state"] for trial in hpo["trials"]], hpo["stopped_by"]) == (["COMPLETE"] * 4, None)
    assert hpo["test_accuracy"] is not None
    running, most = set(), 0
    for line in (run.run_dir / "events.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["event"] == "job_submitted" and event["job"].startswith("trial"):
            running.add(event["job"])
        if event["event"] == "job_state" and event["state"] == "COMPLETED":
            running.discard(event["job"])
        most = max(most, len(running))
    assert most == 2
    assert {json.loads(line)["job"] for line in told.read_text().splitlines()} == {"vllm", "client"}
    starts = run.json("plan.json")["forecast"]["starts"]
    assert all(item["at"] for item in starts), starts
