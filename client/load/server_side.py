"""What a server and its machines say of themselves while they are measured: before, during and after.

A server that tells nothing, and a machine without exporters, are no error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from client.load.columns import Floats
from client.load.figures import Interval
from client.load.quantities import COUNTERS, HISTOGRAMS, QUANTITIES, Quantity
from client.load.spec import Server
from client.load.watch import Seen, Target, Watch, usual_exporters

# Whose course over time is told as well, and what it is called in words.
SERIES = {
    "requests_running": "requests running",
    "requests_waiting": "requests waiting",
    "kv_cache_usage": "KV cache used",
    "gpu_busy_share": "GPUs busy",
    "cpu_busy_share": "CPUs busy",
    "gpu_power_w": "GPUs' power",
}
_MOST_POINTS = 300
Totals = Mapping[str, float]


class ServerSide(Watch):
    """Watches a server and its exporters; a context manager around the load.

    Attributes:
        zero_s: The common start by the monotonic clock, once there is one.
    """

    def __init__(self, server: Server, exporters: Iterable[Target] = ()) -> None:
        """Prepare to watch.

        Args:
            server: Whom the load is put on.
            exporters: Of its machines, besides those at the usual ports of its host, if they answer.
        """
        self._named = tuple(exporters)
        own = Target(f"{server.url}/metrics", server.token, server.ca_file)
        named = {target.url for target in self._named}
        usual = (target for target in usual_exporters(server.url) if target.url not in named)
        super().__init__((own, *{target.url: target for target in self._named}.values(), *usual))
        self.zero_s: float | None = None

    def figures(self, window_s: Interval, output_tokens_per_s: float) -> dict[str, Any]:
        """Return what was seen; empty where nobody told anything or nothing was measured.

        A quantity (units in its name, shares of 1) has mean, min, max and number of samples within the window;
        ``series`` has (seconds since the common start, value) over the whole load. vLLM's counters and histograms have
        their change from the look before the load to the one after it. ``exporters`` has the like by URL.
        ``energy_j`` and ``joules_per_output_token`` are of all GPUs that are shown, whoever uses them.

        Args:
            window_s: What was measured, in seconds since the common start.
            output_tokens_per_s: What came of it.
        """
        if self.zero_s is None:
            return {}
        told, *others = [_told(seen, self.zero_s, window_s) for seen in self.seen]
        urls = [seen.target.url for seen in self.seen[1:]]
        named = {target.url for target in self._named}
        exporters = {url: other for url, other in zip(urls, others, strict=True) if other or url in named}
        power_w = sum(_mean_power_w(seen, self.zero_s, window_s) for seen in self.seen)
        if power_w:
            told["energy_j"] = power_w * (window_s[1] - window_s[0])
        if power_w and output_tokens_per_s:
            told["joules_per_output_token"] = power_w / output_tokens_per_s
        return told | ({"exporters": exporters} if exporters else {})


def _told(seen: Seen, zero_s: float, window_s: Interval) -> dict[str, Any]:
    told: dict[str, Any] = {}
    series: dict[str, list[tuple[float, float]]] = {}
    for name, quantity in QUANTITIES.items():
        times_s, values = _course(_points(seen, name, zero_s), quantity)
        inside = values[(times_s >= window_s[0]) & (times_s <= window_s[1])]
        if len(inside):
            told[name] = {
                "mean": float(inside.mean()), "min": float(inside.min()), "max": float(inside.max()),
                "samples": len(inside),
            }  # fmt: skip
        if len(values) and name in SERIES:
            series[name] = _thinned(times_s, values)
    if seen.first is not None and seen.last is not None:
        told |= _changes(seen.first.totals, seen.last.totals)
    return told | ({"series": series} if series else {})


def _points(seen: Seen, name: str, zero_s: float) -> Floats:
    """Return the looks as rows of seconds since the common start and value."""
    return np.array(seen.series.get(name, ()), dtype=float).reshape(-1, 2) - (zero_s, 0.0)


def _course(points: Floats, quantity: Quantity) -> tuple[Floats, Floats]:
    """Return times since the start, none before it, and values; a counter's are those between two looks."""
    times_s, values = points.T
    if quantity.from_rate is not None:
        per_s = np.diff(values) / np.diff(times_s)
        is_whole = per_s >= 0  # or the counter began anew
        times_s = ((times_s[1:] + times_s[:-1]) / 2)[is_whole]
        values = np.array([quantity.from_rate(rate) for rate in per_s[is_whole]])
    return times_s[times_s >= 0], values[times_s >= 0]


def _thinned(times_s: Floats, values: Floats) -> list[tuple[float, float]]:
    """Return points of a course; of a long one the means of neighbours."""
    groups = np.array_split(np.column_stack((times_s, values)), min(len(values), _MOST_POINTS))
    means = (group.mean(axis=0) for group in groups)
    return [(round(float(at_s), 2), float(f"{value:.5g}")) for at_s, value in means]


def _mean_power_w(seen: Seen, zero_s: float, window_s: Interval) -> float:
    """Return the power of all GPUs within the window: by their energy counters, or else by the power they tell.

    Exporters look at GPUs in periods of their own, so a counter counts from one new value to another.
    """
    energy, power = _points(seen, "gpu_energy_j", zero_s), _points(seen, "gpu_power_w", zero_s)
    renewed = energy[1:][np.diff(energy[:, 1]) != 0]
    renewed, power = (rows[(rows[:, 0] >= window_s[0]) & (rows[:, 0] <= window_s[1])] for rows in (renewed, power))
    if len(renewed) >= 2 and (np.diff(renewed[:, 1]) > 0).all():
        span_s, energy_j = renewed[-1] - renewed[0]
        return float(energy_j / span_s)
    return float(power[:, 1].mean()) if len(power) else 0.0


def _changes(before: Totals, after: Totals) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for name, names in COUNTERS.items():
        known = next((series for series in names if series in before and series in after), None)
        if known is not None and after[known] >= before[known]:  # or the server began anew
            told[name] = after[known] - before[known]
    if told.get("prefix_cache_queries"):
        told["prefix_cache_hit_ratio"] = told.get("prefix_cache_hits", 0.0) / told["prefix_cache_queries"]
    for name, metric in HISTOGRAMS.items():
        histogram = _histogram(metric, before, after)
        if histogram:
            told[name] = histogram
    return told


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
