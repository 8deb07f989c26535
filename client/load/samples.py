"""Samples of each latency and rate of a load, and what they would have been in other draws of the same requests.

Metrics are named ``ttft_p99`` or ``e2e_mean`` (milliseconds), ``output_tokens_per_s`` and ``failed_share``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from client.load.bootstrap import (
    MIN_BEYOND,
    MIN_REQUESTS,
    Resampler,
    block_length,
    divide,
    percentile_replicates,
    quantiles,
)
from client.load.columns import Columns, Floats, Ints
from client.load.slo import Slo, meets

PERCENTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p999": 0.999}
LATENCIES = ("ttft", "itl", "tpot", "e2e")
"""Latencies that are resampled; the others are told without intervals."""
_RESAMPLED = (*LATENCIES, "ttft_service", "e2e_service")


@dataclass(frozen=True)
class Samples:
    """Samples of a latency in seconds.

    Attributes:
        values_s: One for each request, NaN for none; or any number for each, one request after the other.
        per_request: In the second case, how many each request has.
    """

    values_s: Floats
    per_request: Ints | None = None

    @cached_property
    def ordered_ms(self) -> Floats:
        """All samples in milliseconds, ascending."""
        ordered = np.sort(self.values_s)  # NaN last
        return ordered[: np.searchsorted(ordered, np.nan)] * 1000

    def percentile(self, level: float) -> float:
        """Return the value at ``level`` (0 to 1) in milliseconds, linear between neighbours.

        Raises:
            IndexError: there is no sample.
        """
        return float(quantiles(self.ordered_ms, np.array([level]))[0])


@dataclass(frozen=True)
class Replicates:
    """What each metric would have been in other draws of the same requests.

    Attributes:
        values: By metric, one for each resample; a metric with too few samples is absent.
        block: How many requests in a row were kept together.
    """

    values: dict[str, Floats]
    block: int


def latencies_of(columns: Columns) -> dict[str, Samples]:
    """Return the samples of each latency; of requests that succeeded, but for ``e2e_failed``, ``schedule_delay`` and
    ``client_loop_lag``.
    """

    def of_success(values_s: Floats) -> Samples:
        return Samples(np.where(columns.is_success, values_s, np.nan))

    first_s, eof_s = columns.first_s, columns.eof_s
    per_token = Samples(columns.token_gaps_s, columns.gap_count)
    is_single = columns.token_gaps_s is columns.gaps_s
    return {
        "ttft": of_success(first_s - columns.start_s),
        "ttft_service": of_success(first_s - columns.sent_s),
        "first_content": of_success(columns.content_s - columns.start_s),
        "itl": per_token,
        "itl_chunk": per_token if is_single else Samples(columns.gaps_s, columns.gap_count),
        "tpot": of_success(columns.tpot_s),
        "e2e": of_success(eof_s - columns.start_s),
        "e2e_service": of_success(eof_s - columns.sent_s),
        "e2e_failed": Samples(np.where(columns.is_success, np.nan, eof_s - columns.start_s)),
        "schedule_delay": Samples(columns.sent_s - columns.intended_s),
        "client_loop_lag": Samples(np.ascontiguousarray(columns.rows["loop_lag_s"])),
    }


def ratios_of(columns: Columns, slos: Sequence[Slo]) -> dict[str, tuple[float, Floats, Floats]]:
    """Return each rate and share with the amounts and the counts or seconds, one for each request, it is the ratio of.

    Rates are those between completions, in their order.
    """
    if not len(columns):
        return {}
    order = np.argsort(columns.eof_s, kind="stable")
    waits_s = np.diff(columns.eof_s[order], prepend=columns.start_s.min())
    amounts = {
        "requests_per_s": columns.is_success,
        "output_tokens_per_s": columns.tokens,
        "total_tokens_per_s": columns.tokens + columns.prompt_tokens,
    }
    shares = {"failed_share": ~columns.is_success}
    if slos:
        good = meets(columns, slos)
        amounts["goodput_per_s"] = good
        shares["good_share"] = good
    ones = np.ones(len(columns))
    pairs = {name: (amount[order].astype(float), waits_s) for name, amount in amounts.items()}
    pairs |= {name: (share.astype(float), ones) for name, share in shares.items()}
    return {
        name: (float(top.sum() / bottom.sum()) if bottom.sum() > 0 else 0.0, top, bottom)
        for name, (top, bottom) in pairs.items()
    }


def metrics_of(columns: Columns, slos: Sequence[Slo] = ()) -> dict[str, float]:
    """Return each metric's own value; one without samples is absent."""
    values = {}
    for name, samples in latencies_of(columns).items():
        if name in LATENCIES and len(samples.ordered_ms):
            values[f"{name}_mean"] = float(samples.ordered_ms.mean())
            values |= {f"{name}_{figure}": samples.percentile(level) for figure, level in PERCENTILES.items()}
    return values | {name: point for name, (point, _, _) in ratios_of(columns, slos).items()}


def resample(columns: Columns, latencies: Mapping[str, Samples], slos: Sequence[Slo] = (), seed: int = 0) -> Replicates:
    """Return the replicates of every metric; none for fewer than ten requests.

    Args:
        columns: The requests.
        latencies: Their latencies_of().
        slos: What a good request meets.
        seed: Of the draws.
    """
    if len(columns) < MIN_REQUESTS:
        return Replicates({}, 1)
    block = block_length([latencies[name].values_s[columns.is_success] for name in ("ttft", "e2e")])
    resampler = Resampler(len(columns), block, seed)
    values: dict[str, Floats] = {}
    for name in _RESAMPLED:
        samples = latencies[name]
        if len(samples.ordered_ms) >= MIN_REQUESTS:
            values |= _latency_replicates(resampler, name, samples)
    for name, (_, top, bottom) in ratios_of(columns, slos).items():
        values[name] = divide(*resampler.draw([resampler.cells(top), resampler.cells(bottom)]))
    return Replicates(values, block)


def _latency_replicates(resampler: Resampler, name: str, samples: Samples) -> dict[str, Floats]:
    values_s, per_request, ordered_ms = samples.values_s, samples.per_request, samples.ordered_ms
    if per_request is None:
        cells = [resampler.cells(~np.isnan(values_s)), resampler.cells(np.nan_to_num(values_s))]
    else:
        cells = [resampler.cells(per_request.astype(float)), resampler.cells(values_s, per_request)]
    levels = {figure: level for figure, level in PERCENTILES.items() if len(ordered_ms) * (1 - level) >= MIN_BEYOND}
    # A percentile lies between two samples, or on several that are the same but for their rounding.
    limits_ms = {figure: samples.percentile(level) * (1 + 1e-12) for figure, level in levels.items()}
    cells += [resampler.cells(values_s <= limit_ms / 1000, per_request) for limit_ms in limits_ms.values()]
    counts, sums_s, *below = resampler.draw(cells)
    replicates = {f"{name}_mean": divide(sums_s, counts) * 1000}
    for (figure, limit_ms), number in zip(limits_ms.items(), below, strict=True):
        share = float(np.searchsorted(ordered_ms, limit_ms, side="right")) / len(ordered_ms)
        shares = divide(number, counts)
        replicates[f"{name}_{figure}"] = percentile_replicates(shares, share, levels[figure], ordered_ms)
    return replicates
