"""Load generators against each other, on a mock that knows the truth: ``python -m tests.bench.load_clients``.

Each measures the same server on the same machine in the same run. Figures of different machines, or of one that is
busy, say nothing: compare rows of one table. GuideLLM, AIPerf and ``vllm bench serve`` take part where they are
installed, or where ORCH_BENCH_GUIDELLM, ORCH_BENCH_AIPERF and ORCH_BENCH_VLLM name their programs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from client.load.self_check import mock_server
from tests.bench.clients import (
    AIOHTTP,
    CLIENTS,
    INSTALLED,
    ORCH,
    PROJECT,
    Client,
    ClientFailedError,
    Load,
    find_interpreter,
    measure,
    version_of,
)

BARE = "mock:tokens=16"
TIMED = "mock:tokens=64;ttft=0.05;itl=0.005"
TIMED_REQUESTS = 2560
COLUMNS = ("client", "requests/s", "CPU-s per 1,000", "TTFT error, mean", "p99", "ITL error", "connections")


def row(client: Client, python: Path, url: str) -> str:
    """Measure both servers with one client, and return its row.

    CPU is that of the whole program and its children, less that of a load so short that it is all start-up.
    """
    try:
        _, idle_cpu_s = measure(client, python, Load(url, BARE, 16, CLIENTS))
        bare, cpu_s = measure(client, python, Load(url, BARE, 16, client.requests))
        _truth(url)
        timed, _ = measure(client, python, Load(url, TIMED, 64, TIMED_REQUESTS))
        truth = _truth(url)
    except ClientFailedError as error:
        return _line((client.name, f"failed: {' '.join(str(error).split())}"))
    # The warm-up came first.
    first_ms = 1000 * np.array(truth["first_s"][-timed.requests :])
    cells = (
        client.name,
        f"{bare.requests / bare.lasted_s:,.0f}",
        f"{1000 * (cpu_s - idle_cpu_s) / (client.requests - CLIENTS):.3f}",
        f"{timed.ttft_ms - first_ms.mean():+.2f} ms",
        f"{timed.ttft_p99_ms - np.percentile(first_ms, 99):+.1f} ms",
        f"{timed.itl_ms - 1000 * np.mean(truth['gaps_s']):+.4f} ms",
        str(truth["connections"]),
    )
    return _line(cells)


def _line(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join((*cells, *[''] * (len(COLUMNS) - len(cells))))} |"


def _truth(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/truth", timeout=30) as answer:
        told: dict[str, Any] = json.load(answer)
    return told


@contextmanager
def bench(url: str, model: str, *flags: str) -> Iterator[Path]:
    """Run ``orch.py bench``, and give the folder of its results."""
    with tempfile.TemporaryDirectory(prefix="orch-bench-") as folder:
        argv = [sys.executable, str(PROJECT / "orch.py"), "bench", url, "--model", model, "--output", folder]
        subprocess.run([*argv, "--no-self-check", *flags], stdout=subprocess.DEVNULL, check=False, timeout=300)
        yield Path(folder)


def start_up(url: str) -> str:
    """Return how soon the load begins, and how long the command takes with next to nothing to do."""
    began_at, began_s = time.time(), time.monotonic()
    with bench(url, BARE, "--requests", "1") as folder:
        lasted_s = time.monotonic() - began_s
        summary = json.loads((folder / "summary.json").read_text())
    return (
        f"start-up: workers ready within {summary['client_start_s']:.2f} s, the load begun "
        f"{summary['started_at'] - began_at:.2f} s after the command; one request, report and all: {lasted_s:.1f} s"
    )


def hold_schedule(url: str) -> str:
    """Put 1,000 streams of 64 tokens at 5 ms on the mock, and return how late pieces arrived."""
    _truth(url)
    flags = ("--concurrency", "1000", "--requests", "3000", "--ramp", "0.5", "--processes", "2")
    with bench(url, TIMED, *flags) as folder:
        summary = json.loads((folder / "summary.json").read_text())
    sent_ms = 1000 * np.mean(_truth(url)["gaps_s"])
    return (
        f"1,000 streams of 64 tokens at 5 ms: {summary['total']:,} requests, {summary['failed']} failed, "
        f"mean gap {summary['itl_ms']['mean']:.3f} ms (sent: {sent_ms:.3f}), client CPU {summary['client_cpu_s']:.1f} s"
    )


def keep_pace(url: str) -> str:
    """Send 100 requests a second at even distances, and return how even they were."""
    with bench(url, BARE, "--rate", "100", "--arrivals", "constant", "--requests", "1000") as folder:
        rows = [json.loads(line) for line in (folder / "requests.jsonl").read_text().splitlines()]
    gaps_s = np.diff(sorted(row["sent_at_s"] for row in rows if not row["warmup"]))
    return f"100 requests/s constant, 10 s: CV of the distances {gaps_s.std() / gaps_s.mean():.4f}"


def main() -> None:
    """Print the table."""
    own = Path(sys.executable)
    clients = {ORCH: own, AIOHTTP: own if find_spec("aiohttp") else None}
    clients |= {client: find_interpreter(program) for program, client in INSTALLED.items()}
    print(f"{CLIENTS} streams at once; load average {os.getloadavg()[0]:.1f} before\n")
    print(_line(COLUMNS))
    print(_line(("---",) * len(COLUMNS)))
    with mock_server() as url:
        for client, python in clients.items():
            print(row(client, python, url) if python else _line((client.name, "not installed")), flush=True)
        print(f"\n{start_up(url)}\n{hold_schedule(url)}\n{keep_pace(url)}\n")
    print(f"without delay 16 tokens; timed {TIMED_REQUESTS:,} requests of 64 tokens, TTFT 50 ms, ITL 5 ms")
    for client, python in clients.items():
        if python:
            version = "this project" if client is ORCH else version_of(client, python)
            print(f"{client.name}: {version}; {client.requests:,} requests without delay")


if __name__ == "__main__":
    main()
