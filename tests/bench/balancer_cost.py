"""What the balancer adds to a request, against the direct path: ``python -m tests.bench.balancer_cost``.

The ways take turns on one mock without delay, round by round, so that what disturbs the machine disturbs all. On a
machine with few cores, load generator, balancer and mock share them: the rates say what is left for all three.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

import numpy as np

from client.load.arrivals import constant_arrivals
from client.load.payloads import encode_request
from client.load.run import measure, scratch
from client.load.self_check import mock_server
from client.load.shapes import ClosedLoop, How, OpenLoop, Shape, deal_out
from client.load.spec import Prompt, Sampling, Server
from tests.services.balancing import API, Balancer

ROUNDS = 5
BARE = "mock:tokens=16"
TIMED = "mock:tokens=64,ttft=0.05,itl=0.02"
LOADS: dict[str, tuple[str, Shape]] = {
    "1 stream": (BARE, ClosedLoop(1, requests=2000)),
    "64 streams": (BARE, ClosedLoop(64, requests=5000)),
    # 190 a second that last 1.31 s each: about 250 streams at a time.
    "250 timed streams": (TIMED, OpenLoop(tuple(map(float, constant_arrivals(190.0, requests=570))))),
}
COLUMNS = ("load", "way", "TTFT p50, ms", "TTFT p99, ms", "requests/s", "HAProxy CPU-s/1,000")


@dataclass(frozen=True)
class Way:
    """A way to the mock; the direct one has no balancer."""

    url: str
    balancer: Balancer | None = None

    @property
    def haproxy(self) -> Path:
        """Return the folder of HAProxy's process."""
        assert self.balancer is not None
        pid = self.balancer.process.pid
        return Path("/proc", Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])

    def cpu_s(self) -> float:
        """Return the CPU time that the balancer has used."""
        if self.balancer is None:
            return 0.0
        fields = (self.haproxy / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def take(way: Way, model: str, shape: Shape) -> tuple[float, float, float, float]:
    """Return TTFT p50 and p99 in ms, requests per second, and HAProxy's CPU seconds for 1,000 requests."""
    server = Server(way.url, "openai-chat", API)
    body = encode_request(server, Sampling(model, 64), Prompt("hello"))
    warmup = shape.clients if isinstance(shape, ClosedLoop) else 1
    before_s = way.cpu_s()
    with scratch() as folder:
        seen = measure(deal_out(server, (body,), shape, How(warmup), 1, folder), folder)
    rows = seen.rows[seen.rows["phase"] == 1]
    if len(rows) != shape.expected or (rows["error"] >= 0).any():
        raise SystemExit(f"requests failed: {seen.notes[:3]}")
    ttft_ms = 1000 * (rows["first_content_s"] - rows["sent_s"])
    rate = len(rows) / float(rows["eof_s"].max() - rows["sent_s"].min())
    cpu_s = (way.cpu_s() - before_s) / (warmup + len(rows)) * 1000
    return float(np.percentile(ttft_ms, 50)), float(np.percentile(ttft_ms, 99)), rate, cpu_s


def compare(load: str, ways: Mapping[str, Way]) -> None:
    """Print the medians of the rounds for each way."""
    taken = [{name: take(way, *LOADS[load]) for name, way in ways.items()} for _ in range(ROUNDS)]
    for name in ways:
        p50, p99, rate, cpu_s = (median(column) for column in zip(*(turn[name] for turn in taken), strict=True))
        print(f"| {load} | {name} | {p50:.3f} | {p99:.3f} | {rate:,.0f} | {cpu_s:.4f} |", flush=True)
        added = [turn[name][0] - turn["direct"][0] for turn in taken]
        if name != "direct":
            print(f"|  | added at p50: {median(added):+.3f} ({min(added):+.3f} to {max(added):+.3f}) |||||")


def main() -> None:
    """Print the table."""
    print(f"{ROUNDS} rounds; load average {os.getloadavg()[0]:.1f} before\n")
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    with ExitStack() as stack:
        url = stack.enter_context(mock_server())
        ways = {"direct": Way(url)}
        for policy in ("least_outstanding", "prefix"):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="orch-bench-")))
            balancer = stack.enter_context(Balancer(folder, policy))
            balancer.publish("vllm", urlsplit(url).port or 0)
            ways[policy] = Way(balancer.url, balancer)
        for load in LOADS:
            compare(load, ways)
        for name, way in ways.items():
            if way.balancer is not None:
                peak = next(line for line in (way.haproxy / "status").read_text().splitlines() if "VmHWM" in line)
                print(f"{name}: HAProxy's memory at most {int(peak.split()[1]) / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
