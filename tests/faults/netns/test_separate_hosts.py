"""Runs whose hosts have addresses of their own, and nodes that are cut off while their processes live on."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.supervisor import descendants
from tests.faults.netns.conftest import TwoSites
from tests.faults.netns.sites import Site
from tests.faults.slurm.conftest import FaultRun, whole_suite
from tests.faults.slurm.fault_cluster import wait_until
from tests.faults.slurm.test_requeue import is_alive

FIRST = "trial_0000"
pytestmark = [whole_suite, pytest.mark.timeout(400)]


def test_run_of_three_hosts_completes_through_the_forwards(scene: TwoSites) -> None:
    scene.hold.touch()
    run = scene.start()
    assert scene.await_state(run, FIRST, "running")["host"] == "b1"
    for name, node in (("vllm", "a1"), ("client", "a2")):
        endpoint = scene.endpoint(name)
        there = endpoint["there"]
        assert (scene.record(name)["host"], there["host"], endpoint["ip"]) == (node, node, scene.a.addresses[node])
        assert scene.a.is_reached(node, there["port"])
        # What this machine asks is its own end of a forward; to the node itself it has no way.
        assert endpoint["url"] == f"http://127.0.0.1:{endpoint['port']}"
        with pytest.raises(OSError, match=r"timed out|unreachable|refused"):
            socket.create_connection((endpoint["ip"], there["port"]), 1)
    scene.hold.unlink()
    assert run.wait(180) == 0, run.stderr
    scene.check_completed()
    scene.check_trials()
    sources = [trial["source"] for trial in scene.summary()["stages"]["hpo"]["trials"]]
    assert sources == ["llm"] * len(sources), "the model of site a proposes what is trained on site b"
    assert not list(scene.there(scene.a).glob("trials/*"))
    assert len(list(scene.there(scene.b).glob("trials/*/results.json"))) == len(sources)


def test_trial_whose_node_is_cut_off_is_taken_over_and_the_old_process_ends_itself(scene: TwoSites) -> None:
    """The node still sees the file system, as over a network of its own."""
    scene.hold.touch()
    run = scene.start()
    before = scene.await_state(run, FIRST, "running")
    run.wait_for(lambda: scene.held()["b1"] > 0, "the trainer")
    scene.b.cut("b1")
    after = taken_over(scene, run, scene.b, FIRST, before)
    wait_until(lambda: not is_alive(before["pid"]), "the end of the first attempt", 30)
    note("the old attempt has ended")
    held = scene.held()
    run.wait_for(lambda: scene.held()["b2"] > held["b2"] + 20, "the new trainer")
    assert scene.held()["b1"] == held["b1"]
    scene.b.mend("b1")
    wait_until(lambda: scene.b.node_state("b1") == "idle", "the node's return", 120)
    note("the node is back")
    scene.hold.unlink()
    assert run.wait(180) == 0, run.stderr
    assert scene.held()["b1"] == held["b1"]
    assert "fenced: another attempt or another job has taken its place" in batch_logs(scene, scene.b)
    assert scene.record(FIRST)["attempt"] == after["attempt"]
    scene.check_completed()
    scene.check_trials(again=1)


def test_trial_frozen_on_a_node_that_is_cut_off_changes_nothing_when_it_comes_back(scene: TwoSites) -> None:
    """The node's file system hangs too, and all is over when it comes back."""
    scene.hold.touch()
    run = scene.start()
    before = scene.await_state(run, FIRST, "running")
    run.wait_for(lambda: scene.held()["b1"] > 0, "the trainer")
    old = [before["pid"], *descendants(before["pid"])]
    for pid in old:
        os.kill(pid, signal.SIGSTOP)
    scene.b.cut("b1")
    taken_over(scene, run, scene.b, FIRST, before)
    scene.hold.unlink()
    assert run.wait(180) == 0, run.stderr
    note("the run has completed")
    told, files = scene.summary(), contents(scene.there(scene.b))
    assert all(map(is_alive, old))
    for pid in old:
        os.kill(pid, signal.SIGCONT)
    scene.b.mend("b1")
    wait_until(lambda: not any(map(is_alive, old)), "the end of the first attempt", 30)
    note("the old attempt has ended")
    now = contents(scene.there(scene.b))
    changed = {path for path in files.keys() | now.keys() if files.get(path) != now.get(path)}
    assert {path.parent.name for path in changed} <= {"logs"}
    assert "fenced: another attempt or another job has taken its place" in batch_logs(scene, scene.b)
    assert scene.summary() == told
    scene.check_completed()
    scene.check_trials(again=1)


def test_service_whose_node_is_cut_off_is_found_again_on_another_node(scene: TwoSites) -> None:
    scene.job["benchmark"]["enabled"] = False
    scene.hold.touch()
    run = scene.start()
    before = scene.await_state(run, "vllm", "ready")
    scene.await_state(run, FIRST, "running")
    endpoint = scene.endpoint("vllm")
    assert endpoint["there"]["host"] == "a1"
    scene.a.cut("a1")
    taken_over(scene, run, scene.a, "vllm", before)
    scene.await_state(run, "vllm", "ready")
    run.wait_for(lambda: scene.endpoint("vllm").get("attempt") == scene.record("vllm")["attempt"], "the endpoint")
    found = scene.endpoint("vllm")
    assert (found["there"]["host"], found["ip"]) == ("a2", scene.a.addresses["a2"])
    wait_until(lambda: not is_alive(before["pid"]), "the end of the first attempt", 30)
    note("the old attempt has ended")
    scene.a.mend("a1")
    wait_until(lambda: scene.a.node_state("a1") == "idle", "the node's return", 120)
    note("the node is back")
    scene.hold.unlink()
    assert run.wait(180) == 0, run.stderr
    assert scene.endpoint("vllm") in ({}, found)
    scene.check_completed()
    scene.check_trials()
    sources = [trial["source"] for trial in scene.summary()["stages"]["hpo"]["trials"]]
    assert sources == ["llm"] * len(sources), "the model is asked at its new address"


def test_service_cut_off_while_it_is_asked_is_asked_on_another_node(scene: TwoSites) -> None:
    """The question that is on its way gets no answer, and is put to the new server when that is there."""
    scene.job["benchmark"]["enabled"] = False
    scene.hold.touch()
    run = scene.start()
    before = scene.await_state(run, "vllm", "ready")
    scene.await_state(run, FIRST, "running")
    scene.a.cut("a1")
    scene.hold.unlink()
    taken_over(scene, run, scene.a, "vllm", before)
    assert run.wait(250) == 0, run.stderr
    note("the run has completed")
    scene.check_completed()
    scene.check_trials()
    sources = [trial["source"] for trial in scene.summary()["stages"]["hpo"]["trials"]]
    assert sources == ["llm"] * len(sources)


def taken_over(scene: TwoSites, run: FaultRun, site: Site, name: str, before: dict[str, Any]) -> dict[str, Any]:
    """Wait until Slurm has started a job again on another node, while the old process lives; return its record."""
    note(f"{before['host']} is cut off")
    run.wait_for(lambda: site.state(before["job_id"]) == "PENDING", "the requeue", 90)
    note(f"{name} is PENDING, {before['host']} is {site.node_state(before['host'])}")
    assert is_alive(before["pid"]), "the old process runs on"
    run.wait_for(lambda: scene.record(name).get("attempt") not in (None, before["attempt"]), "the second attempt", 120)
    after = scene.record(name)
    note(f"{name} is {after['state']} on {after['host']}")
    assert (after["job_id"], after["restart_count"]) == (before["job_id"], 1)
    assert after["host"] != before["host"]
    return after


def batch_logs(scene: TwoSites, site: Site) -> str:
    """Return what the supervisors of a site's jobs said."""
    return "".join(path.read_text() for path in scene.there(site).glob("logs/*.batch"))


def contents(folder: Path) -> dict[Path, bytes]:
    """Return what all files below a folder hold."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def note(text: str) -> None:
    """Tell what was seen, and when."""
    print(f"{time.strftime('%H:%M:%S')} {text}")
