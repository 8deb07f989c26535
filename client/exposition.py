"""The service's own Prometheus metrics."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from client.load.figures import Distribution, Figures
from client.load.spec import ERROR_CLASSES
from client.summary import BenchmarkSummary

_LATENCIES = ("ttft", "itl", "tpot", "e2e")
_QUANTILES = {"p50": "0.5", "p90": "0.9", "p95": "0.95", "p99": "0.99"}
_RATES = {
    "output_tokens_per_s": ("output_tokens_per_second", "Generated tokens per second, all clients together"),
    "total_tokens_per_s": ("total_tokens_per_second", "Prompt and generated tokens per second"),
    "requests_per_s": ("requests_per_second", "Successful requests per second"),
}


class ServiceMetrics:
    """Counts of requests to the LLM server, and the figures of the last finished benchmark."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._in_flight = Gauge(
            "orch_client_requests_in_flight",
            "Requests to the LLM server in flight; of a benchmark: its clients",
            ["source"],
            registry=self._registry,
        )
        self._requests = Counter(
            "orch_client_requests",
            "Requests to the LLM server by how they ended; those of a benchmark once it has",
            ["source", "outcome"],
            registry=self._registry,
        )
        self._tokens = Counter(
            "orch_client_output_tokens",
            "Tokens that the LLM server generated for this service, as they come",
            ["source"],
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
            self._tokens.labels(source).inc(0)
            self._in_flight.labels(source).set(0)
            for outcome in ("success", *ERROR_CLASSES):
                self._requests.labels(source, outcome).inc(0)

    def query_started(self) -> None:
        """Count a query as in flight."""
        self._in_flight.labels("query").inc()

    def query_ended(self) -> None:
        """Count a query as no longer in flight."""
        self._in_flight.labels("query").dec()

    def count(self, source: str, error_class: str | None, requests: int = 1) -> None:
        """Count finished requests of ``source`` ("query" or "benchmark")."""
        self._requests.labels(source, error_class or "success").inc(requests)

    def count_all(self, source: str, figures: Figures) -> None:
        """Count the requests of a whole measurement."""
        self.count(source, None, figures.successful)
        for error_class, requests in figures.failures.items():
            self.count(source, error_class, requests)

    def count_tokens(self, source: str, tokens: int) -> None:
        """Count generated tokens."""
        self._tokens.labels(source).inc(tokens)

    def benchmark_in_flight(self, clients: int) -> None:
        """Say how many clients the running benchmark has."""
        self._in_flight.labels("benchmark").set(clients)

    def benchmark_running(self, is_running: bool) -> None:
        """Say whether a benchmark runs."""
        self._running.set(1 if is_running else 0)

    def benchmark_finished(self, summary: BenchmarkSummary) -> None:
        """Take the figures of a benchmark that came to its end."""
        model = summary.model
        for gauge in (*self._rates.values(), *self._latencies.values(), self._last_requests, self._valid):
            gauge.clear()
        for field, gauge in self._rates.items():
            gauge.labels(model).set(getattr(summary, field))
        for name, gauge in self._latencies.items():
            told: Distribution = getattr(summary, f"{name}_ms")
            for key, quantile in _QUANTILES.items():
                value_ms = getattr(told, key)
                if value_ms is not None:
                    gauge.labels(model, quantile).set(value_ms / 1000)
        self._last_requests.labels(model, "success").set(summary.successful)
        for error_class, count in summary.failures.items():
            self._last_requests.labels(model, error_class).set(count)
        self._valid.labels(model).set(1 if summary.valid else 0)

    def render(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self._registry)
