"""How much a server can take: the knee of a sweep, the highest load that meets its objectives, and how to search it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import msgspec
import numpy as np

from client.load.figures import Distribution, Figures, Interval

LoadKind = Literal["rate", "concurrency"]
# A curve that rises above its chord by less than this, both axes scaled to 1, has not bent.
_LEAST_BEND = 0.1
_MIN_POINTS = 4


class Point(msgspec.Struct, frozen=True):
    """One load of a sweep, and what came of it.

    Attributes:
        kind: Whether ``load`` is requests per second or requests at once.
        intervals: Confidence intervals of the rates, by name.
        is_good: Whether the objectives were met by enough requests; None without objectives.
        is_valid: Whether nothing speaks against the measurement but that the server may have been overdriven.
    """

    kind: LoadKind
    load: float
    requests_per_s: float
    output_tokens_per_s: float
    ttft_ms: Distribution
    itl_ms: Distribution
    e2e_ms: Distribution
    failed_share: float
    goodput_per_s: float | None
    good_share: float | None
    intervals: dict[str, Interval]
    is_good: bool | None
    is_valid: bool


class Knee(msgspec.Struct, frozen=True):
    """Where more load stops to bring more throughput in proportion.

    Attributes:
        load, requests_per_s: The point of the sweep at the knee.
        bend: How far the curve is above its chord there, both axes scaled to 1; 0 is a straight line.
    """

    load: float
    requests_per_s: float
    bend: float


class Capacity(msgspec.Struct, frozen=True):
    """The highest load below which every point was good, and the lowest bad one above it; None where there is none."""

    good_load: float | None
    bad_load: float | None


def point_of(kind: LoadKind, load: float, figures: Figures, is_valid: bool, good_share: float = 0.99) -> Point:
    """Return the point of ``figures``, good if at least ``good_share`` of all requests met the SLOs."""
    return Point(
        kind=kind,
        load=load,
        requests_per_s=figures.requests_per_s,
        output_tokens_per_s=figures.output_tokens_per_s,
        ttft_ms=figures.ttft_ms,
        itl_ms=figures.itl_ms,
        e2e_ms=figures.e2e_ms,
        failed_share=figures.failed_share,
        goodput_per_s=figures.goodput_per_s,
        good_share=figures.good_share,
        intervals=figures.intervals,
        is_good=None if figures.good_share is None else figures.good_share >= good_share,
        is_valid=is_valid,
    )


def find_knee(points: Sequence[Point]) -> Knee | None:
    """Return the knee of throughput over load; None for fewer than four valid points or a curve that has not bent.

    Kneedle (Satopää, Albrecht, Irwin and Raghavan 2011: "Finding a 'kneedle' in a haystack"), offline and unsmoothed:
    both axes are scaled to 1, and the knee is where the curve is farthest above the diagonal. Throughput that falls
    again beyond its peak counts as the peak.
    """
    ordered = _valid(points)
    if len(ordered) < _MIN_POINTS:
        return None
    load = np.array([point.load for point in ordered])
    reached = np.maximum.accumulate([point.requests_per_s for point in ordered])
    if load[-1] <= load[0] or reached[-1] <= reached[0]:
        return None
    above = (reached - reached[0]) / (reached[-1] - reached[0]) - (load - load[0]) / (load[-1] - load[0])
    place = int(np.argmax(above))
    if above[place] < _LEAST_BEND:
        return None
    return Knee(ordered[place].load, ordered[place].requests_per_s, float(above[place]))


def find_capacity(points: Sequence[Point]) -> Capacity:
    """Return the highest load that met the objectives; a good point above a bad one counts as luck, and one that is not
    valid says nothing of the server.
    """
    good_load = None
    for point in _valid(points):
        if not point.is_good:
            return Capacity(good_load, point.load)
        good_load = point.load
    return Capacity(good_load, None)


def _valid(points: Sequence[Point]) -> list[Point]:
    return sorted((point for point in points if point.is_valid), key=lambda point: point.load)


@dataclass(frozen=True)
class RateSearch:
    """A search of the highest rate that meets objectives: doubled until it is too much, then halved in between.

    Attributes:
        first: Where it begins, in requests per second.
        precision: It ends once the lowest bad rate is at most so much above the highest good one, as a share.
        least: Rates below it are not tried: the server meets its objectives at none.
        most: Rates above it are not tried.
        points_left: How many more may be measured.
        good, bad: The highest good rate and the lowest bad one so far.
    """

    first: float
    precision: float = 0.05
    least: float = 0.01
    most: float = 1e6
    points_left: int = 20
    good: float | None = None
    bad: float | None = None

    @property
    def next_rate(self) -> float | None:
        """The rate to measure next; None once the search is over."""
        if self.why_over is not None:
            return None
        if self.bad is None:
            return self.first if self.good is None else min(self.good * 2, self.most)
        if self.good is None:
            return max(self.bad / 2, self.least)
        return math.sqrt(self.good * self.bad)

    @property
    def why_over(self) -> Literal["precise", "least", "most", "points"] | None:
        """Why the search is over; None while it is not."""
        if self.good is not None and self.bad is not None and self.bad <= self.good * (1 + self.precision):
            return "precise"
        if self.good is None and self.bad is not None and self.bad <= self.least:
            return "least"
        if self.bad is None and self.good is not None and self.good >= self.most:
            return "most"
        return "points" if self.points_left <= 0 else None

    def after(self, rate: float, is_good: bool) -> RateSearch:
        """Return the search after ``rate`` was measured; of two that contradict each other the bad one holds."""
        good, bad = self.good, self.bad
        if is_good and (bad is None or rate < bad):
            good = rate if good is None else max(good, rate)
        elif not is_good:
            bad = rate if bad is None else min(bad, rate)
            good = None if good is not None and good >= bad else good
        return replace(self, good=good, bad=bad, points_left=self.points_left - 1)
