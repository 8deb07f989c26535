"""The table of load generators: what is read of each, and small loads with those that come with the environment."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from client.load.self_check import mock_server
from tests.bench import load_clients
from tests.bench.clients import (
    AIOHTTP,
    CLIENTS,
    ORCH,
    Client,
    Figures,
    Load,
    find_interpreter,
    measure,
    read_aiperf,
    read_guidellm,
    read_orch,
    read_vllm,
    write_tokenizer,
)

PROGRAM = "nothing-of-this-name"
TIMED = "mock:tokens=8;ttft=0.02;itl=0.005"

# What the programs have written, cut down to the parts that are read, with figures of their own each.
VLLM = {
    "completed": 100, "failed": 0, "duration": 0.5, "mean_ttft_ms": 2.0, "p99_ttft_ms": 3.0, "mean_itl_ms": 4.0,
    "median_ttft_ms": 1.9, "request_throughput": 200.0,
}  # fmt: skip
GUIDELLM = {
    "metadata": {"guidellm_version": "0.8.1"},
    "benchmarks": [
        {
            "duration": 0.5,
            "metrics": {
                "request_totals": {"successful": 100, "errored": 1, "incomplete": 0, "total": 101},
                "time_to_first_token_ms": {"successful": {"mean": 2.0, "percentiles": {"p95": 2.5, "p99": 3.0}}},
                "inter_token_latency_ms": {"successful": {"mean": 4.0}, "errored": {"mean": 0.0}},
            },
        }
    ],
}
AIPERF = {
    "aiperf_version": "0.13.0",
    "request_count": {"unit": "requests", "avg": 100.0},
    "benchmark_duration": {"unit": "sec", "avg": 0.5},
    "time_to_first_token": {"unit": "ms", "avg": 2.0, "p50": 1.9, "p99": 3.0},
    "inter_token_latency": {"unit": "ms", "avg": 4.0},
}
SUMMARY = {
    "total": 101, "successful": 100, "duration_s": 0.5, "ttft_ms": {"mean": 2.0, "p99": 3.0}, "itl_ms": {"mean": 4.0},
}  # fmt: skip


@pytest.mark.parametrize(
    ("read", "document"),
    [(read_vllm, VLLM), (read_guidellm, GUIDELLM), (read_aiperf, AIPERF), (read_orch, SUMMARY)],
    ids=["vllm", "guidellm", "aiperf", "orch"],
)
def test_read_takes_the_programs_own_figures(read: Callable[[Any], Figures], document: Any) -> None:
    assert read(document) == Figures(requests=100, lasted_s=0.5, ttft_ms=2.0, ttft_p99_ms=3.0, itl_ms=4.0)


def test_find_interpreter_is_where_the_variable_says_or_on_the_path(tmp_path: Path) -> None:
    real = tmp_path / "environment" / "bin" / PROGRAM
    real.parent.mkdir(parents=True)
    real.write_text("#!/bin/sh\n")
    real.chmod(0o700)
    links = tmp_path / "links"
    links.mkdir()
    (links / PROGRAM).symlink_to(real)
    variable = f"ORCH_BENCH_{PROGRAM.upper()}"
    assert find_interpreter(PROGRAM, {variable: str(real), "PATH": ""}) == real.with_name("python")
    assert find_interpreter(PROGRAM, {"PATH": str(links)}) == real.with_name("python")
    assert find_interpreter(PROGRAM, {"PATH": str(tmp_path)}) is None
    with pytest.raises(SystemExit, match="no such program"):
        find_interpreter(PROGRAM, {variable: str(tmp_path / PROGRAM), "PATH": str(links)})


def test_each_token_of_the_mock_is_one_of_the_tokenizers(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers comes with the engine, not with the client")
    write_tokenizer(tmp_path)
    made = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert made.encode(" tok" * 16).tokens == ["tok"] * 16


NEEDS_AIOHTTP = pytest.mark.skipif(find_spec("aiohttp") is None, reason="aiohttp comes with the engine")


@pytest.mark.parametrize("client", [ORCH, pytest.param(AIOHTTP, marks=NEEDS_AIOHTTP)], ids=lambda client: client.name)
def test_measure_tells_what_the_mock_did(client: Client) -> None:
    with mock_server() as url:
        figures, cpu_s = measure(client, Path(sys.executable), Load(url, TIMED, 8, 192))
    assert figures.requests == 192
    assert 20 <= figures.ttft_ms <= figures.ttft_p99_ms < 2000
    assert figures.itl_ms >= 4.9
    assert figures.lasted_s >= 3 * (0.02 + 7 * 0.005)
    assert cpu_s > 0.1


def test_program_without_a_result_is_a_row_with_its_last_words() -> None:
    broken = replace(ORCH, argv=lambda python, load, folder: [python, "-c", "raise SystemExit('no such\\nmodel')"])
    told = load_clients.row(broken, Path(sys.executable), "http://127.0.0.1:9")
    assert told.startswith("| orch.py bench | failed: exit code 1: no such model |")
    assert told.count("|") == len(load_clients.COLUMNS) + 1


def test_row_compares_with_what_was_sent_after_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_clients, "TIMED_REQUESTS", 2 * CLIENTS)
    told = {"requests": 2 * CLIENTS, "lasted_s": 0.5, "ttft_s": 0.06, "ttft_p99_s": 0.08, "itl_s": 0.007}
    source = f"import pathlib; pathlib.Path('result.json').write_text({json.dumps(told)!r})"
    truth = {"first_s": [9.0] * CLIENTS + [0.05] * 2 * CLIENTS, "gaps_s": [0.005], "connections": CLIENTS}
    monkeypatch.setattr(load_clients, "_truth", lambda url: truth)
    client = replace(AIOHTTP, argv=lambda python, load, folder: [python, "-c", source])
    cells = load_clients.row(client, Path(sys.executable), "http://127.0.0.1:9").strip("| ").split(" | ")
    assert (cells[0], cells[1]) == ("aiohttp and json", "256")
    assert cells[3:] == ["+10.00 ms", "+30.0 ms", "+2.0000 ms", "64"]
