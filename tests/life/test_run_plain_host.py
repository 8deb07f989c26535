"""Runs from a laptop on a machine without a batch system: a real sshd on loopback, no folder in common."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.transports.ways import close_ways
from tests.life.conftest import HPO, PROJECT, OrchRun, orch, processes_with
from tests.orchestrator.transports.sshd import SSHD, SshServer

Start = Callable[..., OrchRun]
WHY_NOT = "" if shutil.which(SSHD) else "sshd is not installed (apt-get install openssh-server)"
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "-")

FIXED: Any = HPO["fixed"]
LONG_HPO = {**HPO, "fixed": {**FIXED, "num_epochs": 40}}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SshServer]:
    """The machine."""
    sockets = Path(tempfile.mkdtemp(prefix="o-", dir="/tmp"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(sockets))
    made = SshServer(tmp_path / "sshd").start()
    yield made
    close_ways()
    made.kill()
    shutil.rmtree(sockets)


@pytest.fixture
def box(tmp_path: Path, server: SshServer) -> dict[str, Any]:
    """Its description in a recipe or a site file."""
    return {
        "ssh": json.loads(server.spec().model_dump_json(exclude_none=True)),
        "base_dir": str(tmp_path / "far_away"),
        "scheduler": {"kind": "local"},
        "environment": {"python": sys.executable, "supervisor_python": sys.executable},
    }


@pytest.fixture
def plain_recipe(recipe: dict[str, Any], box: dict[str, Any], standin_python: Path) -> dict[str, Any]:
    """The quick recipe, with everything but monitoring on that machine."""
    job = recipe["job"]
    job["engine"] = {"kind": "vllm", "device": "cpu", "python": str(standin_python)}
    job["monitoring"] = {"mode": "off"}
    job["host"], job["hosts"] = "box", {"box": box}
    job["resources"] = {key: {"cpus": 1, "mem_gb": 1, "gpus": 0} for key in ("server", "client", "trial")}
    return recipe


def there(plain_recipe: dict[str, Any], run: OrchRun) -> Path:
    """Return the run's directory on the machine."""
    return Path(plain_recipe["job"]["hosts"]["box"]["base_dir"]) / "runs" / run.run_dir.name


def registered(plain_recipe: dict[str, Any]) -> dict[str, str]:
    """Return the states of the machine's jobs by name, as its own batch system tells them."""
    folder = Path(plain_recipe["job"]["hosts"]["box"]["base_dir"]) / "jobs"
    argv = [sys.executable, str(folder / "local_jobs.py"), "status", "--state-dir", str(folder)]
    said = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True)
    jobs = [json.loads(line) for line in said.stdout.splitlines()]
    return {job["name"]: job["state"] for job in jobs}


def test_run_on_a_plain_machine_brings_everything_home(plain_recipe: dict[str, Any], start: Start) -> None:
    plain_recipe["job"]["hpo"] = HPO
    run = start(plain_recipe)
    assert run.wait(200) == 0, run.stderr
    summary = run.json("summary.json")
    assert (summary["state"], summary["error"]) == ("completed", None)
    assert summary["stages"]["benchmark"]["successful"] == 6
    trials = summary["stages"]["hpo"]["trials"]
    assert [trial["state"] for trial in trials] == ["COMPLETE"] * 2, [trial.get("cause") for trial in trials]
    far = there(plain_recipe, run)
    assert len(list((run.run_dir / "trials").rglob("results.json"))) == 2
    for lines in (run.run_dir / "trials").rglob("metrics.jsonl"):
        assert lines.read_bytes() == (far / lines.relative_to(run.run_dir)).read_bytes()
        assert len(lines.read_text().splitlines()) == 2
    states = registered(plain_recipe)
    assert set(states) == {f"orch-{summary['run_id']}-{job['name']}" for job in summary["jobs"]}
    assert not {"RUNNING", "ORPHANED"} & set(states.values())
    assert processes_with(str(far)) == []


def test_jobs_outlive_orchestrator_connection_and_control_master_and_resume_goes_on_with_them(
    plain_recipe: dict[str, Any], start: Start, server: SshServer
) -> None:
    plain_recipe["job"]["hpo"] = LONG_HPO
    run = start(plain_recipe)
    run.wait_for(lambda: list((run.run_dir / "trials").glob("*/metrics.jsonl")), "the first epoch of a trial", 120)
    far = there(plain_recipe, run)
    run.interrupt(signal.SIGKILL)
    run.process.wait()
    before = processes_with(str(far / "scripts" / "supervisor.py"))
    server.kill()
    for pid in processes_with("ssh", os.environ["XDG_RUNTIME_DIR"]):
        os.kill(pid, signal.SIGKILL)
    assert len(before) >= 3
    for pid in before:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        assert (fields[3], fields[4]) == (str(pid), "0"), "a session of its own without a terminal"
    server.start()
    assert processes_with(str(far / "scripts" / "supervisor.py")) == before
    resumed = orch(run, "resume")
    assert resumed.returncode == 0, resumed.stderr
    summary = run.json("summary.json")
    trials = summary["stages"]["hpo"]["trials"]
    assert [trial["state"] for trial in trials] == ["COMPLETE"] * 2, [trial.get("cause") for trial in trials]
    assert not list((far / "scripts").glob("*-r2.sh"))
    assert processes_with(str(far)) == []


def test_run_on_a_plain_machine_whose_connection_is_cut_loses_nothing(
    plain_recipe: dict[str, Any], start: Start, server: SshServer
) -> None:
    plain_recipe["job"]["hpo"] = LONG_HPO
    run = start(plain_recipe)
    run.wait_for(lambda: list((run.run_dir / "trials").glob("*/metrics.jsonl")), "the first epoch of a trial", 120)
    far = there(plain_recipe, run)
    before = set(processes_with(str(far / "scripts" / "supervisor.py")))
    server.kill()
    time.sleep(12)
    assert before & set(processes_with(str(far / "scripts" / "supervisor.py"))), "no job outlived the connection"
    server.start()
    assert run.wait(200) == 0, run.stderr
    assert run.stderr.count("it is asked again until it answers") == 1
    assert run.stderr.count("box answers again") == 1
    summary = run.json("summary.json")
    trials = summary["stages"]["hpo"]["trials"]
    assert [trial["state"] for trial in trials] == ["COMPLETE"] * 2, [trial.get("cause") for trial in trials]
    assert not list((far / "scripts").glob("*-r2.sh"))
    for lines in (run.run_dir / "trials").rglob("metrics.jsonl"):
        epochs = [json.loads(line)["epoch"] for line in lines.read_text().splitlines()]
        assert epochs == list(range(1, 41))


def test_stop_ends_the_process_groups_of_a_plain_machine(plain_recipe: dict[str, Any], start: Start) -> None:
    run = start(plain_recipe, "--keep")
    assert run.wait(120) == 0, run.stderr
    far = there(plain_recipe, run)
    assert processes_with(str(far))
    assert set(registered(plain_recipe).values()) == {"RUNNING"}
    seen = json.loads(orch(run, "status", "--json").stdout)
    assert {job["state"] for job in seen["jobs"]} == {"ready"}
    stopped = orch(run, "stop")
    assert stopped.returncode == 0, stopped.stderr
    assert processes_with(str(far)) == []
    assert set(registered(plain_recipe).values()) == {"CANCELLED"}


def test_clean_asks_the_plain_machine_what_lives_there(
    plain_recipe: dict[str, Any], box: dict[str, Any], start: Start, tmp_path: Path
) -> None:
    plain_recipe["job"]["benchmark"] = {"enabled": False}
    run = start(plain_recipe, "--keep")
    assert run.wait(120) == 0, run.stderr
    site = tmp_path / "site.yaml"
    site.write_text(yaml.safe_dump({"hosts": {"box": box}}))
    clean = ("clean", "--host", "box", "--site", str(site), "--older-than", "0h", "--yes")
    kept = orch(run, *clean)
    assert kept.returncode == 0, kept.stderr
    assert "jobs have not ended" in kept.stdout
    assert there(plain_recipe, run).is_dir()
    assert orch(run, "stop").returncode == 0
    gone = orch(run, *clean)
    assert gone.returncode == 0, gone.stderr
    assert not there(plain_recipe, run).exists(), gone.stdout + gone.stderr


def test_dry_run_on_a_plain_machine_asks_it_for_its_size_and_brings_nothing_there(
    plain_recipe: dict[str, Any], start: Start, tmp_path: Path
) -> None:
    run = start(plain_recipe, "--dry-run", "--json")
    assert run.wait(60) == 0, run.stderr
    plan = json.loads((run.output_dir.parent / "stdout").read_text())
    assert {start["unknown"] for start in plan["forecast"]["starts"]} == {"at once"}
    assert not (tmp_path / "far_away").exists()
    plain_recipe["job"]["resources"]["trial"] = {"cpus": 4096, "host": "box"}
    refused = start(plain_recipe, "--dry-run")
    assert refused.wait(60) == 2
    assert "cpus = 4096 for the trial job" in refused.stderr
    assert f"box has {len(os.sched_getaffinity(0))}" in refused.stderr


def test_machine_without_scheduler_that_is_not_described_as_plain_is_refused(
    plain_recipe: dict[str, Any], start: Start, tmp_path: Path
) -> None:
    # Whoever has Slurm beside the tests: sshd's sessions get a PATH without it.
    empty = tmp_path / "server_bin"
    empty.mkdir()
    for name in ("sh", "date", "timeout", "head", "tail", "cat", "mkdir", "env"):
        (empty / name).symlink_to(shutil.which(name) or name)
    plain_recipe["job"]["hosts"]["box"].pop("scheduler")
    other = SshServer(tmp_path / "other", SetEnv=f"PATH={empty}").start()
    try:
        plain_recipe["job"]["hosts"]["box"]["ssh"] = json.loads(other.spec().model_dump_json(exclude_none=True))
        run = start(plain_recipe)
        assert run.wait(60) == 2, run.stderr
    finally:
        other.kill()
    assert "neither sbatch nor qsub is on PATH there" in run.stderr
    assert "scheduler: {kind: local}" in run.stderr


def test_check_of_a_plain_machine_runs_its_test_job_there(box: dict[str, Any], tmp_path: Path) -> None:
    site = tmp_path / "site.yaml"
    site.write_text(yaml.safe_dump({"hosts": {"box": box}}))
    argv = [sys.executable, str(PROJECT / "orch.py"), "check", "box", "--site", str(site), "--json"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    steps = {step["name"]: step for step in json.loads(done.stdout)["steps"]}
    assert done.returncode == 0, steps
    good = {"login", "folder", "python", "supervisor", "scheduler", "test job", "node folder", "clean up"}
    assert {name: steps[name] for name in good if steps[name]["state"] != "ok"} == {}
    assert f"{len(os.sched_getaffinity(0))} CPUs" in steps["partitions"]["found"]
    assert not (tmp_path / "far_away").exists()


def test_logs_follow_a_job_there_from_another_process_over_a_cut_connection(
    plain_recipe: dict[str, Any], start: Start, server: SshServer
) -> None:
    plain_recipe["job"]["benchmark"] = {"enabled": False}
    run = start(plain_recipe, "--keep")
    assert run.wait(120) == 0, run.stderr
    far = there(plain_recipe, run)
    (log,) = (far / "logs").glob("vllm_*.err")
    shown = orch(run, "logs", "vllm")
    assert shown.returncode == 0, shown.stderr
    assert log.read_text() in shown.stdout
    assert not list((run.run_dir / "logs").glob("vllm_*"))
    argv = [sys.executable, str(PROJECT / "orch.py"), "logs", "-f", "vllm", "--output-dir", str(run.output_dir)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as follower:
        said = _Collected(follower)
        with log.open("a") as file:
            file.write("a first word\n")
        said.wait_for("a first word")
        server.kill()
        time.sleep(5)
        with log.open("a") as file:
            file.write("said while nobody heard\n")
        server.start()
        said.wait_for("said while nobody heard")
        assert follower.poll() is None
        stopped = orch(run, "stop")
        assert stopped.returncode == 0, stopped.stderr
        assert follower.wait(30) == 0
    assert said.text.count("a first word") == 1
    assert said.errors.count("it is asked again until it answers") == 1, said.errors
    assert len(said.errors.splitlines()) <= 4, said.errors
    assert log.read_text() in said.text


class _Collected:
    """What a process says while it lives."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.text, self.errors = "", ""
        self._process = process
        self._threads = [threading.Thread(target=self._read_text), threading.Thread(target=self._read_errors)]
        for thread in self._threads:
            thread.start()

    def _read_text(self) -> None:
        for line in self._process.stdout or ():
            self.text += line

    def _read_errors(self) -> None:
        for line in self._process.stderr or ():
            self.errors += line

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + 40
        while text not in self.text:
            if time.monotonic() > deadline or self._process.poll() is not None:
                self._process.send_signal(signal.SIGKILL)
                pytest.fail(f"no {text!r}:\n{self.text}\n{self.errors}")
            time.sleep(0.1)
