"""Schedules of open loops, and ramps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.errors import WorkloadError
from client.load.arrivals import Times, constant_arrivals, gamma_arrivals, poisson_arrivals, ramp_starts

FIRST_OF_SEED_0 = [0.767976556, 0.793887698, 3.082546645]


def variation(times: Times) -> float:
    gaps = np.diff(times)
    return float(gaps.std() / gaps.mean())


def test_constant_arrivals_are_even_and_do_not_drift() -> None:
    times = constant_arrivals(3.0, requests=30_001)
    assert times[0] == 0.0
    assert times[-1] == 10_000.0
    assert variation(times) < 1e-6


@pytest.mark.parametrize(
    ("rate", "duration", "expected"), [(10.0, 1.0, 10), (3.0, 1.0, 3), (0.1, 1.0, 1), (7.0, 3.0, 21)]
)
def test_constant_arrivals_of_a_duration_all_lie_in_it(rate: float, duration: float, expected: int) -> None:
    times = constant_arrivals(rate, duration_s=duration)
    assert len(times) == expected
    assert times[-1] < duration


@pytest.mark.parametrize(("shape", "expected"), [(0.25, 2.0), (1.0, 1.0), (4.0, 0.5), (100.0, 0.1)])
def test_gamma_arrivals_have_the_rate_and_the_variation_of_their_shape(shape: float, expected: float) -> None:
    times = gamma_arrivals(50.0, shape, seed=1, requests=40_000)
    assert len(times) / times[-1] == pytest.approx(50.0, rel=0.03)
    assert variation(times) == pytest.approx(expected, rel=0.04)


def test_poisson_arrivals_are_exponential() -> None:
    gaps = np.diff(poisson_arrivals(10.0, seed=3, requests=20_000)) * 10.0
    for quantile in (0.1, 0.5, 0.9, 0.99):
        assert np.quantile(gaps, quantile) == pytest.approx(-np.log(1 - quantile), rel=0.06)


def test_same_seed_gives_the_same_bytes_and_another_seed_others() -> None:
    times = gamma_arrivals(5.0, 0.5, seed=7, requests=1000)
    assert times.tobytes() == gamma_arrivals(5.0, 0.5, seed=7, requests=1000).tobytes()
    assert times.tobytes() != gamma_arrivals(5.0, 0.5, seed=8, requests=1000).tobytes()
    # A change here changes what every seed means.
    assert list(poisson_arrivals(1.0, seed=0, requests=3)) == FIRST_OF_SEED_0


@settings(max_examples=60, deadline=None)
@given(st.floats(0.1, 1000.0), st.floats(0.05, 20.0), st.integers(0, 2**40), st.integers(1, 400), st.floats(0.01, 20.0))
def test_longer_schedules_begin_with_the_shorter(
    rate: float, shape: float, seed: int, requests: int, duration: float
) -> None:
    by_count = gamma_arrivals(rate, shape, seed, requests=requests)
    longer = gamma_arrivals(rate, shape, seed, requests=3 * requests)
    by_time = gamma_arrivals(rate, shape, seed, duration_s=duration)
    both = gamma_arrivals(rate, shape, seed, requests, duration)
    assert np.array_equal(by_count, longer[:requests])
    assert np.array_equal(both, by_count[by_count < duration])
    shared = min(len(by_time), requests)
    assert np.array_equal(by_time[:shared], by_count[:shared])
    assert np.all(np.diff(longer) >= 0)
    assert np.all(by_time < duration)
    assert len(by_time) >= len(both)


def test_ramp_spreads_the_clients_from_the_start_on() -> None:
    assert list(ramp_starts(4, 2.0)) == [0.0, 0.5, 1.0, 1.5]
    assert list(ramp_starts(3, 0.0)) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("words", "call"),
    [
        ("rate = 0 ", lambda: constant_arrivals(0.0, 1)),
        ("rate = nan ", lambda: poisson_arrivals(float("nan"), 0, 1)),
        ("needs an end", lambda: constant_arrivals(1.0)),
        ("requests = 0", lambda: constant_arrivals(1.0, 0)),
        ("duration = -1 s", lambda: constant_arrivals(1.0, None, -1.0)),
        ("burstiness = 0", lambda: gamma_arrivals(1.0, 0.0, 0, 1)),
        ("seed = -1", lambda: poisson_arrivals(1.0, -1, 1)),
        ("at most 50,000,000", lambda: constant_arrivals(1e6, None, 1e6)),
        ("concurrency = 0", lambda: ramp_starts(0, 1.0)),
        ("ramp = -2 s", lambda: ramp_starts(1, -2.0)),
    ],
)
def test_figures_that_cannot_be_are_named(words: str, call: object) -> None:
    assert callable(call)
    with pytest.raises(WorkloadError, match=words):
        call()
