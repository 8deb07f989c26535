"""A broker within a batch job that is not its own: whose it is, and that it does not outlive it; reads that fail."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.schedulers import steps
from orchestrator.schedulers.steps import Broker, Config, Group, Spool, StepsError
from tests.orchestrator.brokers import Allocation
from tests.orchestrator.conftest import is_running

ALL = {"name": "server+client", "nodes": 1, "cpus": 2, "mem_mib": 1000, "gpus": 0}


@pytest.fixture
def allocation(tmp_path: Path) -> Iterator[Allocation]:
    """Return an allocation in batch job 12 of PBS."""
    allocation = Allocation(tmp_path)
    allocation.env["PBS_JOBID"] = "12.s"
    yield allocation
    allocation.close()


@pytest.fixture
def outer() -> Iterator[subprocess.Popen[bytes]]:
    """Return what stands for the batch script's process."""
    process = subprocess.Popen(["sleep", "120"])
    yield process
    process.kill()
    process.wait()


def test_broker_and_its_steps_end_with_the_batch_script(allocation: Allocation, outer: subprocess.Popen[bytes]) -> None:
    broker = allocation.serve(ALL, outer_pid=outer.pid, grace_s=1)
    allocation.submit("one", f"echo $$ >'{allocation.folder}/pid'; exec sleep 60", "--group", "server")
    allocation.wait(one="RUNNING")
    pid = allocation.pid("pid")
    # A zombie is no batch job either: it is waited for only after the broker has ended.
    outer.kill()
    assert broker.wait(20) == 128 + signal.SIGTERM
    words = f"'s batch job has ended (process {outer.pid} is gone)"
    assert allocation.read("broker.json")["why"] == f"it{words}"
    assert allocation.wait(one="CANCELLED")["one"]["reason"] == f"the allocation{words}"
    assert not is_running(pid)


def test_broker_of_another_batch_job_is_over_though_it_gives_signs_of_life(
    allocation: Allocation, outer: subprocess.Popen[bytes]
) -> None:
    allocation.serve(ALL, outer_pid=outer.pid)
    allocation.submit("one", "exec sleep 60", "--group", "client")
    allocation.wait(one="RUNNING")
    allocation.env["ORCH_OUTER_PBS_JOBID"] = "12.s"
    assert allocation.states() == {"one": "RUNNING"}
    allocation.env["ORCH_OUTER_PBS_JOBID"] = "13.s"
    assert allocation.steps()["one"]["state"] == "LOST"
    assert allocation.steps()["one"]["reason"] == "it was part of batch job 12.s, and this is 13.s"


def test_group_is_asked_for_by_one_of_its_roles(allocation: Allocation) -> None:
    allocation.serve(ALL)
    allocation.submit("one", "true", "--group", "client")
    allocation.wait(one="COMPLETED")
    asked = allocation.submit_argv("two", "true", "--group", "trial")
    assert "the allocation has none. Allowed: server+client" in allocation.run(*asked).stderr


def test_request_that_cannot_be_read_once_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path)
    broker = Broker(spool, Config("here", [Group("all")], {}), 5.0)
    request: dict[str, Any] = {"id": "0001.aa", "name": "x", "group": "all", "nodes": 1, "cpus": 1, "mem_mib": 0}
    request.update(gpus=0, time_s=None, script="/bin/true", stdout=str(tmp_path / "out"))
    spool.write(spool.path("0001.aa", "request"), request)
    (tmp_path / "0002.bb.request.json").write_text("{")
    real, failures = spool.read, [StepsError("x cannot be read: Stale file handle")]

    def read(path: Path) -> dict[str, Any] | None:
        if path.name == "0001.aa.request.json" and failures:
            raise failures.pop()
        return real(path)

    monkeypatch.setattr(spool, "read", read)
    monkeypatch.setattr(steps, "log", lambda _: None)
    broker._take_requests()
    assert (set(broker.steps), broker.unreadable) == (set(), {"0002.bb"})
    os.utime(tmp_path)  # as each heartbeat does
    broker._take_requests()
    assert set(broker.steps) == {"0001.aa"}
