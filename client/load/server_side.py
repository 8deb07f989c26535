"""What a server says of itself while it is measured: vLLM's ``/metrics`` before, during and after.

Source of the names: vLLM's "Production Metrics" page. A server without them is no error.
"""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from client.load.spec import Server

PERIOD_S = 1.0
_TIMEOUT_S = 2.0
_MAX_BYTES = 8 * 2**20
_GAUGES = {
    "requests_running": ("vllm:num_requests_running",),
    "requests_waiting": ("vllm:num_requests_waiting",),
    "kv_cache_usage": ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
}
_COUNTERS = {
    "preemptions": ("vllm:num_preemptions_total",),
    "prompt_tokens": ("vllm:prompt_tokens_total",),
    "generation_tokens": ("vllm:generation_tokens_total",),
    "prefix_cache_queries": ("vllm:prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries_total"),
    "prefix_cache_hits": ("vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total"),
}
_HISTOGRAMS = {
    "ttft_s": "vllm:time_to_first_token_seconds",
    "queue_time_s": "vllm:request_queue_time_seconds",
    "e2e_s": "vllm:e2e_request_latency_seconds",
}
Totals = Mapping[str, float]


class ServerSide:
    """Watches one server in a thread of its own; a context manager around the load."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._before: dict[str, float] = {}
        self._after: dict[str, float] = {}
        self._samples: dict[str, list[float]] = {name: [] for name in _GAUGES}
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> ServerSide:
        found = self._ask()
        if found is not None:
            self._before = found
            self._thread = threading.Thread(target=self._watch, name="server metrics", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join(_TIMEOUT_S + PERIOD_S)
            self._after = self._ask() or {}

    def _watch(self) -> None:
        while not self._over.wait(PERIOD_S):
            found = self._ask()
            for name, names in _GAUGES.items():
                value = _sum_of(found or {}, names)
                if value is not None:
                    self._samples[name].append(value)

    def _ask(self) -> dict[str, float] | None:
        """Return the sum of each series over its labels (histograms' bounds kept), None where there are none."""
        headers = {"Authorization": f"Bearer {self._server.token}"} if self._server.token else {}
        request = urllib.request.Request(f"{self._server.url}/metrics", headers=headers)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=_TIMEOUT_S) as answer:
                text = answer.read(_MAX_BYTES).decode("utf-8", "replace")
            found: dict[str, float] = {}
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    bound = sample.labels.get("le")
                    name = sample.name if bound is None else f"{sample.name} {bound}"
                    found[name] = found.get(name, 0.0) + sample.value
        except (urllib.error.URLError, OSError, ValueError):
            return None
        return found if any(name.startswith("vllm:") for name in found) else None

    def figures(self) -> dict[str, Any]:
        """Return what was seen; empty for a server that tells nothing."""
        if not self._before or not self._after:
            return {}
        told: dict[str, Any] = {}
        for name, values in self._samples.items():
            if values:
                told[name] = {"mean": sum(values) / len(values), "max": max(values), "samples": len(values)}
        for name, names in _COUNTERS.items():
            before, after = _sum_of(self._before, names), _sum_of(self._after, names)
            if before is not None and after is not None:
                told[name] = after - before
        if told.get("prefix_cache_queries"):
            told["prefix_cache_hit_ratio"] = told.get("prefix_cache_hits", 0.0) / told["prefix_cache_queries"]
        for name, metric in _HISTOGRAMS.items():
            histogram = _histogram(metric, self._before, self._after)
            if histogram:
                told[name] = histogram
        return told


def _sum_of(found: Totals, names: tuple[str, ...]) -> float | None:
    return next((found[name] for name in names if name in found), None)


def _histogram(metric: str, before: Totals, after: Totals) -> dict[str, Any]:
    """Return how many observations fell into each bucket during the load, by upper bounds, with their mean."""
    count = after.get(f"{metric}_count", 0.0) - before.get(f"{metric}_count", 0.0)
    if count <= 0:
        return {}
    prefix = f"{metric}_bucket "
    bounds = sorted(float(name.removeprefix(prefix)) for name in after if name.startswith(prefix))
    text = {float(name.removeprefix(prefix)): name for name in after if name.startswith(prefix)}
    reached = [after[text[bound]] - before.get(text[bound], 0.0) for bound in bounds]
    total = after.get(f"{metric}_sum", 0.0) - before.get(f"{metric}_sum", 0.0)
    quantiles = {
        name: next((bound for bound, seen in zip(bounds, reached, strict=True) if seen >= share * count), None)
        for name, share in (("p50_at_most", 0.5), ("p90_at_most", 0.9), ("p99_at_most", 0.99))
    }
    finite = [[bound, seen] for bound, seen in zip(bounds, reached, strict=True) if bound != float("inf")]
    return {"count": count, "mean": total / count, "buckets": finite, **_finite(quantiles)}


def _finite(quantiles: Mapping[str, float | None]) -> dict[str, float | None]:
    return {name: None if value == float("inf") else value for name, value in quantiles.items()}
