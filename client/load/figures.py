"""The figures of a load, as they are told. Times are in milliseconds.

In an open loop latencies count from the time at which a request was meant to be sent, so that a client or a server that
falls behind cannot hide it ("coordinated omission"); the *service* times beside them count from sending. In a closed
loop the two are the same.
"""

from __future__ import annotations

import msgspec

from client.load.samples import LATENCIES, PERCENTILES
from client.load.slo import Slo
from client.load.timeline import Steady

Interval = tuple[float, float]
RATES = ("requests_per_s", "output_tokens_per_s", "total_tokens_per_s", "goodput_per_s", "good_share", "failed_share")


class Distribution(msgspec.Struct, frozen=True):
    """Samples in figures; None where there is no sample.

    Attributes:
        intervals: Confidence interval by the name of the figure; absent where there are too few samples for one.
    """

    mean: float | None = None
    p50: float | None = None
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None
    p999: float | None = None
    max: float | None = None
    count: int = 0
    intervals: dict[str, Interval] = {}


class Little(msgspec.Struct, frozen=True):
    """Little's law: where nothing grows or shrinks, requests under way = arrivals per second × time each takes.

    Attributes:
        in_flight: Mean number under way within ``window_s``.
        rate_per_s, time_s: Requests that ended within it, and the mean time that those had taken.
        error: |rate × time / in_flight − 1|.
        allowed: What the two ends of the window may cause: twice the time of a request in the window, and 5 %.
    """

    window_s: Interval
    in_flight: float
    rate_per_s: float
    time_s: float
    error: float
    allowed: float


class Figures(msgspec.Struct, frozen=True):
    """The figures of one load. Rates are per second of ``duration_s``; a client's id is a text, as JSON wants it.

    Attributes:
        window_s: From when to when was measured, in seconds since the common start.
        steady: The steady part of the whole run.
        total: Requests that were meant to be sent within the window.
        unfinished: Asked for, and without a record; 0 if the load had no number of requests.
        ttft_ms, e2e_ms: From the intended time in an open loop, from sending in a closed one; ``…_service_ms`` always
            from sending. ``first_content_ms`` is the TTFT of what is no reasoning.
        itl_ms: One sample for each gap between pieces, divided by the tokens in a piece; ``itl_chunk_ms`` undivided.
        tpot_ms: One sample for each request.
        schedule_delay_ms: Sent − intended.
        rate_asked_per_s, rate_sent_per_s: Of the same requests, in an open loop; the first and the last 2 % of each are
            left out. These and the next are None for fewer than 50 requests.
        latency_growth: How much longer requests take for each second of the run, in seconds, by regression over twenty
            stretches of it; 0 unless the server falls behind.
        rate_finished_per_s: rate_asked_per_s / (1 + latency_growth): what the server keeps up with.
        concurrency_mean, concurrency_max: Requests under way.
        goodput_per_s, good_share: Requests that met all SLOs; None without any.
        client_busy_share: CPU time of the busiest worker by wall time; 0 for less than half a second.
        block: How many requests in a row the bootstrap kept together.
        intervals: Of the rates and shares, by name.
    """

    window_s: Interval
    duration_s: float
    steady: Steady
    is_open_loop: bool
    total: int
    successful: int
    successful_without_tokens: int
    failed: int
    failed_share: float
    unfinished: int
    failures: dict[str, int]
    warmup_requests: int
    warmup_failed: int
    was_cancelled: bool
    ttft_ms: Distribution
    ttft_service_ms: Distribution
    first_content_ms: Distribution
    itl_ms: Distribution
    itl_chunk_ms: Distribution
    tpot_ms: Distribution
    e2e_ms: Distribution
    e2e_service_ms: Distribution
    e2e_failed_ms: Distribution
    schedule_delay_ms: Distribution
    client_loop_lag_ms: Distribution
    prompt_tokens: int
    output_tokens: int
    tokens_source: str
    requests_per_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float
    rate_asked_per_s: float | None
    rate_sent_per_s: float | None
    rate_finished_per_s: float | None
    latency_growth: float | None
    latency_growth_error: float | None
    concurrency_mean: float
    concurrency_max: int
    little: Little | None
    slos: tuple[Slo, ...]
    goodput_per_s: float | None
    good_share: float | None
    tokens_per_second: dict[str, float]
    requests_per_client: dict[str, dict[str, int]]
    client_cpu_s: float
    client_busy_share: float
    client_start_s: float
    connections_opened: int
    confidence: float
    block: int
    intervals: dict[str, Interval]


def metrics_of(figures: Figures) -> dict[str, float]:
    """Return the figures that can be compared, by name: ``ttft_p99``, ``output_tokens_per_s``, ``failed_share``, …."""
    values: dict[str, float | None] = {}
    for latency in LATENCIES:
        distribution: Distribution = getattr(figures, f"{latency}_ms")
        values |= {f"{latency}_{figure}": getattr(distribution, figure) for figure in ("mean", *PERCENTILES)}
    values |= {name: getattr(figures, name) for name in RATES}
    return {name: value for name, value in values.items() if value is not None}
