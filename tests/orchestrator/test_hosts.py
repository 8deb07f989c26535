"""What jobs on another machine write, and how it arrives here; tests/life/test_run_remote.py has the real way."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import pytest

from orchestrator.errors import LeaseLostError, LeaseNotLiftedError, NoConnectionError
from orchestrator.hosts import Hosts, RemoteHost
from orchestrator.jobs import JobTracker
from orchestrator.lease import Lease, Owner
from orchestrator.plan import PlannedJob
from orchestrator.recipe.hosts import HostSpec
from orchestrator.recipe.infrastructure import Polling
from orchestrator.records import read_endpoint, read_heartbeat, read_status
from orchestrator.rundir import RunDir
from orchestrator.transports import Address, Answer, FileChunk, FileContent, LocalTransport
from orchestrator.watch import Watch
from tests.builders import planned_service, slurm_scheduler

AHEAD_S = 3600.0


class Way(LocalTransport):
    """A way to a machine whose clock is an hour ahead; its files are those of this machine."""

    def __init__(self) -> None:
        super().__init__()
        self.is_cut = False
        self.asked: list[Mapping[str, int]] = []
        self.n_bytes = 0
        self.forwards: list[tuple[str, int]] = []

    def run(self, argv: Sequence[str], timeout_s: float, *_: Any, **__: Any) -> Answer:
        self._look()
        assert list(argv) == ["date", "+%s.%N"]
        return Answer(tuple(argv), 0, f"{time.time() + AHEAD_S:.9f}\n", "")

    def read_many(self, paths: Sequence[str], *arguments: Any, **named: Any) -> dict[str, FileContent]:
        self._look()
        self.asked.append(named.get("starts", {}))
        found = super().read_many(paths, *arguments, **named)
        self.n_bytes = sum(len(content.data or b"") for content in found.values())
        return found

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
        self.spec = spec
        self.host = RemoteHost("far", spec, slurm_scheduler(), self.way, self.home)
        self.host.run.make()
        self.job: PlannedJob = planned_service(self.home)

    def other(self, only_looks: bool) -> RemoteHost:
        """Return the host as another process sees it."""
        return RemoteHost("far", self.spec, slurm_scheduler(), self.way, self.home, only_looks)

    def says(self, state: str, started_s: float, attempt: str = "a1") -> None:
        """Let the job write its status; times are counted from now, by this machine's clock."""
        started_at = time.time() + AHEAD_S + started_s
        base = {"token": self.job.token, "job_id": "7", "host": "gpu1", "attempt": attempt}
        self.writes(self.host.run.status(self.job.token), {**base, "state": state, "started_at": started_at})

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


@pytest.fixture
def trial(far: Far) -> PlannedJob:
    """Return a job whose epochs and results are read while it runs."""
    (far.host.run.trials / "job_1").mkdir()
    pulls = ("trials/job_1/metrics.jsonl", "trials/job_1/results.json")
    return PlannedJob(**{**vars(far.job), "kind": "task", "pulls": pulls})


def epochs_of(run: RunDir) -> Path:
    return run.trials / "job_1" / "metrics.jsonl"


def test_epochs_arrive_line_by_line_and_results_whole(far: Far, trial: PlannedJob) -> None:
    there, here = epochs_of(far.host.run), epochs_of(far.home)
    assert far.host.collect([trial])
    assert not here.exists()
    for text, arrived in (("1\n", "1\n"), ("1\n2\n3", "1\n2\n"), ("1\n2\n34\n", "1\n2\n34\n")):
        there.write_text(text)
        assert far.host.collect([trial])
        assert here.read_text() == arrived
    for text in ('{"status": "running"}', '{"status": "completed"}'):
        (there.parent / "results.json").write_text(text)
        assert far.host.collect([trial])
        assert (here.parent / "results.json").read_text() == text


@pytest.mark.parametrize("text", ["one\n", "another\nfile\n" * 200, ""])
def test_epochs_of_a_file_that_was_replaced_are_read_anew(far: Far, trial: PlannedJob, text: str) -> None:
    there, here = epochs_of(far.host.run), epochs_of(far.home)
    there.write_text("first\n" * 100)
    assert far.host.collect([trial])
    there.write_text(text)
    for _ in range(2):
        assert far.host.collect([trial])
    there.write_text(text + "more\n")
    assert far.host.collect([trial])
    assert here.read_text() == text + "more\n"


def test_what_a_look_costs_does_not_grow_with_the_epochs_that_were_read(far: Far, trial: PlannedJob) -> None:
    there, costs = epochs_of(far.host.run), []
    for _ in range(3):
        with there.open("a") as file:
            file.write("x" * 400_000 + "\n")
        assert far.host.collect([trial])
        assert far.host.collect([trial])
        costs.append(far.way.n_bytes)
    assert max(costs) <= 256
    assert epochs_of(far.home).read_bytes() == there.read_bytes()
    assert [len(starts) for starts in far.way.asked] == [1] * 6, "one command for each look"


def test_epochs_beyond_what_one_look_may_bring_come_with_the_next(far: Far, trial: PlannedJob) -> None:
    there = epochs_of(far.host.run)
    there.write_text("".join(f"{number}\n" for number in range(1_200_000)))
    for _ in range(3):
        assert far.host.collect([trial])
    assert epochs_of(far.home).read_bytes() == there.read_bytes()


def test_epochs_go_on_where_a_killed_orchestrator_left_them_a_torn_line_included(far: Far, trial: PlannedJob) -> None:
    there, here = epochs_of(far.host.run), epochs_of(far.home)
    there.write_text("one\ntwo\n")
    assert far.host.collect([trial])
    here.write_text("one\ntw")
    there.write_text("one\ntwo\nthree\n")
    assert far.other(only_looks=False).collect([trial])
    assert list(far.way.asked[-1].values()) == [0]
    assert here.read_text() == "one\ntwo\nthree\n"
    here.unlink()
    for _ in range(2):
        assert far.host.collect([trial])
    assert here.read_text() == "one\ntwo\nthree\n"


def test_whoever_only_looks_leaves_epochs_and_logs_to_the_orchestrator(far: Far, trial: PlannedJob) -> None:
    epochs_of(far.host.run).write_text("1\n")
    far.host.run.log("vllm", "7", "out").write_text("later\n")
    far.home.log("vllm", "7", "out").write_text("as it was\n")
    observer = far.other(only_looks=True)
    assert observer.collect([trial])
    observer.collect_logs(far.job, "7")
    assert not epochs_of(far.home).exists()
    assert far.home.log("vllm", "7", "out").read_text() == "as it was\n"


@pytest.mark.parametrize(
    ("held", "late"),
    [(("finished", 0.0, "a1"), ("ready", 0.0, "a1")), (("starting", 9.0, "a2"), ("finished", 0.0, "a1"))],
)
def test_whoever_only_looks_does_not_replace_a_record_by_an_older_one(
    far: Far, held: tuple[str, float, str], late: tuple[str, float, str]
) -> None:
    far.says(*held)
    assert far.host.collect([far.job])
    # The look of the observer was begun before and is written only now.
    far.says(*late)
    assert far.other(only_looks=True).collect([far.job])
    record = read_status(far.home, far.job.token)
    assert record is not None
    assert (record.state, record.attempt) == (held[0], held[2])


def test_whoever_only_looks_brings_a_newer_record(far: Far) -> None:
    for state, started_s, attempt in (("ready", 0.0, "a1"), ("finished", 0.0, "a1"), ("starting", 9.0, "a2")):
        far.says(state, started_s, attempt)
        assert far.other(only_looks=True).collect([far.job])
        record = read_status(far.home, far.job.token)
        assert record is not None
        assert (record.state, record.attempt) == (state, attempt)


def test_orchestrator_puts_right_what_somebody_else_wrote_over(far: Far) -> None:
    far.says("finished", 0.0)
    assert far.host.collect([far.job])
    whole = far.home.status(far.job.token).read_bytes()
    far.home.status(far.job.token).write_text('{"state": "ready"}')
    assert far.host.collect([far.job])
    assert far.home.status(far.job.token).read_bytes() == whole


def test_host_that_cannot_be_asked_is_told_of_once_and_so_is_its_return(
    far: Far, caplog: pytest.LogCaptureFixture
) -> None:
    far.way.is_cut = True
    for _ in range(3):
        assert not far.host.collect([far.job])
        with pytest.raises(NoConnectionError):
            far.host.read_growing({far.home.log("vllm", "7", "out"): 0}, 100)
    far.way.is_cut = False
    for _ in range(2):
        assert far.host.collect([far.job])
    words = [record.getMessage() for record in caplog.records]
    assert words == ["far: the cable is out; it is asked again until it answers", "far answers again"]


def test_growing_files_are_read_there_and_written_nowhere(far: Far) -> None:
    log = far.home.log("vllm", "7", "out")
    far.host.run.log("vllm", "7", "out").write_text("0123456789")
    assert far.host.read_growing({log: 3}, 5) == {log: FileContent(b"34567")}
    assert not log.exists()


def test_lease_that_is_lifted_late_is_tried_again(
    far: Far, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hosts, tries = Hosts([far.host]), [1, 2, 3]
    far.way.is_cut = True

    def pause(_: float) -> None:
        tries.pop()
        far.way.is_cut = bool(tries)

    monkeypatch.setattr("orchestrator.hosts.time.sleep", pause)
    hosts.write_lease({"expires_at": 901.0, "keep": True})
    assert tries == []
    assert json.loads(far.host.run.lease.read_text())["keep"] is True
    assert "far could not be told to keep services" in caplog.text


def test_lease_that_cannot_be_lifted_is_an_error_that_says_when_services_end(
    far: Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts = Hosts([far.host])
    monkeypatch.setattr("orchestrator.hosts.KEEP_PATIENCE_S", 0.0)
    far.way.is_cut = True
    hosts.write_lease({"expires_at": 901.0, "keep": False})
    with pytest.raises(LeaseNotLiftedError, match="on far within 15 minutes"):
        hosts.write_lease({"expires_at": 901.0, "keep": True})
    far.way.is_cut = False
    hosts.write_lease({"expires_at": 901.0, "keep": False})
    far.way.is_cut = True
    clock = time.strftime("%H:%M", time.localtime(901.0))
    with pytest.raises(LeaseNotLiftedError, match=f"They will end when it runs out: on far at {clock}"):
        hosts.write_lease({"expires_at": 1802.0, "keep": True})


def test_lease_is_renewed_while_something_is_copied(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.lease.RENEW_EVERY_S", 0.0)
    hosts, lease = Hosts([far.host]), Lease(far.home.lease)
    tracker = JobTracker(far.home, None, hosts, Polling())
    Watch(far.home, tracker, lease, hosts, *(cast(Any, None),) * 4)
    lease.take()
    before = json.loads(far.home.lease.read_text())["renewed_at"]
    (far.host.run.trials / "big").write_bytes(b"x" * (3 << 20))
    far.host.fetch(far.home.trials / "big")
    renewed_at = json.loads(far.home.lease.read_text())["renewed_at"]
    assert renewed_at > before
    assert json.loads(far.host.run.lease.read_text())["renewed_at"] == renewed_at
    far.home.lease.write_text(json.dumps({"owner": {**asdict(Owner.of_this_process()), "pid": 1}, "keep": False}))
    (far.host.run.trials / "more").write_bytes(b"x" * (3 << 20))
    with pytest.raises(LeaseLostError):
        far.host.fetch(far.home.trials / "more")
    assert not (far.home.trials / "more").exists()


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
    observer = far.other(only_looks=True)
    far.host.run.endpoint("vllm").unlink()
    assert observer.collect([far.job])
    assert far.home.endpoint("vllm").read_bytes() == before
    assert len(far.way.forwards) == 1


def test_record_that_cannot_be_written_here_does_not_hide_the_host(far: Far, caplog: pytest.LogCaptureFixture) -> None:
    far.writes(far.host.run.heartbeat(far.job.token), {"attempt": "a1", "at": 1.0})
    far.home.heartbeat(far.job.token).mkdir()
    assert far.host.collect([far.job])
    assert "was not taken over" in caplog.text
