"""What jobs on another machine write, and how it arrives here; tests/life/test_run_remote.py has the real way."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import NoConnectionError
from orchestrator.hosts import RemoteHost
from orchestrator.plan import PlannedJob
from orchestrator.recipe.hosts import HostSpec
from orchestrator.records import read_endpoint, read_heartbeat, read_status
from orchestrator.rundir import RunDir
from orchestrator.transports import Address, Answer, FileChunk, FileContent, LocalTransport
from tests.builders import planned_service, slurm_scheduler

AHEAD_S = 3600.0


class Way(LocalTransport):
    """A way to a machine whose clock is an hour ahead; its files are those of this machine."""

    def __init__(self) -> None:
        self.is_cut = False
        self.forwards: list[tuple[str, int]] = []

    def run(self, argv: Sequence[str], timeout_s: float, *_: Any, **__: Any) -> Answer:
        self._look()
        assert list(argv) == ["date", "+%s.%N"]
        return Answer(tuple(argv), 0, f"{time.time() + AHEAD_S:.9f}\n", "")

    def read_many(self, paths: Sequence[str], *arguments: Any, **named: Any) -> dict[str, FileContent]:
        self._look()
        return super().read_many(paths, *arguments, **named)

    def write(self, path: str, data: bytes, *arguments: Any, **named: Any) -> None:
        self._look()
        super().write(path, data, *arguments, **named)

    def forward(self, host: str, port: int) -> Address:
        self._look()
        self.forwards.append((host, port))
        return Address("127.0.0.1", 40_000 + len(self.forwards))

    def unforward(self, host: str, port: int) -> None:
        self.forwards.remove((host, port))

    def read_from(self, path: str, offset: int, limit_bytes: int, timeout_s: float = 30.0) -> FileChunk | None:
        self._look()
        return super().read_from(path, offset, limit_bytes, timeout_s)

    def _look(self) -> None:
        if self.is_cut:
            raise NoConnectionError("far", "the cable is out")


class Far:
    """A run with one service on that machine."""

    def __init__(self, folder: Path) -> None:
        self.home = RunDir(folder / "home" / "run")
        self.home.make()
        self.way = Way()
        spec = HostSpec.model_validate({"ssh": {"host": "far"}, "base_dir": str(folder / "far")})
        self.host = RemoteHost("far", spec, slurm_scheduler(), self.way, self.home)
        self.host.run.make()
        self.job: PlannedJob = planned_service(self.home)

    def writes(self, path: Path, document: Any) -> None:
        """Let a job write one of its records over there."""
        path.write_text(document if isinstance(document, str) else json.dumps(document))

    def has_endpoint(self, port: int = 8000, attempt: str = "a1") -> None:
        """Let the service publish its endpoint."""
        fields = {"service": "vllm", "job_id": "7", "attempt": attempt, "host": "gpu1", "port": port, "model": "m"}
        times = {"ready_at": time.time() + AHEAD_S, "started_at": time.time() + AHEAD_S}
        url = {"url": f"http://gpu1:{port}"}
        self.writes(self.host.run.endpoint("vllm"), {**fields, **times, **url})


@pytest.fixture
def far(tmp_path: Path) -> Far:
    """Return the run."""
    return Far(tmp_path)


def test_records_arrive_with_their_times_by_this_machines_clock(far: Far) -> None:
    now, token = time.time(), far.job.token
    base = {"token": token, "job_id": "7", "attempt": "a1", "host": "gpu1", "state": "ready"}
    far.writes(far.host.run.status(token), {**base, "started_at": now + AHEAD_S - 5, "ready_at": now + AHEAD_S})
    far.writes(far.host.run.heartbeat(token), {"attempt": "a1", "at": now + AHEAD_S})
    assert far.host.collect([far.job])
    record = read_status(far.home, token)
    assert record is not None
    assert record.state == "ready"
    assert record.started_at == pytest.approx(now - 5, abs=1)
    assert read_heartbeat(far.home, token) == pytest.approx(now, abs=1)


def test_endpoint_arrives_as_it_is_reached_from_here_and_goes_when_it_is_withdrawn(far: Far) -> None:
    far.has_endpoint()
    assert far.host.collect([far.job])
    endpoint = read_endpoint(far.home, "vllm")
    assert endpoint is not None
    assert (endpoint.url, endpoint.host) == ("http://127.0.0.1:40001", "127.0.0.1")
    assert json.loads(far.home.endpoint("vllm").read_text())["there"]["url"] == "http://gpu1:8000"
    assert far.way.forwards == [("gpu1", 8000)]
    far.host.run.endpoint("vllm").unlink()
    assert far.host.collect([far.job])
    assert read_endpoint(far.home, "vllm") is None
    assert far.way.forwards == []


@pytest.mark.parametrize("text", ["{", "[]", "7", '{"host": 1, "port": 2}', "[" * 100_000, '{"host": "x"}'])
def test_endpoint_that_is_torn_or_foreign_counts_as_not_there(text: str, far: Far) -> None:
    far.writes(far.host.run.endpoint("vllm"), text)
    assert far.host.collect([far.job])
    assert not far.home.endpoint("vllm").exists()
    assert far.way.forwards == []


def test_host_that_cannot_be_asked_leaves_what_is_known_as_it_is(far: Far, caplog: pytest.LogCaptureFixture) -> None:
    far.has_endpoint()
    assert far.host.collect([far.job])
    far.way.is_cut = True
    far.host.run.endpoint("vllm").unlink()
    assert not far.host.collect([far.job])
    assert read_endpoint(far.home, "vllm") is not None
    assert "the cable is out" in caplog.text
    far.host.write_lease({"expires_at": 1.0})
    assert "was not renewed" in caplog.text
    far.host.collect_logs(far.job, "7")
    with pytest.raises(NoConnectionError):
        far.host.deliver(far.job.script)


def test_files_that_a_trial_writes_are_followed(far: Far) -> None:
    job = PlannedJob(**{**vars(far.job), "kind": "task", "pulls": ("trials/job_1/metrics.jsonl",)})
    there, here = (run.trials / "job_1" / "metrics.jsonl" for run in (far.host.run, far.home))
    assert far.host.collect([job])
    assert not here.exists()
    there.parent.mkdir()
    for text in ("1\n", "1\n2\n"):
        there.write_text(text)
        assert far.host.collect([job])
        assert here.read_text() == text


def test_file_that_is_too_large_is_named_and_left(far: Far, caplog: pytest.LogCaptureFixture) -> None:
    far.writes(far.host.run.heartbeat(far.job.token), "x" * (5 << 20))
    assert far.host.collect([far.job])
    assert not far.home.heartbeat(far.job.token).exists()
    assert "heartbeat" in caplog.text


def test_lease_and_fence_arrive_there(far: Far) -> None:
    far.host.collect([far.job])
    far.host.write_lease({"owner": None, "renewed_at": 1.0, "expires_at": 901.0, "keep": False})
    # Judged by the clock of the machine where it is read.
    assert json.loads(far.host.run.lease.read_text())["expires_at"] == pytest.approx(901.0 + AHEAD_S, abs=1)
    fence = far.home.fence(far.job.token)
    fence.write_text("{}")
    far.host.deliver(fence)
    assert far.host.run.fence(far.job.token).exists()


def test_logs_arrive_at_the_end_the_last_mib_of_each(far: Far) -> None:
    far.host.run.log("vllm", "7", "err").write_bytes(b"a" * (1 << 20) + b"the end")
    far.host.collect_logs(far.job, "7")
    found = far.home.log("vllm", "7", "err").read_bytes()
    assert len(found) == 1 << 20
    assert found.endswith(b"the end")


def test_endpoint_follows_a_forward_that_was_made_anew(far: Far) -> None:
    far.has_endpoint()
    assert far.host.collect([far.job])
    # The connection was cut, and the port is another one now.
    assert far.host.collect([far.job])
    endpoint = read_endpoint(far.home, "vllm")
    assert endpoint is not None
    assert endpoint.port == 40_002


def test_whoever_only_looks_leaves_the_endpoints_of_the_orchestrator_alone(far: Far) -> None:
    far.has_endpoint()
    assert far.host.collect([far.job])
    before = far.home.endpoint("vllm").read_bytes()
    spec = HostSpec.model_validate({"ssh": {"host": "far"}, "base_dir": str(far.host.run.root.parent.parent)})
    observer = RemoteHost("far", spec, slurm_scheduler(), far.way, far.home, only_looks=True)
    far.host.run.endpoint("vllm").unlink()
    assert observer.collect([far.job])
    assert far.home.endpoint("vllm").read_bytes() == before
    assert len(far.way.forwards) == 1


def test_record_that_cannot_be_written_here_does_not_hide_the_host(far: Far, caplog: pytest.LogCaptureFixture) -> None:
    far.writes(far.host.run.heartbeat(far.job.token), {"attempt": "a1", "at": 1.0})
    far.home.heartbeat(far.job.token).mkdir()
    assert far.host.collect([far.job])
    assert "was not taken over" in caplog.text
