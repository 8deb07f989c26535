"""Pushed metrics of one run: sent to its Pushgateway, seen by its Prometheus, deleted at the end."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from http.client import HTTPException
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener

from prometheus_client import CollectorRegistry, Gauge, delete_from_gateway, push_to_gateway

from monitoring.prometheus_api import PrometheusApi
from orchestrator.errors import ServiceAnswerError
from orchestrator.ledger import Ledger
from orchestrator.metrics import MetricsSink, NoMetrics, Sample
from orchestrator.recipe.document import Recipe
from orchestrator.records import read_endpoint
from orchestrator.rundir import RunDir

PUSH_TIMEOUT_S = 3.0
SETTLE_POLL_S = 0.5
MAX_POINTS = 200
SEQUENCE = "orch_push_sequence"
PUSHED = f'{{run="%s",__name__=~"tokens_per_second|training_.+|validation_.+|hpo_.+|benchmark_.+|{SEQUENCE}"}}'
log = logging.getLogger(__name__)

GroupKey = tuple[tuple[str, str], ...]


def make_metrics(run: RunDir, run_id: str, recipe: Recipe) -> MetricsSink:
    """Return where the pushed metrics of a run go."""
    if recipe.job.monitoring.mode == "off":
        return NoMetrics()
    return PushedMetrics(run, run_id, recipe.job.monitoring.scrape_interval_s)


class PushedMetrics:
    """Pushes groups of gauges; each push carries a sequence number, so that it is known which one was scraped."""

    def __init__(self, run: RunDir, run_id: str, scrape_interval_s: float) -> None:
        self._run, self._run_id, self._scrape_interval_s = run, run_id, scrape_interval_s
        self._sequences: dict[GroupKey, int] = {}
        self._first_push_at: float | None = None

    def push(self, group: Mapping[str, str], samples: Sequence[Sample]) -> None:
        gateway = read_endpoint(self._run, "pushgateway")
        if gateway is None:
            return
        key: GroupKey = tuple(sorted(group.items()))
        # Milliseconds, so that a resumed run's first push is not taken for one of its predecessor's.
        sequence = max(self._sequences.get(key, 0) + 1, time.time_ns() // 1_000_000)
        registry = _registry(samples)
        Gauge(SEQUENCE, "Number of this push of its group.", registry=registry).set(sequence)
        try:
            push_to_gateway(
                gateway.url,
                job=group["job"],
                registry=registry,
                grouping_key=_rest(key),
                timeout=PUSH_TIMEOUT_S,
                handler=_without_proxy,
            )
        except (OSError, HTTPException) as error:
            log.warning("metrics of %s could not be pushed: %s", dict(group), error)
            return
        self._sequences[key] = sequence
        self._first_push_at = self._first_push_at or time.time()

    def settle(self) -> dict[str, Any]:
        if not self._sequences:
            return {"seen": False, "why": "nothing was pushed", "series": []}
        endpoint = read_endpoint(self._run, "prometheus")
        if endpoint is None:
            return {"seen": False, "why": "Prometheus is not running", "series": []}
        prometheus = PrometheusApi(endpoint.url)
        deadline = time.monotonic() + 3 * self._scrape_interval_s + 15.0
        missing = set(self._sequences)
        try:
            while missing and time.monotonic() < deadline:
                missing = self._unseen(prometheus)
                if missing:
                    time.sleep(SETTLE_POLL_S)
            series = self._series(prometheus)
        except ServiceAnswerError as error:
            return {"seen": False, "why": str(error), "series": []}
        why = f"Prometheus has not seen the last push of {len(missing)} groups" if missing else None
        return {"seen": not missing, "why": why, "series": series}

    def _unseen(self, prometheus: PrometheusApi) -> set[GroupKey]:
        """Return the groups whose last push Prometheus has not scraped yet."""
        seen: dict[GroupKey, float] = {}
        for item in prometheus.query(f'{SEQUENCE}{{run="{self._run_id}"}}'):
            labels = item["metric"]
            for key in self._sequences:
                if all(labels.get(name) == value for name, value in key):
                    seen[key] = float(item["value"][1])
        return {key for key, sequence in self._sequences.items() if seen.get(key) != sequence}

    def _series(self, prometheus: PrometheusApi) -> list[dict[str, Any]]:
        end = time.time()
        # What an earlier orchestrator of the run pushed belongs to it as well.
        resumed = next(Ledger(self._run.events).events("run_resumed"), None)
        started = next(Ledger(self._run.events).events("run_started"), None) if resumed else None
        first = started["at"] if started else self._first_push_at or end
        duration_s = end - first
        step_s = max(1.0, duration_s / MAX_POINTS)
        # Prometheus counts steps from the start: the end is one of them, so that the last value is not left out.
        start = end - math.ceil(duration_s / step_s) * step_s
        found = prometheus.query_range(PUSHED % self._run_id, start, end, step_s)
        return [item for item in found if item["metric"].get("__name__") != SEQUENCE]

    def clear(self) -> None:
        gateway = read_endpoint(self._run, "pushgateway")
        if gateway is None:
            return
        for key in list(self._sequences):
            try:
                # Deleting a shorter key leaves the longer ones in place: the full key is needed.
                delete_from_gateway(
                    gateway.url,
                    job=dict(key)["job"],
                    grouping_key=_rest(key),
                    timeout=PUSH_TIMEOUT_S,
                    handler=_without_proxy,
                )
            except (OSError, HTTPException) as error:
                log.warning("the metrics group %s could not be deleted: %s", dict(key), error)
                continue
            del self._sequences[key]


def _without_proxy(
    url: str, method: str, timeout: float | None, headers: list[tuple[str, str]], data: bytes
) -> Callable[[], None]:
    """Return the call that prometheus_client asks a handler for; a site's proxy is for the world outside."""

    def send() -> None:
        request = Request(url, data=data, method=method, headers=dict(headers))
        build_opener(ProxyHandler({})).open(request, timeout=timeout).close()

    return send


def _rest(key: GroupKey) -> dict[str, str]:
    return {name: value for name, value in key if name != "job"}


def _registry(samples: Sequence[Sample]) -> CollectorRegistry:
    registry = CollectorRegistry()
    gauges: dict[str, Gauge] = {}
    for sample in samples:
        names = sorted(sample.labels)
        if sample.name not in gauges:
            gauges[sample.name] = Gauge(sample.name, sample.help, names, registry=registry)
        gauge = gauges[sample.name]
        (gauge.labels(**sample.labels) if names else gauge).set(sample.value)
    return registry
