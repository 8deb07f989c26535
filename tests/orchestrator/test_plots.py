"""The report's plots: whole SVG elements in the page's colours, right in what they draw."""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from orchestrator.plots import (
    STYLES,
    Curve,
    Flight,
    TrialPoint,
    best_so_far,
    plot_curves,
    plot_latency,
    plot_objective,
    plot_throughput,
    rates_over_time,
)

FLIGHTS = [
    Flight(0.0, 2.0, 1.0, 2.0, 100.0),
    Flight(0.0, 1.0, 0.5, 0.5, 10.0),
    Flight(1.0, 4.0, None, None, 0.0),
    Flight(3.0, 2.0, None, None, 5.0),
]
TRIALS = [TrialPoint(number, None if number == 2 else 0.5 + number / 20, number % STYLES) for number in range(8)]
CURVES = [Curve([1, 2, 3], [0.1, 0.4, 0.5], 0, is_best=True), Curve([1], [0.2], 1), Curve([1, 2], [0.1, 0.3], None)]
PLOTS: dict[str, Callable[[str], str]] = {
    "latency": lambda words: plot_latency([0.05, 0.1, 0.4], [1.0, 2.0, 3.0], words),
    "latency of one request": lambda words: plot_latency([], [0.002], words),
    "latency of nothing": lambda words: plot_latency([], [], words),
    "latency without spread": lambda words: plot_latency([0.0, 0.0], [0.0, 0.0], words),
    "latency over hours": lambda words: plot_latency([1e-5, 4000.0], [1.0, 20_000.0], words),
    "throughput": lambda words: plot_throughput(FLIGHTS, words),
    "throughput of nothing": lambda words: plot_throughput([Flight(0.0, 0.0, None, None, 0.0)], words),
    "throughput over hours": lambda words: plot_throughput([Flight(0.0, 30_000.0, 1.0, 29_000.0, 1e6)], words),
    "objective": lambda words: plot_objective(TRIALS, "validation accuracy", words),
    "objective of one trial": lambda words: plot_objective(TRIALS[:1], "objective", words),
    "objective of failures": lambda words: plot_objective(TRIALS[2:3], "objective", words),
    "curves": lambda words: plot_curves(CURVES, words),
    "curves of one epoch": lambda words: plot_curves(CURVES[1:2], words),
}


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter() if element.tag.endswith("text")]  # noqa: S314


@pytest.mark.parametrize("name", PLOTS)
def test_plot_is_one_whole_labelled_element_in_the_colours_of_the_page(name: str) -> None:
    svg = PLOTS[name]('a "quoted" <b> & more')
    root = ET.fromstring(svg)  # noqa: S314 - our own picture
    assert root.tag == "svg"
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-label"] == 'a "quoted" <b> & more'
    assert "width" not in root.attrib
    assert not re.findall(r"#[0-9a-fA-F]{6}\b", svg), "a colour that is none of the page's"
    assert "var(--plot-ink)" in svg
    assert not re.findall(r"https?:|<style|<!--|<image|\bnan\b|\binf\b", svg)


@pytest.mark.parametrize("name", PLOTS)
def test_marks_of_an_axis_differ_from_each_other(name: str) -> None:
    root = ET.fromstring(PLOTS[name]("x"))  # noqa: S314 - our own picture
    for axis in (group for group in root.iter("g") if "axis_" in group.attrib.get("id", "")):
        marks = [element.text for group in axis if "tick_" in group.attrib["id"] for element in group.iter("text")]
        assert len(marks) == len(set(marks)), (name, marks)
        assert len(marks) <= 12, (name, marks)


def test_plots_of_one_page_share_no_ids() -> None:
    found = [
        re.findall(r'\sid="([^"]+)"', PLOTS[name]("x")) for name in ("latency", "throughput", "objective", "curves")
    ]
    ids = [name for names in found for name in names]
    assert len(ids) == len(set(ids))
    for name in ("latency", "curves"):
        svg = PLOTS[name]("x")
        assert set(re.findall(r'(?:url\(|href=")#([^")]+)', svg)) <= set(re.findall(r'\sid="([^"]+)"', svg))


def test_same_data_gives_the_same_picture() -> None:
    assert PLOTS["curves"]("x") == PLOTS["curves"]("x")


def test_axes_name_their_quantity_and_unit() -> None:
    assert {"requests as fast or faster", "time since sending (logarithmic)", "1\u00a0s", "100\u00a0ms"} <= set(
        texts(PLOTS["latency"]("x"))
    )
    assert "time since the start of the benchmark (s)" in texts(PLOTS["throughput"]("x"))
    assert "time since the start of the benchmark (h)" in texts(PLOTS["throughput over hours"]("x"))
    assert {"trial", "validation accuracy", "60\u00a0%"} <= set(texts(PLOTS["objective"]("x")))
    assert {"epoch", "validation accuracy"} <= set(texts(PLOTS["curves"]("x")))


def test_many_requests_make_no_large_picture() -> None:
    flights = [Flight(at / 100, at / 100 + 1, at / 100 + 0.1, at / 100 + 0.9, 20) for at in range(20_000)]
    spread = list(np.linspace(0.05, 2.0, 20_000))
    assert len(plot_throughput(flights, "x")) < 60_000
    assert len(plot_latency(spread, spread, "x")) < 60_000


def test_tokens_are_spread_between_first_and_last_and_failures_are_in_flight() -> None:
    tokens_per_s, in_flight = rates_over_time(FLIGHTS, np.array([0.0, 1.0, 2.0, 3.0, 4.0]))
    assert tokens_per_s == pytest.approx([10.0, 100.0, 0.0, 0.0], abs=1e-3)
    assert in_flight == pytest.approx([2.0, 2.0, 1.0, 1.0])


def test_best_so_far_never_falls() -> None:
    assert best_so_far([0.3, 0.2, 0.5, 0.4]) == [0.3, 0.3, 0.5, 0.5]
    assert best_so_far([]) == []


def test_import_of_the_report_loads_no_matplotlib() -> None:
    code = "import sys, orchestrator.report; sys.exit('matplotlib' in sys.modules or 'numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_settings_of_the_caller_survive(monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib as mpl

    monkeypatch.setitem(mpl.rcParams, "font.size", 33)
    svg = PLOTS["curves"]("x")
    assert mpl.rcParams["font.size"] == 33
    assert "font-size: 33px" not in svg
