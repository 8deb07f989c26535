"""Figures of measurements whose truth is known."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from client.load.analysis import Options, compute_figures
from client.load.export import iter_records
from client.load.figures import Distribution, metrics_of
from client.load.rows import WARMUP
from client.load.slo import Slo, SloError, parse_slos
from client.load.validity import Limits, invalid_reasons
from tests.client.load.synthetic import closed_loop, failed, measurement, open_loop


def test_percentiles_are_numpys() -> None:
    made = open_loop(1000)
    figures = compute_figures(made)
    ttft_ms = (made.rows["first_content_s"] - made.rows["sent_s"]) * 1000
    for values_ms, told in ((ttft_ms, figures.ttft_ms), (made.gaps * 1000, figures.itl_ms)):
        wanted = np.percentile(values_ms, [50, 90, 95, 99, 99.9])
        assert [told.p50, told.p90, told.p95, told.p99, told.p999] == pytest.approx(wanted, rel=1e-9)
        assert (told.mean, told.max) == pytest.approx((values_ms.mean(), values_ms.max()))


def test_figures_agree_with_those_of_the_exported_records() -> None:
    made = failed(closed_loop(4, 30), [3, 50], "http_status")
    made.rows["completion_tokens"][10], made.rows["usage_tokens"][10] = 32, 32  # four tokens in a chunk
    made.rows["completion_tokens"][11] = 9  # the unseen end of sequence
    made.rows["phase"][60] = WARMUP
    measured = [record for record in iter_records(made) if not record["warmup"]]
    good = [record for record in measured if record["error_class"] is None]

    def per_chunk(record: dict[str, Any]) -> float:
        tokens, chunks = record["completion_tokens"], record["chunks"]
        return 1.0 if tokens - chunks <= 1 else tokens / chunks

    samples_s = {
        "ttft": [record["first_token_at_s"] - record["sent_at_s"] for record in good],
        "itl": [gap / per_chunk(record) for record in good for gap in record["chunk_gaps_s"]],
        "tpot": [(record["last_token_at_s"] - record["first_token_at_s"]) / (7 * per_chunk(record)) for record in good],
        "e2e": [record["eof_at_s"] - record["sent_at_s"] for record in good],
    }
    lasted_s = max(record["eof_at_s"] for record in measured)
    ours = compute_figures(made, Options(expected=121))
    assert (ours.total, ours.successful, ours.failed, ours.unfinished, ours.warmup_requests) == (119, 117, 2, 2, 1)
    assert {name: count for name, count in ours.failures.items() if count} == {"http_status": 2}
    for name, samples in samples_s.items():
        told: Distribution = getattr(ours, f"{name}_ms")
        wanted = [np.mean(samples), *np.percentile(samples, [50, 90, 95, 99]), max(samples)]
        # The records carry their times to the microsecond.
        found = [told.mean, told.p50, told.p90, told.p95, told.p99, told.max]
        assert found == pytest.approx(np.array(wanted) * 1000, abs=2e-3), name
        assert told.count == len(samples)
    tokens = sum(record["completion_tokens"] for record in good)
    assert ours.output_tokens_per_s == pytest.approx(tokens / lasted_s, rel=1e-5)
    assert ours.requests_per_s == pytest.approx(117 / lasted_s, rel=1e-5)
    first = [record for record in measured if record["client_id"] == 0]
    span_s = max(record["eof_at_s"] for record in first) - min(record["sent_at_s"] for record in first)
    own = sum(record["completion_tokens"] for record in first if record["error_class"] is None)
    assert ours.tokens_per_second["0"] == pytest.approx(own / span_s, rel=1e-4)
    assert ours.requests_per_client["0"] == {"successful": 29, "failed": 1}


def test_open_loop_latency_counts_from_the_intended_time() -> None:
    sent_s = np.arange(100) * 0.1 + 1.0
    figures = compute_figures(measurement(sent_s, 0.05, np.full((100, 9), 0.005), late_s=0.02))
    assert figures.is_open_loop
    assert (figures.ttft_ms.p50, figures.ttft_service_ms.p50) == pytest.approx((70, 50))
    assert (figures.e2e_ms.mean, figures.e2e_service_ms.mean) == pytest.approx((116, 96))
    assert figures.schedule_delay_ms.p99 == pytest.approx(20)
    assert (figures.itl_ms.p999, figures.tpot_ms.p50) == pytest.approx((5, 5))


def test_closed_loop_latency_counts_from_sending() -> None:
    figures = compute_figures(measurement(np.arange(20.0), 0.05, np.full((20, 9), 0.005), late_s=0.02, client=0))
    assert not figures.is_open_loop
    assert figures.ttft_ms.p50 == figures.ttft_service_ms.p50 == pytest.approx(50)
    assert figures.rate_asked_per_s is None


def test_reasoning_is_the_first_token_and_content_is_told_beside_it() -> None:
    made = measurement(np.arange(20.0), 0.5, np.full((20, 3), 0.01))
    made.rows["first_reasoning_s"] = made.rows["sent_s"] + 0.1
    figures = compute_figures(made)
    assert (figures.ttft_ms.p50, figures.first_content_ms.p50) == pytest.approx((100, 500))


def test_several_tokens_in_a_chunk_divide_the_gap() -> None:
    made = measurement(np.arange(20.0), 0.5, np.full((20, 3), 0.02), completion_tokens=16, usage_tokens=16)
    figures = compute_figures(made)
    assert (figures.itl_ms.p50, figures.itl_chunk_ms.p50, figures.tpot_ms.p50) == pytest.approx((5, 20, 5))


def test_a_stream_of_one_arrival_has_no_time_between_tokens() -> None:
    figures = compute_figures(
        measurement(np.arange(20.0), 0.5, np.empty((20, 0))), Options(slos=parse_slos("itl_ms<=1"))
    )
    assert figures.itl_ms == figures.tpot_ms == Distribution()
    assert figures.good_share == 1.0


def test_nothing_measured_gives_figures_without_numbers() -> None:
    empty = measurement(np.empty(0), np.empty(0), np.empty((0, 3)))
    figures = compute_figures(empty)
    assert figures.ttft_ms == figures.e2e_ms == Distribution()
    assert figures.requests_per_s == figures.concurrency_mean == figures.total == 0


def test_failures_are_counted_by_class_and_left_out_of_latencies() -> None:
    figures = compute_figures(failed(failed(open_loop(200), [1, 2], "timeout"), [5], "connect"))
    assert {name: count for name, count in figures.failures.items() if count} == {"timeout": 2, "connect": 1}
    assert (figures.total, figures.successful, figures.failed) == (200, 197, 3)
    assert figures.failed_share == pytest.approx(0.015)
    assert (figures.ttft_ms.count, figures.e2e_failed_ms.count, figures.itl_ms.count) == (197, 3, 197 * 15)


def test_goodput_counts_requests_that_meet_every_objective() -> None:
    ttft_s = np.where(np.arange(100) < 80, 0.1, 0.3)
    gaps_s = np.full((100, 4), 0.01)
    gaps_s[:10] = 0.03
    made = failed(measurement(np.arange(100) * 0.1, ttft_s, gaps_s), [70], "server_error")
    figures = compute_figures(made, Options(slos=parse_slos("ttft_ms<=200, itl_ms<=20")))
    assert figures.good_share == pytest.approx(0.69)
    assert figures.goodput_per_s == pytest.approx(69 / figures.duration_s)
    assert metrics_of(figures)["goodput_per_s"] == figures.goodput_per_s


@pytest.mark.parametrize(
    "text",
    ["", "ttft_ms", "ttft_ms<200", "ttft_ms<=x", "ttft_ms<=nan", "ttft_ms<=0", "ttft<=5", "ttft_ms<=1,ttft_ms<=2"],
)
def test_slos_that_cannot_be_read_are_refused(text: str) -> None:
    with pytest.raises(SloError, match="SLO"):
        parse_slos(text)


def test_slos_are_read() -> None:
    assert parse_slos(" ttft_ms <= 200 ,e2e_ms<=1e4") == (Slo("ttft_ms", 200.0), Slo("e2e_ms", 10000.0))


def test_rates_and_concurrency_of_a_closed_loop() -> None:
    figures = compute_figures(closed_loop(8, 100))
    assert figures.concurrency_max == 8
    assert figures.little is not None
    assert figures.little.in_flight == pytest.approx(8, rel=0.01)
    assert figures.little.error < figures.little.allowed
    assert figures.requests_per_s == pytest.approx(800 / figures.duration_s)
    assert set(figures.tokens_per_second) == {str(client) for client in range(8)}


def test_a_window_leaves_out_warm_up_and_cool_down() -> None:
    slow = np.where(np.arange(100) < 20, 0.9, 0.1)
    made = measurement(np.arange(100) * 0.1, slow, np.full((100, 9), 0.005))
    whole = compute_figures(made)
    figures = compute_figures(made, Options(warmup_s=2.0, cooldown_s=1.0))
    assert whole.ttft_ms.max == pytest.approx(900)
    assert figures.ttft_ms.max == pytest.approx(100)
    assert figures.window_s == pytest.approx((2.0, whole.duration_s - 1.0))
    assert figures.total == 71
    # Ten requests of ten tokens a second; those that began before the window end in it as well.
    assert figures.output_tokens_per_s == pytest.approx(100 + 90 / figures.duration_s, rel=0.03)


def test_a_window_beyond_the_run_has_nothing_in_it() -> None:
    figures = compute_figures(open_loop(50), Options(warmup_s=1000.0))
    assert (figures.total, figures.duration_s, figures.requests_per_s) == (0, 0.0, 0.0)
    assert figures.ttft_ms == Distribution()


def test_steady_state_leaves_out_ramp_and_drain() -> None:
    random = np.random.default_rng(1)
    # One more client each half second up to 20, for 60 s; then they leave.
    starts_s = np.arange(20) * 0.5
    sent_s = np.concatenate([np.arange(start_s, 60 + start_s * 0.5, 0.5) for start_s in starts_s])
    made = measurement(sent_s, 0.4 + 0.02 * random.random(len(sent_s)), np.full((len(sent_s), 4), 0.02), client=0)
    steady = compute_figures(made).steady
    assert steady.is_found
    assert 6 <= steady.begin_s <= 14
    assert 55 <= steady.end_s <= 63
    only = compute_figures(made, Options(only_steady=True))
    assert only.window_s == (steady.begin_s, steady.end_s)
    assert only.concurrency_mean == pytest.approx(20 * 0.491 / 0.5, rel=0.03)


def test_a_queue_that_grows_is_never_steady() -> None:
    sent_s = np.arange(1000) * 0.01
    figures = compute_figures(measurement(sent_s, 0.05 + sent_s, np.full((1000, 1), 0.001)))
    assert not figures.steady.is_found
    assert figures.rate_asked_per_s == pytest.approx(100, rel=1e-3)
    assert figures.rate_finished_per_s == pytest.approx(50, rel=1e-2)


def test_a_slow_server_keeps_up_with_the_rate() -> None:
    # Ten seconds of requests, each of which takes two to six.
    figures = compute_figures(
        measurement(np.arange(500) * 0.02, np.random.default_rng(0).uniform(2, 6, 500), np.empty((500, 0)))
    )
    assert figures.rate_asked_per_s == pytest.approx(50)
    assert figures.latency_growth is not None
    assert figures.latency_growth_error is not None
    assert abs(figures.latency_growth) < 3 * figures.latency_growth_error < 0.1
    assert not any("overdriven" in reason for reason in invalid_reasons(figures, Limits()))


def test_the_same_seed_gives_the_same_intervals() -> None:
    made = open_loop(300)
    assert compute_figures(made) == compute_figures(made)
    assert compute_figures(made).ttft_ms.intervals != compute_figures(made, Options(seed=1)).ttft_ms.intervals


def test_intervals_are_left_out_where_samples_are_too_few() -> None:
    intervals = compute_figures(open_loop(100)).ttft_ms.intervals
    assert {"mean", "p50", "p90", "p95"} == set(intervals)
    assert compute_figures(open_loop(9)).ttft_ms.intervals == {}


def test_unfinished_requests_are_those_without_a_record() -> None:
    made = open_loop(50)
    assert compute_figures(made, Options(expected=60)).unfinished == 10
    assert compute_figures(made).unfinished == 0
    assert compute_figures(replace(made, was_cancelled=True)).was_cancelled


def test_all_failed_has_rates_of_zero() -> None:
    figures = compute_figures(failed(open_loop(50), list(range(50)), "connect"))
    assert figures.requests_per_s == figures.output_tokens_per_s == 0.0
    assert figures.ttft_ms.mean is None
    assert figures.tokens_source == "none"
    assert not any(math.isnan(value) for value in metrics_of(figures).values())
