"""The life of a run on PBS: tests/standin/pbs stands in for OpenPBS, and tells what it takes over from a real one.

What a real server does with the scripts is not proven here; the project is checked on a real OpenPBS as well.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.life.conftest import HPO, PROJECT, OrchRun, processes_with

Start = Callable[..., OrchRun]
PROGRAMS = PROJECT / "tests" / "standin" / "pbs"


@pytest.fixture
def pbs_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the stand-in's programs on PATH; return its state folder."""
    state = tmp_path / "pbs"
    monkeypatch.setenv("STANDIN_PBS_STATE", str(state))
    monkeypatch.setenv("PATH", f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}")
    return state


@pytest.fixture
def pbs_recipe(recipe: dict[str, Any], pbs_state: Path) -> dict[str, Any]:
    """The quick recipe, on PBS."""
    job = recipe["job"]
    job["scheduler"] = {"kind": "pbs"}
    job["infrastructure"] = {"partition": "cpu", "mem_gb": 2, "time": "10", "cpus_per_task": 1, "gpus_per_node": 0}
    small = {"cpus": 1, "mem_gb": 1}
    job["resources"] = {"client": small, "monitoring": small, "trial": {**small, "gpus": 0}}
    return recipe


def names_of_jobs() -> list[str]:
    """Return the names of the jobs that PBS still has to do with."""
    said = subprocess.run(["qstat", "-f", "-F", "json"], capture_output=True, text=True, timeout=30, check=True)
    return [job["Job_Name"] for job in json.loads(said.stdout).get("Jobs", {}).values()]


def test_run_on_pbs_completes_and_leaves_no_job(pbs_recipe: dict[str, Any], start: Start) -> None:
    pbs_recipe["job"]["hpo"] = HPO
    run = start(pbs_recipe)
    assert run.wait(240) == 0, run.stderr
    summary = run.json("summary.json")
    assert summary["state"] == "completed"
    assert summary["stages"]["benchmark"]["successful"] == 6
    assert [trial["state"] for trial in summary["stages"]["hpo"]["trials"]] == ["COMPLETE", "COMPLETE"]
    assert all(re.fullmatch(r"\d+\.pbshost", job["job_id"]) for job in summary["jobs"])
    assert {job["node"] for job in summary["jobs"]} <= {"pbshost", socket.gethostname()}
    assert names_of_jobs() == []
    assert processes_with(str(run.run_dir)) == []
    for job in summary["jobs"]:
        assert (run.run_dir / "logs" / f"{job['name']}_{job['job_id']}.batch").is_file()


@pytest.mark.parametrize("history", [False, True])
def test_run_on_pbs_whose_server_is_killed_while_it_starts_ends_within_15_s(
    history: bool, pbs_recipe: dict[str, Any], pbs_state: Path, start: Start
) -> None:
    if history:
        pbs_state.mkdir()
        (pbs_state / "history").touch()
        pbs_recipe["job"]["scheduler"]["history"] = True
    pbs_recipe["job"]["engine"]["environment"] = {"STANDIN_START_DELAY_S": "100"}
    run = start(pbs_recipe, "--no-monitoring")
    pids = run.wait_for(lambda: servers(run), "the server")
    run.wait_for(lambda: any("loading" in path.read_text() for path in run.run_dir.glob("logs/vllm_*.out")), "its log")
    began = time.monotonic()
    os.kill(pids[0], signal.SIGKILL)
    run.wait_for(lambda: "Its last words" in run.stderr, "the end of the wait", 15)
    assert run.wait(60) == 1
    assert time.monotonic() - began < 25
    assert "SIGKILL" in run.stderr
    assert "stand-in: loading" in run.stderr
    assert not [name for name in names_of_jobs() if run.json("plan.json")["run_id"] in name]


def servers(run: OrchRun) -> list[int]:
    """Return the pids of the stand-in server, its supervisor left out."""
    found = processes_with("openai_server.py", str(run.output_dir.parent.parent))
    return [pid for pid in found if "supervisor.py" not in words(pid)]


def words(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return "supervisor.py"


def test_run_on_pbs_at_ctrl_c_cancels_its_jobs_by_id(pbs_recipe: dict[str, Any], start: Start) -> None:
    pbs_recipe["job"]["engine"]["environment"] = {"STANDIN_START_DELAY_S": "100"}
    run = start(pbs_recipe, "--no-monitoring")
    run.wait_for(lambda: run.output_dir.exists() and run.status("client").get("state") == "ready", "the client")
    assert len(names_of_jobs()) == 2
    run.interrupt()
    assert run.wait(60) == 130
    assert names_of_jobs() == []


def test_run_on_an_unknown_queue_shows_what_qsub_says(pbs_recipe: dict[str, Any], start: Start) -> None:
    pbs_recipe["job"]["resources"]["client"]["partition"] = "nosuch"
    run = start(pbs_recipe, "--no-monitoring")
    assert run.wait(60) == 2
    assert "qsub: Unknown queue" in run.stderr
    assert "Traceback" not in run.stderr
    assert names_of_jobs() == [], "the server that was submitted before it is cancelled"


def pbs_orch(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run or submit pbs_orch.sh."""
    return subprocess.run(
        arguments, cwd=PROJECT, capture_output=True, text=True, timeout=60, env={**os.environ, **env}, check=False
    )


@pytest.mark.parametrize("form", ["submits itself", "qsub -v"])
def test_pbs_orch_runs_the_recipe_that_it_is_given_with_its_flags(
    form: str, pbs_recipe: dict[str, Any], tmp_path: Path
) -> None:
    pbs_recipe["job"] |= {"benchmark": {"enabled": False}, "monitoring": "off"}
    recipe, output_dir, log = tmp_path / "my, recipe.json", tmp_path / "output", tmp_path / "orch.out"
    recipe.write_text(json.dumps(pbs_recipe))
    flags = ["--output-dir", str(output_dir), "--dry-run"]
    if form == "submits itself":
        done = pbs_orch("./pbs_orch.sh", str(recipe), *flags, ORCH_QSUB_OPTIONS=f"-o {log}")
    else:
        done = pbs_orch(
            *("qsub", "-o", str(log), "-v", "RECIPE,ORCH_FLAGS", "pbs_orch.sh"),
            RECIPE=str(recipe),
            ORCH_FLAGS=" ".join(flags),
        )
    assert done.returncode == 0, done.stderr
    deadline = time.monotonic() + 60
    while names_of_jobs() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert "vllm" in log.read_text()
    planned = [path for path in output_dir.iterdir() if (path / "plan.json").is_file()]
    assert len(planned) == 1, log.read_text()
    assert json.loads((planned[0] / "plan.json").read_text())["scheduler"] == "pbs"


def test_pbs_orch_without_a_recipe_or_with_words_that_qsub_would_change_is_refused(pbs_state: Path) -> None:
    assert (pbs_orch("./pbs_orch.sh").returncode, pbs_orch("./pbs_orch.sh", "r.json", "a,b").returncode) == (2, 2)
    assert "usage" in pbs_orch("./pbs_orch.sh").stderr
