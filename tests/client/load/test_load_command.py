"""``orch.py bench`` and ``orch.py compare`` as a user calls them, on the mock."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from client.load.export import summary_schema
from client.load.run import PROJECT
from tests.client.load.conftest import Mock

MODEL = "mock:ttft=0.02,itl=0.005,tokens=8"
PROMISED = (
    "requests_per_s", "output_tokens_per_s", "ttft_ms", "itl_ms", "tpot_ms", "e2e_ms", "schedule_delay_ms",
    "client_cpu_s", "client_start_s", "connections_opened", "failures", "goodput_per_s", "valid", "invalid_reasons",
)  # fmt: skip


def argv_of(*words: str) -> list[str]:
    return [sys.executable, str(PROJECT / "orch.py"), *words]


def orch(*words: str) -> subprocess.CompletedProcess[str]:
    """Run orch.py."""
    return subprocess.run(argv_of(*words), capture_output=True, text=True, timeout=60, check=False)


def bench(mock: Mock, folder: Path, *words: str, model: str = MODEL) -> subprocess.CompletedProcess[str]:
    """Benchmark the mock without a self-check: what a busy test machine adds is not to be judged."""
    return orch("bench", mock.url, "--model", model, "--output", str(folder), "--no-self-check", *words)


def summary_of(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return document


def test_bench_prints_one_object_with_the_promised_fields(mock: Mock, tmp_path: Path) -> None:
    done = bench(mock, tmp_path, "--concurrency", "4", "--requests", "40", "--slo", "ttft_ms<=900", "--json")
    told = json.loads(done.stdout)
    assert set(PROMISED) <= set(told), done.stderr
    for name in ("ttft_ms", "itl_ms", "tpot_ms", "e2e_ms"):
        assert {"mean", "p50", "p90", "p99", "p999"} <= set(told[name])
    assert (told["total"], told["successful"], told["connections_opened"]) == (40, 40, 4)
    assert told["ttft_ms"]["p50"] >= 20
    assert told["goodput_per_s"] == told["requests_per_s"]
    jsonschema.validate(summary_of(tmp_path), summary_schema())
    assert {path.name for path in tmp_path.iterdir()} >= {"requests.parquet", "requests.jsonl", "report.html", "plots"}
    assert len((tmp_path / "requests.jsonl").read_text().splitlines()) == 41, "the warm-up is told apart, not left out"


def test_bench_does_not_know_the_token_afterwards(mock: Mock, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("sesame-4711\n")
    folder = tmp_path / "results"
    assert bench(mock, folder, "--requests", "3", "--api-key-file", str(key)).returncode in {0, 1}
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) >= 5
    assert not [path for path in files if b"sesame-4711" in path.read_bytes()]
    assert {path.stat().st_mode & 0o077 for path in files} == {0}


def test_bench_whose_requests_fail_is_kept_as_not_valid(mock: Mock, tmp_path: Path) -> None:
    done = bench(mock, tmp_path, "--requests", "5", model="mock:status=503")
    assert done.returncode == 1
    assert "NOT VALID" in done.stdout
    assert "HTTP 503: told to fail" in done.stdout
    assert summary_of(tmp_path)["failures"]["http_status"] == 5


def test_sweep_has_a_point_for_each_load(mock: Mock, tmp_path: Path) -> None:
    done = bench(mock, tmp_path, "--concurrency", "1,2,4,8", "--requests", "24")
    points = summary_of(tmp_path)["points"]
    assert [point["load"] for point in points] == [1, 2, 4, 8], done.stderr
    rates = [point["requests_per_s"] for point in points]
    assert rates == sorted(rates)
    assert (tmp_path / "points.csv").read_text().count("\n") == 5


class OneAtATime(BaseHTTPRequestHandler):
    """Takes 50 ms for each request; its server has one thread: no more than 20 requests in a second."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(0.05)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'data: {"choices": [{"delta": {"content": "x"}}]}\n\ndata: [DONE]\n\n')

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in the base class
        """Keep quiet."""


def test_rate_that_the_server_cannot_serve_counts_from_the_intended_time_and_is_not_valid(tmp_path: Path) -> None:
    with HTTPServer(("127.0.0.1", 0), OneAtATime) as server:
        server.socket.listen(500)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        words = ("--model", "m", "--rate", "40", "--arrivals", "constant", "--duration", "4", "--no-self-check")
        done = orch("bench", url, *words, "--output", str(tmp_path))
        server.shutdown()
    told = summary_of(tmp_path)
    assert done.returncode == 1, done.stdout
    assert told["ttft_ms"]["max"] > 2000, "the last ones waited for all before them"
    assert told["rate_asked_per_s"] == pytest.approx(40, rel=0.05)
    assert told["requests_per_s"] < 25
    assert any("40" in reason for reason in told["invalid_reasons"]), told["invalid_reasons"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("ftp://host", "--model", "m"), "give http:// or https://"),
        (("http://user:secret@host:1", "--model", "m"), "give http:// or https://"),
        (("http://127.0.0.1:1", "--model", "m", "--slo", "ttft<200"), "METRIC<=MILLISECONDS"),
        (("http://127.0.0.1:1", "--model", "m", "--find-capacity", "--slo", "ttft_ms<=1"), "give --rate"),
        (("http://127.0.0.1:1", "--model", "m", "--prompt", "a", "--dataset", "b"), "one source of prompts"),
        (("http://127.0.0.1:1", "--model", "m", "--dataset", "/no/such"), "/no/such"),
        (("http://127.0.0.1:1", "--model", "m", "--api-key-file", "/no/such"), "cannot be read"),
        (("http://127.0.0.1:1", "--model", "m", "--concurrency", "1.5"), "a whole number"),
        (("http://127.0.0.1:1", "--model", "m", "--requests", "0"), "from 1 to"),
    ],
)
def test_wrong_input_is_told_and_measures_nothing(words: tuple[str, ...], told: str, tmp_path: Path) -> None:
    done = orch("bench", *words, "--output", str(tmp_path / "new"))
    assert (done.returncode, told in done.stderr) == (2, True), done.stderr
    assert "secret" not in done.stderr


def test_folder_with_results_is_not_written_over(mock: Mock, tmp_path: Path) -> None:
    assert bench(mock, tmp_path, "--requests", "2").returncode in {0, 1}
    before = (tmp_path / "summary.json").read_bytes()
    again = bench(mock, tmp_path, "--requests", "2")
    assert (again.returncode, "another benchmark" in again.stderr) == (2, True)
    assert (tmp_path / "summary.json").read_bytes() == before


def test_ctrl_c_ends_the_load_and_keeps_what_was_measured(mock: Mock, tmp_path: Path) -> None:
    words = ("--model", MODEL, "--duration", "60", "--output", str(tmp_path), "--no-self-check")
    process = subprocess.Popen(argv_of("bench", mock.url, *words), stdout=subprocess.PIPE, text=True)
    time.sleep(3)
    os.kill(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "the benchmark was cancelled" in said
    assert summary_of(tmp_path)["successful"] > 5


def test_compare_finds_a_slower_server_and_the_gate_says_so(mock: Mock, tmp_path: Path) -> None:
    for name, ttft in (("a", "0.02"), ("b", "0.02"), ("c", "0.05")):
        model = f"mock:ttft={ttft},itl=0.005,tokens=8"
        assert bench(mock, tmp_path / name, "--concurrency", "4", "--requests", "120", model=model).returncode in {0, 1}
    a, b, c = (str(tmp_path / name) for name in "abc")
    same = orch("compare", a, b, "--fail-on", "ttft_p50>60%")
    assert (same.returncode, "PASS" in same.stdout) == (0, True), same.stdout + same.stderr
    slower = orch("compare", a, c, "--fail-on", "ttft_p50>60%")
    assert (slower.returncode, "FAIL" in slower.stdout) == (1, True), slower.stdout + slower.stderr
    assert max(map(len, slower.stdout.splitlines())) <= 100
    three = json.loads(orch("compare", a, b, c, "--json").stdout)
    assert three["comparison"]["groups"]["ttft_mean"]["p_value"] < 0.001


def test_compare_with_a_folder_without_results_says_what_is_missing(tmp_path: Path) -> None:
    done = orch("compare", str(tmp_path), str(tmp_path / "other"))
    assert (done.returncode, "no requests.parquet" in done.stderr) == (2, True)
