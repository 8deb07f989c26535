"""The service's own Prometheus metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from client.engine.spec import ERROR_CLASSES

_LATENCIES = ("ttft", "itl", "tpot", "e2e")
_QUANTILES = {"p50": "0.5", "p90": "0.9", "p95": "0.95", "p99": "0.99"}
_RATES = {
    "output_tokens_per_s": ("output_tokens_per_second", "Generated tokens per second, all clients together"),
    "total_tokens_per_s": ("total_tokens_per_second", "Prompt and generated tokens per second"),
    "request_per_s": ("requests_per_second", "Successful requests per second"),
}


class ServiceMetrics:
    """Counts of requests to the LLM server, and the figures of the last finished benchmark."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._in_flight = Gauge(
            "orch_client_requests_in_flight",
            "Requests to the LLM server in flight; of a benchmark: its clients that are not through",
            ["source"],
            registry=self._registry,
        )
        self._requests = Counter(
            "orch_client_requests",
            "Requests to the LLM server by how they ended; warm-up included",
            ["source", "outcome"],
            registry=self._registry,
        )
        self._running = Gauge("orch_client_benchmark_running", "1 while a benchmark runs", registry=self._registry)
        self._rates = {
            field: Gauge(f"orch_client_benchmark_{name}", f"{text}; last benchmark", ["model"], registry=self._registry)
            for field, (name, text) in _RATES.items()
        }
        self._latencies = {
            name: Gauge(
                f"orch_client_benchmark_{name}_seconds",
                f"{name.upper()} of the last benchmark by quantile",
                ["model", "quantile"],
                registry=self._registry,
            )
            for name in _LATENCIES
        }
        self._last_requests = Gauge(
            "orch_client_benchmark_requests",
            "Requests of the last benchmark by how they ended",
            ["model", "outcome"],
            registry=self._registry,
        )
        self._valid = Gauge(
            "orch_client_benchmark_valid",
            "1 if the last benchmark's figures hold",
            ["model"],
            registry=self._registry,
        )
        for source in ("query", "benchmark"):
            self._in_flight.labels(source).set(0)
            for outcome in ("success", *ERROR_CLASSES):
                self._requests.labels(source, outcome).inc(0)

    def query_started(self) -> None:
        """Count a query as in flight."""
        self._in_flight.labels("query").inc()

    def query_ended(self) -> None:
        """Count a query as no longer in flight."""
        self._in_flight.labels("query").dec()

    def count(self, source: str, error_class: str | None) -> None:
        """Count a finished request of ``source`` ("query" or "benchmark")."""
        self._requests.labels(source, error_class or "success").inc()

    def benchmark_in_flight(self, clients: int) -> None:
        """Say how many clients of the running benchmark still have requests to send."""
        self._in_flight.labels("benchmark").set(clients)

    def benchmark_running(self, is_running: bool) -> None:
        """Say whether a benchmark runs."""
        self._running.set(1 if is_running else 0)

    def benchmark_finished(self, summary: Mapping[str, Any]) -> None:
        """Take the figures of a benchmark that came to its end."""
        model, figures = summary["model"], summary["metrics"]
        for gauge in (*self._rates.values(), *self._latencies.values(), self._last_requests, self._valid):
            gauge.clear()
        for field, gauge in self._rates.items():
            gauge.labels(model).set(figures[field])
        for name, gauge in self._latencies.items():
            for key, quantile in _QUANTILES.items():
                value = figures[f"{name}_s"][key]
                if value is not None:
                    gauge.labels(model, quantile).set(value)
        self._last_requests.labels(model, "success").set(figures["successful"])
        for error_class, count in figures["failures"].items():
            self._last_requests.labels(model, error_class).set(count)
        self._valid.labels(model).set(1 if summary["valid"] else 0)

    def render(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self._registry)
