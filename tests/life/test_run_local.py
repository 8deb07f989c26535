"""The life of a run on this machine: a stand-in for the server, everything else real."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.life.conftest import HAS_MONITORING, HPO, OrchRun, orch, processes_with, stop

Start = Callable[..., OrchRun]


def test_run_with_all_stages_completes_and_leaves_nothing(recipe: dict[str, Any], start: Start) -> None:
    recipe["job"]["hpo"] = HPO
    run = start(recipe, "--json")
    assert run.wait(180) == 0, run.stderr
    answer = json.loads((run.output_dir.parent / "stdout").read_text())
    assert answer["state"] == "completed"
    assert Path(answer["report"]).stat().st_size > 10_000
    assert Path(answer["run_dir"]) == run.run_dir
    summary = run.json("summary.json")
    benchmark, hpo = summary["stages"]["benchmark"], summary["stages"]["hpo"]
    assert (benchmark["total_queries"], benchmark["successful"], benchmark["failed"]) == (6, 6, 0)
    assert benchmark["ttft_ms"]["count"] == 6
    records = (run.run_dir / "benchmark").glob("*/requests.jsonl")
    lines = [json.loads(line) for path in records for line in path.read_text().splitlines()]
    assert sum(not line["warmup"] for line in lines) == 6
    assert [trial["state"] for trial in hpo["trials"]] == ["COMPLETE", "COMPLETE"]
    assert 0 < hpo["best"]["objective"] <= 1
    assert 0 < hpo["test_accuracy"] <= 1
    assert processes_with(str(run.run_dir)) == []
    assert list((run.run_dir / "endpoints").iterdir()) == []
    assert list((run.run_dir / "prometheus_assets").iterdir()) == []


@pytest.mark.monitoring
@pytest.mark.skipif(not HAS_MONITORING, reason="prometheus, pushgateway or node exporter is not installed")
def test_run_with_monitoring_has_its_series_in_the_summary(recipe: dict[str, Any], start: Start) -> None:
    recipe["job"]["hpo"] = {**HPO, "trials": 1, "evaluate_winner": False}
    run = start(recipe)
    assert run.wait(180) == 0, run.stderr
    monitoring = run.json("summary.json")["monitoring"]
    assert monitoring["seen"] is True, monitoring["why"]
    names = {item["metric"]["__name__"] for item in monitoring["series"]}
    assert {"tokens_per_second", "training_loss", "validation_accuracy"} <= names
    clients = {
        item["metric"]["client_id"]
        for item in monitoring["series"]
        if item["metric"]["__name__"] == "tokens_per_second"
    }
    assert clients == {"0", "1", "2"}


@pytest.mark.monitoring
@pytest.mark.skipif(not HAS_MONITORING, reason="prometheus, pushgateway or node exporter is not installed")
def test_run_with_keep_answers_until_it_is_stopped(recipe: dict[str, Any], start: Start) -> None:
    recipe["job"]["hpo"] = {**HPO, "trials": 1, "evaluate_winner": False}
    run = start(recipe, "--keep")
    assert run.wait(180) == 0, run.stderr
    status = json.loads(orch(run, "status", "--json").stdout)
    assert status["kept"] is True
    urls = {job["name"]: job["url"] for job in status["jobs"]}
    run_id = run.json("plan.json")["run_id"]
    for name in ("tokens_per_second", "validation_accuracy"):
        parameters = {"query": f'{name}{{run="{run_id}"}}'}
        answer = requests.get(f"{urls['prometheus']}/api/v1/query", params=parameters, timeout=10).json()
        assert answer["data"]["result"], f"Prometheus has no {name} of this run"
    up = requests.get(f"{urls['prometheus']}/api/v1/query", params={"query": "up == 1"}, timeout=10).json()
    assert {"vllm", "client", "node_exporter", "pushgateway"} <= {
        item["metric"]["job"] for item in up["data"]["result"]
    }
    done = stop(run)
    assert done.returncode == 0, done.stderr
    assert processes_with(str(run.run_dir)) == []


def test_run_whose_server_is_killed_while_it_starts_ends_within_15_s(recipe: dict[str, Any], start: Start) -> None:
    recipe["job"]["engine"]["environment"] = {"STANDIN_START_DELAY_S": "50"}
    run = start(recipe, "--no-monitoring")
    tests_folder = str(run.output_dir.parent.parent)
    pids = run.wait_for(
        lambda: [pid for pid in processes_with("openai_server.py", tests_folder) if _is_server(pid)], "the server"
    )
    # The process exists a moment before it has said anything.
    run.wait_for(lambda: any("loading" in path.read_text() for path in run.run_dir.glob("logs/vllm_*.out")), "its log")
    killed_at = time.monotonic()
    os.kill(pids[0], signal.SIGKILL)
    assert run.wait(15) == 1
    assert time.monotonic() - killed_at < 15
    assert "SIGKILL" in run.stderr
    assert "stand-in: loading" in run.stderr, "the last lines of the server's log are shown"
    assert processes_with(str(run.run_dir)) == []


def _is_server(pid: int) -> bool:
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return any(word.endswith(b"openai_server.py") for word in words[:3])


def test_run_whose_supervisor_is_killed_ends_too(recipe: dict[str, Any], start: Start) -> None:
    recipe["job"]["engine"]["environment"] = {"STANDIN_START_DELAY_S": "50"}
    run = start(recipe, "--no-monitoring")
    pid = run.wait_for(lambda: run.status("vllm").get("pid") if run.output_dir.exists() else 0, "the supervisor")
    os.kill(pid, signal.SIGKILL)
    assert run.wait(20) == 1
    assert "killed outright" in run.stderr
    assert processes_with(str(run.run_dir)) == []


def test_run_whose_server_crashes_shows_its_last_words(recipe: dict[str, Any], start: Start) -> None:
    recipe["job"]["engine"]["environment"] = {"STANDIN_CRASH_AFTER_S": "0.2"}
    run = start(recipe, "--no-monitoring")
    assert run.wait(30) == 1
    assert "CUDA error: out of memory (made up)" in run.stderr
    assert "Traceback" not in run.stderr
    assert run.json("summary.json")["state"] == "failed"
    assert "CUDA error" in (run.run_dir / "report.html").read_text()


@pytest.mark.parametrize("moment", ["deploy", "benchmark", "trial"])
def test_run_at_ctrl_c_ends_its_jobs_and_says_where_it_is_kept(
    moment: str, recipe: dict[str, Any], start: Start
) -> None:
    job = recipe["job"]
    job["hpo"] = {**HPO, "fixed": {**HPO["fixed"], "num_epochs": 5000}}  # type: ignore[dict-item]
    if moment == "deploy":
        job["engine"]["environment"] = {"STANDIN_START_DELAY_S": "50"}
    if moment == "benchmark":
        job["engine"]["environment"] = {"STANDIN_TOKEN_DELAY_S": "5"}
    run = start(recipe, "--no-monitoring")
    reached: dict[str, Callable[[], Any]] = {
        "deploy": lambda: run.output_dir.exists() and run.status("client").get("state") == "ready",
        "benchmark": lambda: "benchmark: 0/" in run.stderr,
        "trial": lambda: run.output_dir.exists() and run.status("trial_0001").get("state") == "running",
    }
    run.wait_for(reached[moment], moment)
    run.interrupt()
    assert run.wait(60) == 130
    assert str(run.run_dir) in run.stderr
    assert "Traceback" not in run.stderr
    assert processes_with(str(run.run_dir)) == []
    assert run.json("summary.json")["state"] == "interrupted"
    if moment == "trial":
        assert run.json("summary.json")["stages"]["benchmark"]["successful"] == 6, "its results are kept"


def test_run_at_term_leaves_its_jobs_for_stop(recipe: dict[str, Any], start: Start) -> None:
    recipe["job"]["engine"]["environment"] = {"STANDIN_START_DELAY_S": "50"}
    run = start(recipe, "--no-monitoring")
    run.wait_for(lambda: run.output_dir.exists() and run.status("client").get("state") == "ready", "the client")
    run.interrupt(signal.SIGTERM)
    assert run.wait(20) == 128 + signal.SIGTERM
    assert "orch.py stop" in run.stderr
    assert processes_with("client/server.py", str(run.run_dir)) != []
    done = stop(run)
    assert done.returncode == 0, done.stderr
    assert "vllm" in done.stdout
    assert processes_with(str(run.run_dir)) == []


def test_stop_of_a_live_run_ends_it_and_keeps_its_results(recipe: dict[str, Any], start: Start) -> None:
    recipe["job"]["engine"]["environment"] = {"STANDIN_TOKEN_DELAY_S": "5"}
    run = start(recipe, "--no-monitoring")
    run.wait_for(lambda: "benchmark: 0/" in run.stderr, "the benchmark")
    done = stop(run)
    assert done.returncode == 0, done.stderr
    assert run.wait(10) == 1
    assert run.json("summary.json")["state"] == "stopped"
    assert processes_with(str(run.run_dir)) == []


def test_two_runs_at_once_do_not_disturb_each_other(recipe: dict[str, Any], start: Start) -> None:
    runs = [start(recipe), start(recipe)]
    for run in runs:
        assert run.wait(180) == 0, run.stderr
        assert run.json("summary.json")["stages"]["benchmark"]["successful"] == 6
    assert runs[0].json("plan.json")["run_id"] != runs[1].json("plan.json")["run_id"]


def test_run_with_a_taken_fixed_port_says_so(recipe: dict[str, Any], start: Start) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        recipe["job"]["engine"]["port"] = port
        run = start(recipe, "--no-monitoring")
        assert run.wait(30) == 1
    assert str(port) in run.stderr
    assert "port" in run.stderr.lower()
    assert "Traceback" not in run.stderr


def test_resolved_recipe_of_a_run_plans_the_same_scripts(recipe: dict[str, Any], start: Start) -> None:
    recipe["job"]["hpo"] = HPO
    first = start(recipe, "--dry-run", "--json")
    assert first.wait() == 0, first.stderr
    again = start(first.json("recipe.json"), "--dry-run", "--json")
    assert again.wait() == 0, again.stderr
    scripts = []
    for run in (first, again):
        plan = run.json("plan.json")
        names = sorted(path.name for path in (run.run_dir / "scripts").iterdir())
        texts = [(run.run_dir / "scripts" / name).read_text() for name in names]
        root, run_id = str(run.run_dir), plan["run_id"]
        # The directory's name holds the time and the run id.
        scripts.append(
            [(name, text.replace(root, "RUN").replace(run_id, "ID")) for name, text in zip(names, texts, strict=True)]
        )
    assert len(scripts[0]) >= 7
    assert scripts[0] == scripts[1]
    assert first.json("recipe.json")["job"] == again.json("recipe.json")["job"]


def test_run_whose_supervisor_is_killed_ends_its_servers_children_too(
    recipe: dict[str, Any], start: Start, tmp_path: Path
) -> None:
    python = tmp_path / "forking-python"
    standin = recipe["job"]["engine"]["python"]
    # The child stands for vLLM's engine process: it outlives its parent unless somebody ends it.
    child = f"bash -c 'exec -a engine-of-{tmp_path.name} sleep 300' &"
    python.write_text(f'#!/bin/bash\nif [ "$1" = -m ]; then {child} fi\nexec {standin} "$@"\n')
    python.chmod(0o700)
    recipe["job"]["engine"].update(python=str(python), environment={"STANDIN_START_DELAY_S": "50"})
    run = start(recipe, "--no-monitoring")
    run.wait_for(lambda: processes_with(f"engine-of-{tmp_path.name} 300"), "the server's child")
    pid = run.wait_for(lambda: run.output_dir.exists() and run.status("vllm").get("pid"), "the supervisor")
    os.kill(pid, signal.SIGKILL)
    assert run.wait(40) == 1
    assert processes_with(f"engine-of-{tmp_path.name} 300") == []
