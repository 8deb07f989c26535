"""Records of requests to figures. Pure: no clock, no I/O.

Definitions, all over successful requests that are not warm-up:

- TTFT: from sending the request, connecting included, to the first piece with text in it.
- Tokens per chunk k: 1 where the server's count exceeds the chunks by at most one (the unseen end-of-sequence
  token), else tokens / chunks (speculative decoding, stream intervals).
- ITL: each gap between pieces divided by k, one sample a gap. TPOT: one sample a request, the time from the
  first to the last piece divided by the tokens after the first piece. For one token a chunk TPOT is
  ``vllm bench serve``'s (latency - TTFT) / (tokens - 1).
- E2E: from sending to the end of the body. Rates: over the time from the start to the end of the last
  request.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from client.engine.spec import ERROR_CLASSES, RequestRecord

# Above this median lateness of its own timers the client measures itself as much as the server.
MAX_LOOP_LAG_S = 0.02


@dataclass(frozen=True, slots=True)
class Distribution:
    """Mean, percentiles and maximum of ``count`` samples; None where there is no sample."""

    mean: float | None
    p50: float | None
    p90: float | None
    p95: float | None
    p99: float | None
    max: float | None
    count: int


@dataclass(frozen=True, slots=True)
class LoadFigures:
    """The figures of one load. Times in seconds, rates per second of ``duration_s``.

    ``failures`` has every class, zeros included. ``tokens_per_second`` maps a client to its output tokens
    over the span from its first request's sending to its last one's end; ``requests_per_client`` to
    {"successful", "failed"}. Keys are client ids as text, as JSON wants them.
    ``e2e_failed_s`` tells how long failures took. ``unfinished`` were asked for and left no record.
    """

    duration_s: float
    total: int
    successful: int
    failed: int
    unfinished: int
    failures: dict[str, int]
    failed_share: float
    ttft_s: Distribution
    itl_s: Distribution
    tpot_s: Distribution
    e2e_s: Distribution
    e2e_failed_s: Distribution
    client_loop_lag_s: Distribution
    prompt_tokens: int
    output_tokens: int
    output_tokens_per_s: float
    total_tokens_per_s: float
    request_per_s: float
    tokens_per_second: dict[str, float]
    requests_per_client: dict[str, dict[str, int]]
    tokens_source: str
    warmup_requests: int
    warmup_failed: int


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the value at ``share`` (0..1) of ``ordered``, linear between neighbours, as
    ``numpy.percentile``.

    Raises:
        ValueError: ``ordered`` is empty.
    """
    if not ordered:
        raise ValueError("no percentile of no samples")
    position = share * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def distribution(samples: Iterable[float]) -> Distribution:
    """Return the distribution of ``samples``."""
    ordered = sorted(samples)
    if not ordered:
        return Distribution(None, None, None, None, None, None, 0)
    p50, p90, p95, p99 = (percentile(ordered, share) for share in (0.5, 0.9, 0.95, 0.99))
    return Distribution(math.fsum(ordered) / len(ordered), p50, p90, p95, p99, ordered[-1], len(ordered))


def tokens_per_chunk(record: RequestRecord) -> float:
    """Return how many tokens a piece of ``record``'s stream carried; see the module for the rule."""
    if not record.chunks or record.completion_tokens - record.chunks <= 1:
        return 1.0
    return record.completion_tokens / record.chunks


def inter_token_s(record: RequestRecord) -> list[float]:
    """Return the time per token of each gap after the first arrival, in order."""
    per_chunk = tokens_per_chunk(record)
    return [gap / per_chunk for gap in record.chunk_gaps_s]


def time_per_output_token_s(record: RequestRecord) -> float | None:
    """Return the mean time per token after the first piece; None for a stream of a single arrival."""
    gaps = len(record.chunk_gaps_s)
    if not gaps or record.first_token_at_s is None or record.last_token_at_s is None:
        return None
    return (record.last_token_at_s - record.first_token_at_s) / (gaps * tokens_per_chunk(record))


def compute_figures(records: Iterable[RequestRecord], expected: int) -> LoadFigures:
    """Return the figures of ``records``, of which ``expected`` were asked for without the warm-up."""
    everything = list(records)
    warmups = [record for record in everything if record.warmup]
    measured = [record for record in everything if not record.warmup]
    good = [record for record in measured if record.is_success]
    bad = [record for record in measured if not record.is_success]
    duration_s = max((record.eof_at_s for record in measured), default=0.0)
    output_tokens = sum(record.completion_tokens for record in good)
    prompt_tokens = sum(record.prompt_tokens or 0 for record in good)
    by_class = Counter(record.error_class for record in bad)
    tpots = (time_per_output_token_s(record) for record in good)
    return LoadFigures(
        duration_s=duration_s,
        total=len(measured),
        successful=len(good),
        failed=len(bad),
        unfinished=expected - len(measured),
        failures={name: by_class[name] for name in ERROR_CLASSES},
        failed_share=len(bad) / len(measured) if measured else 0.0,
        ttft_s=distribution(record.ttft_s for record in good if record.ttft_s is not None),
        itl_s=distribution(sample for record in good for sample in inter_token_s(record)),
        tpot_s=distribution(tpot for tpot in tpots if tpot is not None),
        e2e_s=distribution(record.e2e_s for record in good),
        e2e_failed_s=distribution(record.e2e_s for record in bad),
        client_loop_lag_s=distribution(record.loop_lag_s for record in measured),
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        output_tokens_per_s=_rate(output_tokens, duration_s),
        total_tokens_per_s=_rate(output_tokens + prompt_tokens, duration_s),
        request_per_s=_rate(len(good), duration_s),
        tokens_per_second=_tokens_per_second(measured),
        requests_per_client=_requests_per_client(measured),
        tokens_source=_tokens_source(good),
        warmup_requests=len(warmups),
        warmup_failed=sum(not record.is_success for record in warmups),
    )


def invalid_reasons(figures: LoadFigures, *, max_failed_share: float, cancelled: bool = False) -> list[str]:
    """Return why ``figures`` must not be published as a measurement; empty if nothing speaks against it."""
    reasons = []
    if cancelled:
        reasons.append("the benchmark was cancelled")
    if figures.unfinished:
        reasons.append(f"{figures.unfinished} requests did not finish")
    if not figures.successful:
        reasons.append("no request succeeded")
    if figures.failed_share > max_failed_share:
        classes = ", ".join(f"{name}: {count}" for name, count in figures.failures.items() if count)
        reasons.append(
            f"{figures.failed} of {figures.total} requests failed ({classes}); "
            f"the allowed share is {max_failed_share:g}"
        )
    lag_s = figures.client_loop_lag_s.p50
    if lag_s is not None and lag_s > MAX_LOOP_LAG_S:
        reasons.append(
            f"the client was saturated: its own timers ran {lag_s * 1000:.0f} ms late in the median "
            f"(allowed: {MAX_LOOP_LAG_S * 1000:.0f} ms); give it more CPUs and processes"
        )
    return reasons


def _rate(amount: float, duration_s: float) -> float:
    return amount / duration_s if duration_s > 0 else 0.0


def _tokens_source(good: list[RequestRecord]) -> str:
    sources = {record.tokens_source for record in good if record.tokens_source is not None}
    return "mixed" if len(sources) > 1 else next(iter(sources), "none")


def _by_client(measured: list[RequestRecord]) -> dict[int, list[RequestRecord]]:
    clients: dict[int, list[RequestRecord]] = {}
    for record in measured:
        clients.setdefault(record.client_id, []).append(record)
    return dict(sorted(clients.items()))


def _tokens_per_second(measured: list[RequestRecord]) -> dict[str, float]:
    rates = {}
    for client_id, records in _by_client(measured).items():
        tokens = sum(record.completion_tokens for record in records if record.is_success)
        span_s = max(record.eof_at_s for record in records) - min(record.sent_at_s for record in records)
        rates[str(client_id)] = _rate(tokens, span_s)
    return rates


def _requests_per_client(measured: list[RequestRecord]) -> dict[str, dict[str, int]]:
    counts = {}
    for client_id, records in _by_client(measured).items():
        successful = sum(record.is_success for record in records)
        counts[str(client_id)] = {"successful": successful, "failed": len(records) - successful}
    return counts
