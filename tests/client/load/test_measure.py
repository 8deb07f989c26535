"""Whole measurements with worker processes of their own: begun together, cancelled, killed."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from client.errors import WorkerDiedError
from client.load.export import iter_records
from client.load.payloads import encode_request
from client.load.run import measure
from client.load.shapes import ClosedLoop, How, deal_out
from client.load.spec import Prompt, Sampling, Server
from tests.client.fake_server import Behaviour, FakeServer

Records = list[dict[str, Any]]
Load = Callable[..., Records]


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    with FakeServer() as server:
        yield server


@pytest.fixture
def load(fake: FakeServer, tmp_path: Path) -> Load:
    """Put a closed loop on the fake server and return its requests."""

    def put(clients: int, each: int, processes: int = 1, warmup: int = 0, **watching: Any) -> Records:
        server = Server(fake.url, "openai-chat")
        body = encode_request(server, Sampling("fake-model", 8), Prompt("Say something"))
        shape = ClosedLoop(clients, requests_per_client=each)
        plans = deal_out(server, (body,), shape, How(warmup, timeout_s=60.0), processes, tmp_path)
        return list(iter_records(measure(plans, tmp_path, **watching)))

    return put


def workers_of(parent: int) -> list[int]:
    """Return the pids of the load processes of a process."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            ppid = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            words = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if ppid == parent and b"client.load.worker" in words:
            found.append(int(entry.name))
    return found


def test_clients_of_all_processes_are_in_flight_at_once(fake: FakeServer, load: Load) -> None:
    fake.behaviour = Behaviour(n_tokens=2, first_token_delay_s=0.8)
    records = load(40, 2, processes=2)
    assert fake.max_in_flight == 40
    assert len(fake.connections) == 40
    assert len(fake.requests) == 80
    assert sorted(record["client_id"] for record in records) == sorted(list(range(40)) * 2)
    assert all(record["error_class"] is None for record in records)


def test_a_client_sends_the_next_request_when_the_one_before_has_ended(fake: FakeServer, load: Load) -> None:
    records = load(1, 6)
    assert (fake.max_in_flight, len(fake.connections)) == (1, 1)
    for before, after in itertools.pairwise(records):
        assert after["intended_at_s"] == before["eof_at_s"]
        assert after["sent_at_s"] >= before["eof_at_s"]
    assert records[0]["intended_at_s"] == 0.0


def test_warm_up_is_over_before_the_common_start(fake: FakeServer, load: Load) -> None:
    started: list[float] = []
    records = load(2, 2, warmup=3, on_start=lambda started_at, _zero_s: started.append(started_at))
    warmups = [record for record in records if record["warmup"]]
    assert (len(warmups), len(records), len(fake.requests)) == (3, 7, 7)
    assert all(record["eof_at_s"] < 0 for record in warmups)
    assert all(record["sent_at_s"] >= 0 for record in records if not record["warmup"])
    assert started[0] == pytest.approx(time.time(), abs=30)


def test_cancelled_load_ends_soon_and_keeps_what_had_finished(fake: FakeServer, load: Load) -> None:
    fake.script.append(Behaviour())
    fake.behaviour = Behaviour(first_token_delay_s=30.0)
    seen: list[int] = []
    begun = time.monotonic()
    records = load(
        1, 50, is_cancelled=lambda: bool(seen and seen[-1]), tell=lambda progress: seen.append(progress.finished)
    )
    assert time.monotonic() - begun < 8
    assert len(records) == 1


def test_killed_worker_is_an_error(fake: FakeServer, load: Load) -> None:
    fake.behaviour = Behaviour(first_token_delay_s=30.0)

    def kill(_started_at: float, _zero_s: float) -> None:
        (pid,) = workers_of(os.getpid())
        os.kill(pid, signal.SIGKILL)

    with pytest.raises(WorkerDiedError, match="exit code -9"):
        load(1, 1, on_start=kill)
