"""The knee and the capacity of servers whose truth is known."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from client.load.analysis import Options, compute_figures
from client.load.figures import Distribution
from client.load.saturation import Capacity, Point, RateSearch, find_capacity, find_knee, point_of
from client.load.slo import parse_slos
from tests.client.load.synthetic import open_loop


def _point(load: float, reached: float, is_good: bool | None = None) -> Point:
    nothing = Distribution()
    return Point("rate", load, reached, reached * 16, nothing, nothing, nothing, 0.0, None, None, {}, is_good, True)


def test_the_knee_is_where_throughput_stops_to_follow_the_rate() -> None:
    knee = find_knee([_point(rate, min(rate, 60.0)) for rate in (80, 10, 20, 40, 60, 100, 120)])
    assert knee is not None
    assert (knee.load, knee.requests_per_s) == (60, 60.0)
    assert knee.bend == pytest.approx(1 - 50 / 110)


def test_the_knee_stays_where_throughput_falls_beyond_its_peak() -> None:
    knee = find_knee([_point(rate, min(rate, 60.0) - max(0, rate - 80) / 4) for rate in (10, 20, 40, 60, 80, 120)])
    assert knee is not None
    assert knee.load == 60


@pytest.mark.parametrize("reached", [lambda rate: rate, lambda rate: 5.0, lambda rate: 0.98 * rate + (rate % 20) / 10])
def test_a_curve_that_has_not_bent_has_no_knee(reached: Callable[[float], float]) -> None:
    assert find_knee([_point(rate, reached(rate)) for rate in range(10, 130, 10)]) is None


def test_three_points_have_no_knee() -> None:
    assert find_knee([_point(rate, min(rate, 60.0)) for rate in (10, 60, 120)]) is None


def test_a_good_point_above_a_bad_one_is_luck() -> None:
    goods = {10.0: True, 20.0: True, 40.0: False, 60.0: True}
    assert find_capacity([_point(load, load, is_good) for load, is_good in goods.items()]) == Capacity(20.0, 40.0)
    assert find_capacity([_point(10, 10, True)]) == Capacity(10, None)
    assert find_capacity([_point(10, 10, False)]) == Capacity(None, 10)


def test_a_point_that_is_not_valid_says_nothing_of_the_server() -> None:
    broken = msgspec.structs.replace(_point(20, 5, False), is_valid=False)
    points = [_point(10, 10, True), broken, *(_point(load, min(load, 60.0), load <= 60) for load in (30, 60, 120, 200))]
    assert find_capacity(points) == Capacity(60, 120)
    knee = find_knee(points)
    assert knee is not None
    assert knee.load == 60
    assert find_knee(points[:4]) is None


def test_a_point_is_good_if_enough_requests_met_the_objectives() -> None:
    figures = compute_figures(open_loop(500), Options(slos=parse_slos("ttft_ms<=100")))
    assert figures.good_share is not None
    assert point_of("rate", 100, figures, True, good_share=figures.good_share).is_good is True
    assert point_of("rate", 100, figures, True, good_share=figures.good_share + 1e-3).is_good is False
    assert point_of("rate", 100, compute_figures(open_loop(50)), True).is_good is None


def _searched(search: RateSearch, capacity: float) -> tuple[RateSearch, list[float]]:
    rates = []
    while (rate := search.next_rate) is not None:
        rates.append(rate)
        search = search.after(rate, rate <= capacity)
    return search, rates


@pytest.mark.parametrize("capacity", [0.7, 3.0, 37.0, 950.0])
def test_a_search_brackets_the_capacity(capacity: float) -> None:
    search, rates = _searched(RateSearch(first=10.0), capacity)
    assert search.why_over == "precise"
    assert search.good is not None
    assert search.bad is not None
    assert search.good <= capacity < search.bad <= 1.05 * search.good
    assert len(rates) <= 14


def test_a_search_ends_at_its_bounds() -> None:
    assert _searched(RateSearch(first=10.0, most=100.0), 1e9)[1] == [10, 20, 40, 80, 100]
    assert _searched(RateSearch(first=10.0, most=100.0), 1e9)[0].why_over == "most"
    ended, rates = _searched(RateSearch(first=1.0, least=0.2), 0.0)
    assert rates == [1.0, 0.5, 0.25, 0.2]
    assert ended.why_over == "least"
    assert _searched(RateSearch(first=10.0, points_left=3), 35.0)[0].why_over == "points"


def test_of_points_that_contradict_each_other_the_bad_one_holds() -> None:
    search = RateSearch(first=10.0).after(20.0, True).after(15.0, False)
    assert (search.good, search.bad) == (None, 15.0)
    assert search.after(16.0, True).good is None
