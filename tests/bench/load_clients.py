"""The load engine against other clients, on a mock that knows the truth: ``python -m tests.bench.load_clients``.

Each client measures the same server on the same machine in the same run. Figures of different machines, or of one that
is busy, say nothing: compare rows of one table.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from client.load.arrivals import constant_arrivals
from client.load.payloads import encode_request
from client.load.run import PROJECT, measure, scratch
from client.load.shapes import ClosedLoop, How, OpenLoop, deal_out
from client.load.spec import Prompt, Sampling, Server

BARE = "mock:tokens=16"
TIMED = "mock:tokens=64,ttft=0.05,itl=0.005"
CLIENTS = 64


@dataclass(frozen=True)
class Row:
    """What one client has measured: rate and cost on a server without delay, and its errors on a timed one, in ms."""

    name: str
    requests_per_s: float
    cpu_s_per_1000: float
    ttft_error: float
    ttft_p99_error: float
    itl_error: float


@dataclass(frozen=True)
class Seen:
    """One client's own figures, times in seconds."""

    requests: int
    lasted_s: float
    cpu_s: float
    ttft_s: np.ndarray
    itl_mean_s: float


def own(url: str, model: str, requests: int, processes: int = 1) -> Seen:
    """Measure with the load engine."""
    server = Server(url, "openai-chat")
    body = encode_request(server, Sampling(model, 64), Prompt("hello"))
    with scratch() as folder:
        shape = ClosedLoop(CLIENTS, requests=requests)
        seen = measure(deal_out(server, (body,), shape, How(warmup=CLIENTS), processes, folder), folder)
    rows = seen.rows[seen.rows["phase"] == 1]
    if (rows["error"] >= 0).any():
        raise SystemExit(f"requests failed: {seen.notes[:3]}")
    lasted_s = float(rows["eof_s"].max() - rows["sent_s"].min())
    ttft_s = rows["first_content_s"] - rows["sent_s"]
    gaps = seen.gaps.mean() if len(seen.gaps) else 0.0
    return Seen(len(rows), lasted_s, sum(worker.cpu_s for worker in seen.workers), ttft_s, float(gaps))


AIOHTTP = """
import asyncio, json, sys, time, resource
import aiohttp
url, model, requests, clients = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
body = json.dumps({"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 64,
                   "stream": True, "stream_options": {"include_usage": True}}, separators=(",", ":")).encode()
ttft, gaps, left = [], [], requests
async def client(session):
    global left
    while left > 0:
        left -= 1
        sent = time.monotonic(); first = last = None
        async with session.post(url + "/v1/chat/completions", data=body) as answer:
            async for line in answer.content:
                if not line.startswith(b"data: {"): continue
                event = json.loads(line[6:])
                if not event["choices"] or not event["choices"][0]["delta"].get("content"): continue
                now = time.monotonic()
                if first is None: first = now
                else: gaps.append(now - last)
                last = now
        ttft.append(first - sent)
async def main():
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
        await asyncio.gather(*(client(session) for _ in range(clients)))
        after = resource.getrusage(resource.RUSAGE_SELF)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(json.dumps({"lasted": time.monotonic() - began, "cpu": cpu, "ttft": ttft,
                          "itl": sum(gaps) / len(gaps) if gaps else 0.0}))
asyncio.run(main())
"""


def with_aiohttp(url: str, model: str, requests: int) -> Seen:
    """Measure with a lean client on aiohttp, one process."""
    argv = [sys.executable, "-c", AIOHTTP, url, model, str(requests), str(CLIENTS)]
    told = json.loads(subprocess.run(argv, capture_output=True, text=True, check=True, timeout=300).stdout)
    return Seen(requests, told["lasted"], told["cpu"], np.array(told["ttft"]), told["itl"])


def with_vllm(url: str, model: str, requests: int) -> Seen:
    """Measure with ``vllm bench serve``; its CPU time is that of the whole program, start-up included."""
    folder = Path(tempfile.mkdtemp(prefix="orch-bench-"))
    argv = [str(shutil.which("vllm", path=str(Path(sys.executable).parent))), "bench", "serve"]
    argv += ["--backend", "openai-chat", "--base-url", url, "--endpoint", "/v1/chat/completions", "--model", model]
    argv += [
        "--dataset-name",
        "random",
        "--random-input-len",
        "8",
        "--random-output-len",
        "64",
        "--skip-tokenizer-init",
    ]
    argv += ["--num-prompts", str(requests), "--max-concurrency", str(CLIENTS), "--save-result"]
    argv += ["--save-detailed", "--result-dir", str(folder), "--result-filename", "r.json"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(argv, capture_output=True, text=True, check=True, timeout=600)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    told = json.loads((folder / "r.json").read_text())
    shutil.rmtree(folder)
    itls = [gap for gaps in told["itls"] for gap in gaps]
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Seen(requests, told["duration"], cpu_s, np.array(told["ttfts"]), float(np.mean(itls)) if itls else 0.0)


Measure = Callable[[str, str, int], Seen]


def row(name: str, take: Measure, url: str, bare: int, timed: int) -> Row:
    """Measure both servers with one client."""
    fast = take(url, BARE, bare)
    _truth(url)
    slow = take(url, TIMED, timed)
    first, gaps = _truth(url)
    return Row(
        name,
        fast.requests / fast.lasted_s,
        1000 * fast.cpu_s / fast.requests,
        1000 * float(slow.ttft_s.mean() - first.mean()),
        1000 * float(np.percentile(slow.ttft_s, 99) - np.percentile(first, 99)),
        1000 * float(slow.itl_mean_s - gaps.mean()),
    )


def _truth(url: str) -> tuple[np.ndarray, np.ndarray]:
    with urllib.request.urlopen(f"{url}/truth", timeout=30) as answer:
        told = json.load(answer)
    return np.array(told["first_s"] or [0.0]), np.array(told["gaps_s"] or [0.0])


def hold_schedule(url: str) -> str:
    """Put 1,000 streams of 64 tokens at 5 ms on the mock, and tell how late pieces arrived."""
    _truth(url)
    server = Server(url, "openai-chat")
    body = encode_request(server, Sampling(TIMED, 64), Prompt("hello"))
    with scratch() as folder:
        shape = ClosedLoop(1000, requests=3000, ramp_s=0.5)
        seen = measure(deal_out(server, (body,), shape, How(), 2, folder), folder)
    _, gaps = _truth(url)
    cpu_s = sum(worker.cpu_s for worker in seen.workers)
    return (
        f"1,000 streams of 64 tokens at 5 ms: {len(seen.rows)} requests, {(seen.rows['error'] >= 0).sum()} failed, "
        f"mean gap {1000 * seen.gaps.mean():.3f} ms (sent: {1000 * gaps.mean():.3f}), client CPU {cpu_s:.1f} s"
    )


def keep_pace(url: str) -> str:
    """Send 100 requests a second at even distances, and tell how even they were."""
    server = Server(url, "openai-chat")
    body = encode_request(server, Sampling(BARE, 64), Prompt("hello"))
    with scratch() as folder:
        shape = OpenLoop(tuple(float(at_s) for at_s in constant_arrivals(100.0, requests=1000)))
        seen = measure(deal_out(server, (body,), shape, How(), 1, folder), folder)
    gaps = np.diff(np.sort(seen.rows["sent_s"]))
    return f"100 requests/s constant, 10 s: CV of the distances {gaps.std() / gaps.mean():.4f}"


def main() -> None:
    """Print the table."""
    mock = subprocess.Popen(
        [sys.executable, "-m", "client.load.mock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=PROJECT
    )
    assert mock.stdout is not None
    url = f"http://127.0.0.1:{int(mock.stdout.readline())}"
    rows = [row("orch", own, url, 100_000, 2560), row("aiohttp", with_aiohttp, url, 20_000, 2560)]
    if shutil.which("vllm", path=str(Path(sys.executable).parent)):
        try:
            rows.append(row("vllm bench serve", with_vllm, url, 2000, 1280))
        except subprocess.CalledProcessError as error:
            print(f"vllm bench serve failed: {error.stderr.strip().splitlines()[-1:]}")
    for name in ("guidellm", "aiperf"):
        if shutil.which(name, path=str(Path(sys.executable).parent)) is None:
            print(f"{name} is not installed beside this interpreter: left out")
    print(f"\n{CLIENTS} streams; without delay: 16 tokens; timed: 64 tokens, TTFT 50 ms, ITL 5 ms; errors in ms")
    names = ("req/s", "CPU-s/1000", "TTFT err", "p99 err", "ITL err")
    print(f"{'client':<18}" + "".join(f"{name:>12}" for name in names))
    for item in rows:
        cells = (item.requests_per_s, item.cpu_s_per_1000, item.ttft_error, item.ttft_p99_error, item.itl_error)
        formats = ("12.0f", "12.4f", "+12.3f", "+12.3f", "+12.4f")
        print(f"{item.name:<18}" + "".join(format(value, form) for value, form in zip(cells, formats, strict=True)))
    print(hold_schedule(url))
    print(keep_pace(url))
    assert mock.stdin is not None
    mock.stdin.close()
    mock.wait(10)


if __name__ == "__main__":
    main()
