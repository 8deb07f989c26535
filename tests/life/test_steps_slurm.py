"""One Slurm job as the allocation of many steps: the broker under a supervisor, on a real Slurm."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.life.conftest import PROJECT
from tests.life.test_run_slurm import WHY_NO_SLURM

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(bool(WHY_NO_SLURM), reason=WHY_NO_SLURM or "-")]
STEPS = PROJECT / "orchestrator" / "schedulers" / "steps.py"
SUPERVISOR = PROJECT / "orchestrator" / "supervisor.py"
# Says where and with what it runs, waits, and says when it ended.
PROGRAM = """
import json, os, sys, time
names = ("CUDA_VISIBLE_DEVICES", "SLURM_CPUS_ON_NODE", "SLURMD_NODENAME", "SLURM_STEP_GPUS", "ORCH_STEP_NODES")
began = time.time()
print(json.dumps({"began": began, **{name: os.environ.get(name) for name in names}}), flush=True)
time.sleep(float(sys.argv[1]))
print(json.dumps({"ended": time.time()}), flush=True)
"""
GPU_NODE = "--partition=gpu --ntasks-per-node=1 --cpus-per-task=8 --mem=8000M --gpus-per-node=4 --time=5"
CPU_NODE = "--partition=cpu --ntasks-per-node=1 --cpus-per-task=4 --mem=4000M --time=5"


def wait_for(look: Callable[[], Any], what: str, within_s: float = 40.0) -> Any:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        found = look()
        if found:
            return found
        time.sleep(0.1)
    pytest.fail(f"waited {within_s} s for {what}")


class Allocation:
    """A run directory with a broker's job, and the commands that speak with the broker."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.spool = run_dir / "steps"
        self.job_id = ""
        self.patience_s = 60.0
        for folder in ("scripts", "logs"):
            (run_dir / folder).mkdir(parents=True)
        (run_dir / "program.py").write_text(PROGRAM)

    def supervised(self, name: str, argv: list[str], kind: str, *directives: str, **config: Any) -> Path:
        """Write a batch script as orch does."""
        base = {"schema_version": 1, "run_id": "0a1b", "run_dir": str(self.run_dir), "token": f"orch-0a1b-{name}"}
        base.update(service=name, kind=kind, stop_grace_s=3.0, heartbeat_s=0.5)
        path = self.run_dir / "scripts" / f"{name}.json"
        path.write_text(json.dumps({**base, **config}))
        words = " ".join(f"'{word}'" for word in [sys.executable, str(SUPERVISOR), str(path), "--", *argv])
        script = path.with_suffix(".sh")
        script.write_text("#!/bin/bash\n" + "".join(f"{line}\n" for line in directives) + f"exec {words}\n")
        return script

    def start(self, groups: list[dict[str, Any]], *components: str) -> None:
        """Submit the job and wait until its broker answers."""
        record = self.run_dir / "status" / "orch-0a1b-broker.json"
        config = self.run_dir / "broker-groups.json"
        config.write_text(json.dumps({"launcher": "srun", "groups": groups, "env": {}, "record": str(record)}))
        argv = [sys.executable, str(STEPS), "serve", "--dir", str(self.spool), "--bind", "@BIND@", "--port", "@PORT@"]
        argv += ["--config", str(config), "--grace-s", "8"]
        directives = []
        for at, component in enumerate(components):
            directives += (
                ["#SBATCH hetjob"] if at else [f"#SBATCH --output='{self.run_dir}/batch.out'", "#SBATCH --requeue"]
            )
            directives += [f"#SBATCH {option}" for option in component.split()]
        health = [{"path": "/health", "auth": False, "nonempty": None}]
        script = self.supervised("broker", argv, "service", *directives, health=health, stop_grace_s=20.0)
        self.job_id = subprocess.check_output(["sbatch", "--parsable", str(script)], text=True, timeout=30).strip()
        wait_for(lambda: self.record("broker").get("state") == "ready", "the broker")

    def record(self, name: str) -> dict[str, Any]:
        """Return a supervisor's record, empty if there is none."""
        path = self.run_dir / "status" / f"orch-0a1b-{name}.json"
        found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return found

    def command(self, *words: str) -> str:
        argv = [sys.executable, str(STEPS), words[0], "--dir", str(self.spool), *words[1:]]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def submit(self, name: str, seconds: float, *options: str) -> str:
        """Ask for a supervised step and return its id."""
        argv = [sys.executable, str(self.run_dir / "program.py"), str(seconds)]
        script = self.supervised(name, argv, "task")
        return self.command(
            "submit",
            "--name",
            f"orch-0a1b-{name}",
            "--stdout",
            f"{self.run_dir}/logs/{name}_%j.batch",
            *options,
            str(script),
        ).strip()

    def steps(self) -> dict[str, dict[str, Any]]:
        """Return the answer of status, by the step's short name."""
        lines = map(json.loads, self.command("status").splitlines())
        return {line["name"].rpartition("-")[2]: line for line in lines}

    def states(self) -> dict[str, str]:
        return {name: line["state"] for name, line in self.steps().items()}

    def wait(self, **states: str) -> None:
        """Wait until steps have the given states."""
        wait_for(lambda: {name: self.states().get(name) for name in states} == states, str(states), self.patience_s)

    def said(self, name: str) -> dict[str, Any]:
        """Return what the program of a step printed."""
        (path,) = (self.run_dir / "logs").glob(f"{name}_*.out")
        found: dict[str, Any] = {}
        for line in path.read_text().splitlines():
            found.update(json.loads(line))
        return found

    def wait_said(self, name: str) -> dict[str, Any]:
        """Return what a program printed, as soon as it did."""
        wait_for(lambda: list((self.run_dir / "logs").glob(f"{name}_*.out")), f"the output of {name}")
        found: dict[str, Any] = wait_for(lambda: self.said(name), f"the output of {name}")
        return found


@pytest.fixture
def allocation(tmp_path: Path) -> Iterator[Allocation]:
    """Return an allocation whose job is gone after the test."""
    allocation = Allocation(tmp_path / "a run")
    yield allocation
    if allocation.job_id:
        subprocess.run(["scancel", allocation.job_id], timeout=30, check=False)
        argv = ["squeue", "--noheader", "--jobs", allocation.job_id, "--format=%T"]
        wait_for(lambda: not subprocess.run(argv, capture_output=True, timeout=30).stdout.strip(), "the end of the job")


def is_side_by_side(*said: dict[str, Any]) -> bool:
    """Tell whether there was a moment at which all ran."""
    return bool(max(step["began"] for step in said) < min(step["ended"] for step in said))


def test_steps_run_side_by_side_on_two_nodes_each_with_its_own_gpu(allocation: Allocation) -> None:
    allocation.start([{"name": "gpu", "nodes": 2}], f"--nodes=2 {GPU_NODE}")
    names = [f"t{number}" for number in range(8)]
    for name in names:
        allocation.submit(name, 8, "--group", "gpu", "--gpus", "1", "--cpus", "1", "--mem-mib", "500")
    plain = allocation.submit("plain", 8, "--group", "gpu", "--cpus", "2", "--mem-mib", "500")
    late = allocation.submit("late", 0, "--group", "gpu", "--gpus", "1")
    allocation.wait(**dict.fromkeys([*names, "plain"], "RUNNING"))
    assert allocation.steps()["late"]["reason"] == "waits for 1 GPU on one node of group gpu"
    allocation.wait(**dict.fromkeys([*names, "plain", "late"], "COMPLETED"))
    said = {name: allocation.said(name) for name in [*names, "plain", "late"]}
    assert is_side_by_side(*(said[name] for name in [*names, "plain"]))
    assert said["late"]["began"] > min(said[name]["ended"] for name in names)
    places = {(said[name]["SLURMD_NODENAME"], said[name]["CUDA_VISIBLE_DEVICES"]) for name in names}
    assert places == {(node, str(gpu)) for node in ("gpu1", "gpu2") for gpu in range(4)}
    assert (said["plain"]["CUDA_VISIBLE_DEVICES"], said["plain"]["SLURM_STEP_GPUS"]) == ("", None)
    assert said["plain"]["SLURM_CPUS_ON_NODE"] == "2"
    assert [allocation.record(name)["job_id"] for name in ("plain", "late")] == [plain, late]
    assert allocation.record("plain")["exit_code"] == 0


def test_groups_of_a_het_job_get_their_own_steps(allocation: Allocation) -> None:
    groups = [{"name": "gpu", "nodes": 1}, {"name": "cpu", "nodes": 2}]
    allocation.start(groups, f"--nodes=1 {GPU_NODE}", f"--nodes=2 {CPU_NODE}")
    allocation.submit("server", 60, "--group", "gpu", "--gpus", "2", "--cpus", "4", "--mem-mib", "4000")
    for name in ("c1", "c2"):
        allocation.submit(name, 60, "--group", "cpu", "--cpus", "3", "--mem-mib", "1000")
    allocation.submit("c3", 0, "--group", "cpu", "--cpus", "1", "--mem-mib", "1000")
    allocation.wait(server="RUNNING", c1="RUNNING", c2="RUNNING", c3="COMPLETED")
    said = {name: allocation.wait_said(name) for name in ("server", "c1", "c2")}
    assert {said[name]["SLURMD_NODENAME"] for name in ("c1", "c2")} == {"cpu1", "cpu2"}
    assert said["c1"]["CUDA_VISIBLE_DEVICES"] == ""
    assert (said["server"]["SLURMD_NODENAME"], said["server"]["CUDA_VISIBLE_DEVICES"]) == ("gpu1", "0,1")
    ids = {name: line["id"] for name, line in allocation.steps().items()}
    allocation.command("cancel", ids["c1"], ids["server"])
    allocation.wait(c1="CANCELLED", server="CANCELLED", c2="RUNNING")
    assert [(allocation.record(name)["reason"], allocation.record(name)["signal"]) for name in ("c1", "server")] == [
        ("signal", signal.SIGTERM)
    ] * 2


def test_step_of_several_nodes_holds_a_share_of_each(allocation: Allocation) -> None:
    allocation.start([{"name": "gpu", "nodes": 2}], f"--nodes=2 {GPU_NODE}")
    allocation.submit("wide", 4, "--group", "gpu", "--nodes", "2", "--gpus", "4", "--cpus", "8")
    allocation.submit("next", 0, "--group", "gpu", "--gpus", "1")
    allocation.wait(wide="RUNNING", next="PENDING")
    assert allocation.wait_said("wide")["ORCH_STEP_NODES"] == "gpu1,gpu2"
    allocation.wait(wide="COMPLETED", next="COMPLETED")


def test_cancelled_allocation_leaves_no_step_running(allocation: Allocation) -> None:
    allocation.start([{"name": "cpu", "nodes": 1}], f"--nodes=1 {CPU_NODE}")
    allocation.submit("one", 60, "--group", "cpu")
    allocation.submit("two", 60, "--group", "cpu", "--cpus", "4")
    allocation.wait(one="RUNNING", two="PENDING")
    subprocess.run(["scancel", allocation.job_id], check=True, timeout=30)
    allocation.wait(one="CANCELLED", two="PENDING")
    assert allocation.record("one")["state"] == "finished"
    deadline = time.monotonic() + 30
    while "waits for a new start of the allocation" not in allocation.steps()["two"]["reason"]:
        assert time.monotonic() < deadline, allocation.steps()["two"]
        time.sleep(0.2)


def test_broker_killed_outright_has_its_steps_lost_at_once(allocation: Allocation) -> None:
    allocation.start([{"name": "cpu", "nodes": 1}], f"--nodes=1 {CPU_NODE}")
    allocation.submit("one", 60, "--group", "cpu")
    allocation.wait(one="RUNNING")
    os.kill(json.loads((allocation.spool / "broker.json").read_text())["pid"], signal.SIGKILL)
    allocation.wait(one="LOST")
    assert "was killed by signal 9" in allocation.steps()["one"]["reason"]


@pytest.mark.skipif(os.environ.get("ORCH_FAULTS") != "all", reason="takes minutes: make test-faults")
def test_requeued_allocation_starts_nothing_twice_and_goes_on_with_what_waits(allocation: Allocation) -> None:
    allocation.start([{"name": "cpu", "nodes": 1}], f"--nodes=1 {CPU_NODE}")
    allocation.submit("one", 60, "--group", "cpu", "--cpus", "4")
    allocation.submit("two", 0, "--group", "cpu", "--cpus", "4")
    allocation.wait(one="RUNNING", two="PENDING")
    subprocess.run(["scontrol", "requeue", allocation.job_id], check=True, timeout=30)
    allocation.patience_s = 180.0  # Slurm starts a requeued job after two minutes
    allocation.wait(two="COMPLETED")
    assert allocation.record("broker")["restart_count"] == 1
    assert allocation.states()["one"] in {"NODE_FAIL", "CANCELLED"}
    assert len(list((allocation.run_dir / "logs").glob("one_*.out"))) == 1
