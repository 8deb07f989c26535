"""Comparisons with known truths, against scipy where it knows the answer."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from client.load.analysis import Options
from client.load.compare import Comparison, Condition, Difference, GateError, Side, compare, judge, parse_fail_on
from client.load.repeats import anova, batch_means, cliffs_delta, combine, estimate, hedges_g, welch
from tests.client.load.synthetic import open_loop


def _compared(factor: float, repeats: int = 1, count: int = 600) -> Comparison:
    slow = tuple(open_loop(count, seed=100 + number, ttft_s=0.05 * factor) for number in range(repeats))
    base = tuple(open_loop(count, seed=number) for number in range(repeats))
    return compare([Side("base", base), Side("changed", slow)])


def _of(compared: Comparison, metric: str) -> Difference:
    return next(difference for difference in compared.differences["changed"] if difference.metric == metric)


@pytest.mark.parametrize("repeats", [1, 4])
def test_a_slower_server_is_told_with_its_interval(repeats: int) -> None:
    ttft = _of(_compared(1.3, repeats), "ttft_p50")
    assert ttft.test == ("bootstrap" if repeats == 1 else "welch")
    assert ttft.relative == pytest.approx(0.3, abs=0.08)
    assert ttft.low is not None
    assert ttft.high is not None
    # The median of 0.5 + gamma(2, 1/4) is 0.9196.
    assert ttft.low < 0.3 * 50 * 0.9196 < ttft.high
    assert ttft.is_certain
    assert ttft.p_value is not None
    assert ttft.p_value < 0.01
    assert ttft.effect is not None
    assert ttft.effect > 0.3


@pytest.mark.parametrize("repeats", [1, 4])
def test_the_same_server_is_not_told_apart(repeats: int) -> None:
    compared = _compared(1.0, repeats)
    for metric in ("ttft_mean", "itl_p50", "output_tokens_per_s"):
        difference = _of(compared, metric)
        assert not difference.is_certain, difference
        assert difference.p_value is not None
        assert difference.p_value > 0.02


def test_equal_sides_are_told_apart_as_seldom_as_promised() -> None:
    certain = 0
    for seed in range(0, 80, 2):
        pair = [Side(str(number), (open_loop(150, seed=seed + number, tokens=2),)) for number in (0, 1)]
        (differences,) = compare(pair, Options(seed=seed)).differences.values()
        certain += next(item for item in differences if item.metric == "ttft_mean").is_certain
    assert certain <= 6


def test_groups_are_told_apart_by_analysis_of_variance() -> None:
    compared = compare([Side(f"{factor}", (open_loop(400, ttft_s=factor),)) for factor in (0.05, 0.06, 0.07)])
    assert compared.group_unit == "batch"
    assert compared.groups["ttft_mean"].p_value < 1e-6
    assert compared.groups["ttft_mean"].eta_squared > 0.5
    assert set(compared.differences) == {"0.06", "0.07"}
    repeated = _compared(1.3, 4)
    assert repeated.group_unit == "repeat"
    assert repeated.groups["ttft_mean"].p_value < 1e-3
    assert repeated.groups["itl_mean"].p_value > 1e-3
    assert repeated.estimates["base"]["ttft_mean"].count == 4


def test_analysis_of_variance_is_scipys() -> None:
    random = np.random.default_rng(4)
    groups = [random.normal(mean, 1, size) for mean, size in ((0, 12), (0.5, 9), (1.2, 15))]
    ours, theirs = anova(groups), stats.f_oneway(*groups)
    assert (ours.f, ours.p_value) == pytest.approx((theirs.statistic, theirs.pvalue))
    assert (ours.between, ours.within) == (2, 33)
    values = np.concatenate(groups)
    between = sum(len(group) * (group.mean() - values.mean()) ** 2 for group in groups)
    assert ours.eta_squared == pytest.approx(between / ((values - values.mean()) ** 2).sum())


def test_analysis_of_variance_without_variance() -> None:
    same, other = np.ones(3), np.full(3, 2.0)
    assert (anova([same, same]).p_value, anova([same, other]).p_value) == (1.0, 0.0)
    with pytest.raises(ValueError, match="two groups"):
        anova([same, np.ones(1)])


def test_welch_is_scipys() -> None:
    random = np.random.default_rng(5)
    a, b = random.normal(10, 1, 6).tolist(), random.normal(11, 3, 9).tolist()
    ours, theirs = welch(a, b), stats.ttest_ind(b, a, equal_var=False)
    interval = theirs.confidence_interval(0.95)
    assert (ours.difference, ours.p_value) == pytest.approx((np.mean(b) - np.mean(a), theirs.pvalue))
    assert (ours.low, ours.high) == pytest.approx((interval.low, interval.high))
    assert welch([1.0, 1.0], [1.0, 1.0]).p_value == 1.0
    assert welch([1.0, 1.0], [2.0, 2.0]).p_value == 0.0


def test_the_interval_of_repeats_is_students() -> None:
    values = [10.0, 12.0, 11.0, 13.5]
    ours = estimate(values)
    wanted = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert (ours.low, ours.high) == pytest.approx(wanted)
    assert estimate([3.0]).low is None
    assert set(combine([{"a": 1.0, "b": 2.0}, {"a": 3.0}])) == {"a"}


def test_effect_sizes() -> None:
    random = np.random.default_rng(6)
    a, b = np.sort(random.normal(0, 1, 50)), np.sort(random.normal(0.7, 1, 70))
    pairs = np.sign(b[:, None] - a[None, :])
    assert cliffs_delta(a, b) == pytest.approx(pairs.mean())
    assert cliffs_delta(a, a) == 0
    assert cliffs_delta(np.zeros(2), np.ones(2)) == 1
    assert hedges_g([1.0, 3.0], [2.0, 4.0]) == pytest.approx(1 / np.sqrt(2) * (1 - 3 / 7))
    assert hedges_g([1.0, 1.0], [2.0, 2.0]) is None
    assert batch_means(np.arange(10, dtype=np.float64), 3).tolist() == [1.0, 4.0, 7.5]


def test_conditions_are_read() -> None:
    assert parse_fail_on("ttft_p99>5%, output_tokens_per_s<-3%,e2e_p50>20") == (
        Condition("ttft_p99", ">", 0.05, True),
        Condition("output_tokens_per_s", "<", -0.03, True),
        Condition("e2e_p50", ">", 20.0, False),
    )
    assert str(Condition("ttft_p99", ">", 0.05, True)) == "ttft_p99>5%"


@pytest.mark.parametrize("text", ["", "ttft_p99", "ttft_p99>=5%", "ttft_p99>x%", "ttft_p99>1.2.3%", ">5%"])
def test_conditions_that_cannot_be_read_are_refused(text: str) -> None:
    with pytest.raises(GateError, match="is not METRIC"):
        parse_fail_on(text)


def _difference(relative: float, half: float | None) -> Difference:
    change = 100 * relative
    low, high = (change - half, change + half) if half is not None else (None, None)
    return Difference("ttft_p99", 100.0, 100.0 + change, change, relative, low, high, 0.5, "bootstrap", None)


@pytest.mark.parametrize(
    ("difference", "text", "outcome"),
    [
        (_difference(0.04, 1.0), "ttft_p99>5%", "pass"),
        (_difference(0.06, 1.0), "ttft_p99>5%", "fail"),
        (_difference(0.06, 9.0), "ttft_p99>5%", "unsure"),
        (_difference(0.06, None), "ttft_p99>5%", "unsure"),
        (_difference(-0.2, 1.0), "ttft_p99>5%", "pass"),
        (_difference(-0.2, 1.0), "ttft_p99<-10%", "fail"),
        (_difference(0.06, 1.0), "ttft_p99>5", "fail"),
        (_difference(0.06, 1.0), "ttft_p99>7", "pass"),
    ],
)
def test_the_gate_judges(difference: Difference, text: str, outcome: str) -> None:
    (verdict,) = judge([difference], parse_fail_on(text))
    assert verdict.outcome == outcome
    assert f"100 → {100 + difference.difference:g}" in verdict.words


def test_the_gate_names_what_was_not_measured() -> None:
    with pytest.raises(GateError, match="'itl_p99' was not measured"):
        judge([_difference(0.1, 1.0)], parse_fail_on("itl_p99>5%"))
    zero = Difference("failed_share", 0.0, 0.1, 0.1, None, None, None, None, "bootstrap", None)
    with pytest.raises(GateError, match="was 0 before"):
        judge([zero], parse_fail_on("failed_share>5%"))


def test_sides_need_names_and_runs() -> None:
    run = open_loop(20)
    for sides in ([Side("a", (run,))], [Side("a", (run,)), Side("a", (run,))], [Side("a", (run,)), Side("b", ())]):
        with pytest.raises(ValueError, match="two sides"):
            compare(sides)
