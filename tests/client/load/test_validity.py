"""Each reason why figures must not be published, and that there is none without cause."""

from __future__ import annotations

import re
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from client.load.analysis import Options, compute_figures
from client.load.figures import Little
from client.load.run import Measurement
from client.load.validity import Limits, invalid_reasons
from tests.client.load.synthetic import QUIET, Array, closed_loop, failed, measurement, open_loop


def _reasons(made: Measurement, client_adds_ms: float | None = None, expected: int | None = None) -> list[str]:
    return invalid_reasons(compute_figures(made, Options(expected=expected)), Limits(), client_adds_ms)


def _with(made: Measurement, name: str, values: Array | float) -> Measurement:
    made.rows[name] = values
    return made


@pytest.mark.parametrize("made", [open_loop(1000), closed_loop(8, 100), open_loop(12), closed_loop(1, 1)])
def test_nothing_speaks_against_a_sound_measurement(made: Measurement) -> None:
    assert _reasons(made, client_adds_ms=0.1, expected=len(made.rows)) == []


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (replace(open_loop(100), was_cancelled=True), "the benchmark was cancelled"),
        (failed(open_loop(100), [1, 2], "timeout"), "2 of 100 requests failed (timeout: 2): 2.00%; allowed: 0.00%"),
        (_with(open_loop(100), "completion_tokens", np.arange(100)), "1 successful requests brought no tokens"),
        (_with(open_loop(100), "loop_lag_s", 0.003), "timers ran 3.00 ms late in the median; allowed: 1.00 ms"),
        (
            replace(open_loop(100), workers=(msgspec.structs.replace(QUIET, cpu_s=9.5),)),
            "its busiest process used 95% of a core",
        ),
        (_with(open_loop(500), "intended_s", open_loop(500).rows["sent_s"] * 0.9), "(10.0% short); allowed: 1%"),
        (
            measurement(np.arange(1000) * 0.01, 0.05 + np.arange(1000) * 0.01, np.full((1000, 1), 0.001)),
            "the server keeps up with 50.00 of 100.00 requests/s asked for (50.0% short); allowed: 5%; a request takes",
        ),
    ],
)
def test_a_reason_says_its_figures(made: Measurement, words: str) -> None:
    reasons = _reasons(made)
    assert any(words in reason for reason in reasons), reasons
    assert not any("\n" in reason for reason in reasons)


def test_a_sweep_may_overdrive_the_server() -> None:
    sent_s = np.arange(1000) * 0.01
    figures = compute_figures(measurement(sent_s, 0.05 + sent_s, np.full((1000, 1), 0.001)))
    assert len(invalid_reasons(figures, Limits())) == 1
    assert invalid_reasons(figures, Limits(), may_overdrive=True) == []


def test_all_failed_is_said() -> None:
    assert "no request succeeded" in _reasons(failed(open_loop(20), list(range(20)), "connect"))


def test_missing_requests_are_counted() -> None:
    assert _reasons(open_loop(95), expected=100) == ["5 requests did not finish"]


@pytest.mark.parametrize(
    ("ttft_s", "adds_ms", "is_valid"),
    [(0.05, 0.9, True), (0.05, 1.1, False), (0.001, 0.15, True), (0.001, 0.25, False), (0.05, None, True)],
)
def test_the_client_may_add_two_percent_or_a_fifth_of_a_millisecond(
    ttft_s: float, adds_ms: float | None, is_valid: bool
) -> None:
    made = measurement(np.arange(100) * 0.1, ttft_s, np.full((100, 4), 0.005))
    reasons = _reasons(made, client_adds_ms=adds_ms)
    assert (reasons == []) is is_valid
    assert is_valid or re.search(r"the client adds \d\.\d\d ms to a median TTFT of", reasons[0])


def test_a_share_of_failures_can_be_allowed() -> None:
    figures = compute_figures(failed(open_loop(100), [1, 2], "timeout"))
    assert invalid_reasons(figures, Limits(failed_share=0.02)) == []


def test_littles_law_is_checked() -> None:
    figures = compute_figures(closed_loop(8, 100))
    assert figures.little is not None
    allowed = figures.little.allowed
    off = Little((1.0, 9.0), in_flight=8.0, rate_per_s=80.0, time_s=0.2, error=1.0, allowed=allowed)
    (reason,) = invalid_reasons(msgspec.structs.replace(figures, little=off), Limits())
    figured = "8.00 requests under way, but 80.00/s × 0.2000 s = 16.00"
    assert reason == f"Little's law does not hold: {figured} (100.0% off; allowed: {allowed:.1%})"
