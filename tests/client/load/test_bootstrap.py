"""Intervals that hold what they promise, on samples whose truth is known."""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt
import pytest

from client.load.analysis import Options, analyse, compute_figures
from client.load.bootstrap import Resampler, block_length
from client.load.columns import columns_of
from client.load.samples import Samples, _latency_replicates, latencies_of, resample
from tests.client.load.synthetic import closed_loop, failed, measurement, open_loop

Floats = npt.NDArray[np.float64]
_RUNS = 200


def _autoregressive(random: np.random.Generator, count: int, correlation: float) -> Floats:
    """Return a stationary AR(1) series of variance 1."""
    noise = random.standard_normal(count + 1000) * np.sqrt(1 - correlation**2)
    lags = correlation ** np.arange(200)
    return np.convolve(noise, lags)[1000 : 1000 + count]


def _coverage(correlation: float, count: int) -> dict[str, float]:
    """Return how often the intervals of a latency hold the truth, which is normal, 100 ms ± 10 ms."""
    truth = {"mean": 100.0, "p50": 100.0, "p90": 100 + 10 * 1.2815516}
    random = np.random.default_rng(7)
    held = dict.fromkeys(truth, 0)
    for _ in range(_RUNS):
        values_s = 0.1 + 0.01 * _autoregressive(random, count, correlation)
        resampler = Resampler(count, block_length([values_s]), seed=1)
        drawn = _latency_replicates(resampler, "ttft", Samples(values_s))
        for figure, value in truth.items():
            low, high = np.quantile(drawn[f"ttft_{figure}"], [0.025, 0.975])
            held[figure] += bool(low <= value <= high)
    return {figure: times / _RUNS for figure, times in held.items()}


def test_intervals_of_independent_requests_hold_the_truth() -> None:
    assert all(0.90 <= share <= 0.985 for share in _coverage(0.0, 400).values())


def test_intervals_of_requests_that_depend_on_each_other_hold_the_truth() -> None:
    assert all(share >= 0.86 for share in _coverage(0.8, 1000).values())


def test_blocks_are_longer_where_requests_depend_on_each_other() -> None:
    random = np.random.default_rng(1)
    lengths = [block_length([_autoregressive(random, 2000, correlation)]) for correlation in (0.0, 0.5, 0.9)]
    assert lengths[0] <= 20 < lengths[2]
    assert lengths == sorted(lengths)
    assert block_length([np.full(1000, 0.05)]) == 10


def test_the_interval_of_gaps_knows_that_those_of_a_request_belong_together() -> None:
    random = np.random.default_rng(3)
    count = 400
    of_request = 0.005 * random.gamma(4.0, 0.25, (count, 1))
    made = measurement(np.arange(count) * 0.1, 0.05, np.repeat(of_request, 50, axis=1))
    low, high = compute_figures(made).itl_ms.intervals["mean"]
    # Half of the requests' own standard deviation over the root of their number, times 1.96, on each side.
    assert (high - low) / 2 == pytest.approx(1.96 * 2.5 / np.sqrt(count), rel=0.25)


def test_the_interval_of_a_rate_is_that_of_a_poisson_count() -> None:
    figures = compute_figures(open_loop(2000, rate=100))
    low, high = figures.intervals["requests_per_s"]
    assert low < figures.requests_per_s < high
    assert (high - low) / 2 == pytest.approx(1.96 * 100 / np.sqrt(2000), rel=0.3)


def test_the_interval_of_a_share_is_that_of_a_binomial() -> None:
    made = open_loop(2000)
    made.rows["error"][np.random.default_rng(0).random(2000) < 0.1] = 1
    low, high = compute_figures(made).intervals["failed_share"]
    assert (high - low) / 2 == pytest.approx(1.96 * np.sqrt(0.09 / 2000), rel=0.3)


def test_many_requests_cost_little() -> None:
    made = open_loop(100_000, rate=1000, tokens=17)
    began_s = time.process_time()
    analyse(made, Options())
    # CPU time of all threads, so that what else runs on the machine does not count.
    assert time.process_time() - began_s < 6.0
    columns = columns_of(made)
    latencies = latencies_of(columns)
    for samples in latencies.values():
        samples.ordered_ms.sum()
    began_s = time.process_time()
    resample(columns, latencies)
    assert time.process_time() - began_s < 2.0


def test_few_successes_among_failures_have_figures_without_intervals() -> None:
    figures = compute_figures(failed(closed_loop(1, 60), list(range(12, 60)), "connect"))
    assert (figures.successful, figures.ttft_ms.count) == (12, 12)
    assert figures.ttft_ms.p50 is not None
    assert figures.ttft_ms.intervals == {}, "a resample without any success has no percentile"
