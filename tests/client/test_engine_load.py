from __future__ import annotations

import itertools
import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from client.engine.run import run_load
from client.engine.spec import LoadSpec, RequestRecord
from client.errors import WorkerDiedError
from tests.client.conftest import API_TOKEN, MakeSpec
from tests.client.fake_server import Behaviour, FakeServer


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


def run(spec: LoadSpec) -> list[RequestRecord]:
    return run_load(spec, lambda record: None, threading.Event())


def test_run_load_known_delay_is_the_ttft(fake: FakeServer, make_spec: MakeSpec) -> None:
    fake.behaviour = Behaviour(n_tokens=5, first_token_delay_s=0.25, token_delay_s=0.05)
    (record,) = run(make_spec())
    assert record.error is None
    assert record.ttft_s is not None
    assert 0.245 <= record.ttft_s < 0.42
    assert record.first_byte_at_s is not None
    assert record.first_byte_at_s - record.sent_at_s < 0.24
    assert len(record.chunk_gaps_s) == 4
    assert 0.045 <= sum(record.chunk_gaps_s) / 4 < 0.1
    assert (record.completion_tokens, record.prompt_tokens, record.tokens_source) == (5, 11, "usage")
    assert (record.chunks, record.finish_reason, record.http_status) == (5, "stop", 200)
    assert record.text_length == len("tok0 ") * 5
    assert record.text is None


def test_run_load_many_clients_are_all_in_flight_at_once(fake: FakeServer, make_spec: MakeSpec) -> None:
    fake.behaviour = Behaviour(n_tokens=2, first_token_delay_s=0.8)
    records = run(make_spec(40, 2, processes=2))
    assert fake.max_in_flight == 40
    assert len(fake.connections) == 40
    assert len(fake.requests) == len(records) == 80
    assert {(record.client_id, record.index) for record in records} == {(c, i) for c in range(40) for i in range(2)}
    assert all(record.is_success for record in records)


def test_run_load_one_client_sends_one_after_the_other_on_one_connection(fake: FakeServer, make_spec: MakeSpec) -> None:
    records = run(make_spec(1, 6))
    assert fake.max_in_flight == 1
    assert len(fake.connections) == 1
    for before, after in itertools.pairwise(records):
        assert after.intended_at_s == before.eof_at_s
        assert after.sent_at_s >= before.eof_at_s
    assert records[0].intended_at_s == 0.0


FAULTS = {
    "http_status": Behaviour(status=500),
    "protocol": Behaviour(reset_after=3),
    "server_error": Behaviour(error_after=2),
    "zero_tokens": Behaviour(n_tokens=0),
    "timeout": Behaviour(first_token_delay_s=5.0),
}


def test_run_load_faults_end_in_their_classes(fake: FakeServer, make_spec: MakeSpec) -> None:
    fake.script.extend(FAULTS.values())
    fake.script.append(Behaviour(has_done=False))
    fake.script.append(Behaviour(truncate_after=2))
    fake.script.append(Behaviour(raw_line="{nonsense"))
    records = run(make_spec(1, len(fake.script) + 1, request_timeout_s=1.5))
    classes = [record.error_class for record in records]
    assert classes == [*FAULTS, "protocol", "protocol", "protocol", None]
    assert records[0].http_status == 500
    assert records[1].chunks == 3
    assert "the engine died" in (records[2].error or "")
    assert records[4].e2e_s == pytest.approx(1.5, abs=0.6)
    assert records[5].error == "the stream ended without [DONE]"


def test_run_load_wrong_token_is_401(make_spec: MakeSpec) -> None:
    (record,) = run(make_spec(api_token=None))
    assert (record.error_class, record.http_status) == ("http_status", 401)


def test_run_load_server_echoing_the_token_does_not_leak_it(fake: FakeServer, make_spec: MakeSpec) -> None:
    fake.behaviour = Behaviour(status=403, echo_token=True)
    spec = make_spec()
    (record,) = run(spec)
    assert fake.requests[0].authorization == f"Bearer {API_TOKEN}"
    assert "Bearer [token]" in (record.error or "")
    assert API_TOKEN not in repr(spec)


def test_run_load_nobody_listening_is_connect(make_spec: MakeSpec) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        (record,) = run(make_spec(base_url=f"http://127.0.0.1:{bound.getsockname()[1]}"))
    assert record.error_class == "connect"
    assert record.first_byte_at_s is None


def test_run_load_several_tokens_a_chunk_takes_the_servers_count(fake: FakeServer, make_spec: MakeSpec) -> None:
    fake.behaviour = Behaviour(n_tokens=9, tokens_per_chunk=3, token_delay_s=0.03)
    (record,) = run(make_spec())
    assert (record.completion_tokens, record.chunks, record.tokens_source) == (9, 3, "usage")


def test_run_load_no_usage_counts_chunks_and_says_so(fake: FakeServer, make_spec: MakeSpec) -> None:
    fake.behaviour = Behaviour(n_tokens=4, has_usage=False)
    (record,) = run(make_spec())
    assert (record.completion_tokens, record.tokens_source) == (4, "chunks")


def test_run_load_reasoning_starts_the_clock(fake: FakeServer, make_spec: MakeSpec) -> None:
    fake.behaviour = Behaviour(n_tokens=4, is_reasoning=True)
    (record,) = run(make_spec(keep_text=True))
    assert record.is_success
    assert record.ttft_s is not None
    assert record.text == ""
    assert record.text_length > 0


def test_run_load_ollama_stream_is_measured(fake: FakeServer, make_spec: MakeSpec) -> None:
    fake.behaviour = Behaviour(n_tokens=5, first_token_delay_s=0.2)
    (record,) = run(make_spec(api="ollama", keep_text=True))
    assert record.error is None
    assert fake.requests[0].path == "/api/generate"
    assert fake.requests[0].payload["options"] == {"num_predict": 8}
    assert record.ttft_s is not None
    assert 0.195 <= record.ttft_s < 0.5
    assert (record.completion_tokens, record.prompt_tokens) == (5, 7)
    assert record.text == "tok0 tok1 tok2 tok3 tok4 "


def test_run_load_ollama_faults_end_in_their_classes(fake: FakeServer, make_spec: MakeSpec) -> None:
    fake.script.extend([Behaviour(error_after=1), Behaviour(has_done=False), Behaviour(n_tokens=0)])
    records = run(make_spec(1, 3, api="ollama"))
    assert [record.error_class for record in records] == ["server_error", "protocol", "zero_tokens"]


def test_run_load_warmup_is_marked_and_before_zero(fake: FakeServer, make_spec: MakeSpec) -> None:
    started: list[float] = []
    records = run_load(
        make_spec(2, 2, warmup_requests=3), lambda record: None, threading.Event(), on_start=started.append
    )
    warmups = [record for record in records if record.warmup]
    assert (len(warmups), len(records), len(fake.requests)) == (3, 7, 7)
    assert all(record.eof_at_s < 0 for record in warmups)
    assert all(record.sent_at_s >= 0 for record in records if not record.warmup)
    assert started[0] == pytest.approx(time.time(), abs=30)


def test_run_load_cancel_ends_soon_and_keeps_what_finished(fake: FakeServer, make_spec: MakeSpec) -> None:
    fake.script.append(Behaviour())
    fake.behaviour = Behaviour(first_token_delay_s=30.0)
    cancel = threading.Event()
    begun = time.monotonic()
    records = run_load(make_spec(1, 50, request_timeout_s=60), lambda record: cancel.set(), cancel)
    assert time.monotonic() - begun < 8
    assert len(records) == 1


def test_run_load_error_in_on_record_ends_the_load_and_is_raised(fake: FakeServer, make_spec: MakeSpec) -> None:
    def refuse(record: RequestRecord) -> None:
        raise OSError("no space")

    fake.behaviour = Behaviour(token_delay_s=0.05)
    with pytest.raises(OSError, match="no space"):
        run_load(make_spec(2, 500), refuse, threading.Event())
    assert len(fake.requests) < 100


def test_run_load_worker_killed_is_an_error(fake: FakeServer, make_spec: MakeSpec) -> None:
    fake.behaviour = Behaviour(first_token_delay_s=30.0)

    def kill_worker(_started_at: float) -> None:
        (pid,) = workers_of(os.getpid())
        os.kill(pid, signal.SIGKILL)

    with pytest.raises(WorkerDiedError, match="exit code -9"):
        run_load(make_spec(), lambda record: None, threading.Event(), on_start=kill_worker)
