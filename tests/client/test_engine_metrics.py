from __future__ import annotations

from array import array

import numpy as np
import pytest

from client.engine.metrics import (
    compute_figures,
    distribution,
    inter_token_s,
    invalid_reasons,
    percentile,
    time_per_output_token_s,
)
from client.engine.spec import ErrorClass, RequestRecord


def record(
    client_id: int = 0,
    *,
    sent_at_s: float = 0.0,
    ttft_s: float = 0.1,
    gaps_s: tuple[float, ...] = (0.02, 0.04),
    tokens: int = 3,
    chunks: int = 3,
    prompt_tokens: int = 10,
    error_class: ErrorClass | None = None,
    warmup: bool = False,
    loop_lag_s: float = 0.0,
) -> RequestRecord:
    first_token_at_s = sent_at_s + ttft_s
    last_token_at_s = first_token_at_s + sum(gaps_s)
    return RequestRecord(
        client_id=client_id,
        index=0,
        intended_at_s=sent_at_s,
        sent_at_s=sent_at_s,
        eof_at_s=last_token_at_s + 0.01,
        first_token_at_s=first_token_at_s,
        last_token_at_s=last_token_at_s,
        prompt_tokens=prompt_tokens,
        completion_tokens=tokens,
        tokens_source="usage",
        chunks=chunks,
        chunk_gaps_s=array("d", gaps_s),
        error_class=error_class,
        warmup=warmup,
        loop_lag_s=loop_lag_s,
    )


@pytest.mark.parametrize("count", [1, 2, 3, 10, 99, 1000])
def test_distribution_random_samples_agrees_with_numpy(count: int) -> None:
    samples = [float(sample) for sample in np.random.default_rng(count).lognormal(size=count)]
    got = distribution(samples)
    assert got.count == count
    assert got.mean == pytest.approx(np.mean(samples))
    assert got.max == max(samples)
    assert (got.p50, got.p90, got.p95, got.p99) == pytest.approx(tuple(np.percentile(samples, [50, 90, 95, 99])))


def test_distribution_no_samples_is_null() -> None:
    assert distribution([]).mean is None
    assert distribution([]).count == 0
    with pytest.raises(ValueError, match="no samples"):
        percentile([], 0.5)


def test_itl_one_token_a_chunk_is_the_gaps() -> None:
    assert inter_token_s(record()) == [0.02, 0.04]
    assert time_per_output_token_s(record()) == pytest.approx(0.03)


def test_itl_unseen_end_token_changes_nothing() -> None:
    assert inter_token_s(record(tokens=4, chunks=3)) == [0.02, 0.04]


def test_itl_several_tokens_a_chunk_is_divided_by_them() -> None:
    speculative = record(tokens=12, chunks=3)
    assert inter_token_s(speculative) == pytest.approx([0.005, 0.01])
    assert time_per_output_token_s(speculative) == pytest.approx(0.06 / 8)


def test_tpot_single_chunk_is_none() -> None:
    assert time_per_output_token_s(record(gaps_s=(), tokens=1, chunks=1)) is None


def test_figures_mixed_records_count_every_request() -> None:
    records = [
        record(0, tokens=30),
        record(1, sent_at_s=0.5, tokens=20),
        record(1, sent_at_s=0.1, error_class="timeout", tokens=7),
        record(2, error_class="http_status"),
        record(3, warmup=True),
        record(3, warmup=True, error_class="connect"),
    ]
    figures = compute_figures(records, expected=5)
    assert (figures.total, figures.successful, figures.failed, figures.unfinished) == (4, 2, 2, 1)
    assert figures.failures == {
        "connect": 0,
        "timeout": 1,
        "http_status": 1,
        "protocol": 0,
        "server_error": 0,
        "zero_tokens": 0,
    }
    assert figures.failed_share == 0.5
    assert figures.duration_s == pytest.approx(0.67)
    assert figures.output_tokens == 50
    assert figures.output_tokens_per_s == pytest.approx(50 / 0.67)
    assert figures.total_tokens_per_s == pytest.approx(70 / 0.67)
    assert figures.request_per_s == pytest.approx(2 / 0.67)
    assert figures.tokens_per_second["0"] == pytest.approx(30 / 0.17)
    assert figures.tokens_per_second["1"] == pytest.approx(20 / 0.57)
    assert figures.tokens_per_second["2"] == 0.0
    assert figures.requests_per_client["1"] == {"successful": 1, "failed": 1}
    assert figures.ttft_s.count == figures.e2e_s.count == figures.e2e_failed_s.count == 2
    assert (figures.warmup_requests, figures.warmup_failed) == (2, 1)


def test_figures_no_records_hold_no_number() -> None:
    figures = compute_figures([], expected=3)
    assert figures.output_tokens_per_s == 0.0
    reasons = invalid_reasons(figures, max_failed_share=0.05)
    assert reasons == ["3 requests did not finish", "no request succeeded"]


def test_invalid_reasons_clean_records_are_none() -> None:
    assert invalid_reasons(compute_figures([record()], expected=1), max_failed_share=0.0) == []


def test_invalid_reasons_failures_over_the_share_are_named() -> None:
    figures = compute_figures([record(), record(error_class="connect")], expected=2)
    assert invalid_reasons(figures, max_failed_share=0.5) == []
    (reason,) = invalid_reasons(figures, max_failed_share=0.49)
    assert "1 of 2 requests failed (connect: 1)" in reason


def test_invalid_reasons_late_client_is_saturated() -> None:
    figures = compute_figures([record(loop_lag_s=0.05)], expected=1)
    (reason,) = invalid_reasons(figures, max_failed_share=0.0)
    assert "saturated" in reason
