"""What is drawn of a load and of a sweep.

Nothing that a server says is drawn: labels hold words of ours and numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from client.load.columns import Columns, Floats
from client.load.figures import Figures, Interval
from client.load.pictures import Palette, Picture
from client.load.samples import PERCENTILES, latencies_of
from client.load.saturation import Capacity, Knee, Point
from client.load.server_side import SERIES
from client.load.spec import ERROR_CLASSES
from client.load.timeline import Steady, timeline_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BINS = 80
_MAX_MARKS = 4000
_FEWEST_SAMPLES = 3
# Of the picture of the server: the axis' name, its scale, and what is drawn in it.
_PANELS = (
    ("requests", 1, ("requests_running", "requests_waiting")),
    ("%", 100, ("kv_cache_usage", "gpu_busy_share", "cpu_busy_share")),
    ("W", 1, ("gpu_power_w",)),
)
_PERCENTILE_TICKS = {0.0: "0", 0.5: "50", 0.9: "90", 0.99: "99", 0.999: "99.9", 0.9999: "99.99"}


def pictures_of_load(figures: Figures, columns: Columns, is_valid: bool) -> list[Picture]:
    """Return the plots of one load, marked if it is not valid; those without data are left out."""
    if not len(columns):
        return []
    found = []
    from_when = "the intended sending" if figures.is_open_loop else "sending"
    if figures.successful:
        found.append(
            Picture(
                "percentiles", "Latency by percentile",
                f"Time from {from_when}; each percentile on the axis is ten times rarer than the one before. Bars are "
                f"{figures.confidence:.0%} intervals, and stand where there are enough samples.",
                (("line", 0, "first token (TTFT)"), ("dash", 1, "whole request")),
                lambda figure, palette: _draw_percentiles(figure, palette, figures, columns),
            ),
        )  # fmt: skip
    if figures.itl_ms.count:
        caption = f"{figures.itl_ms.count:,} gaps; the axis ends at the 99.9th percentile."
        found.append(
            Picture(
                "itl", "Time between tokens (ITL)", caption, (),
                lambda figure, palette: _draw_gaps(figure, palette, columns),
            )
        )  # fmt: skip
    found.append(
        Picture(
            "timeline", "Throughput and concurrency over time",
            "The shaded part is steady." if figures.steady.is_found else "No steady part was found.",
            (("line", 0, "output tokens/s"), ("line", 1, "requests in flight")),
            lambda figure, palette: _draw_timeline(figure, palette, columns, figures.steady),
        )
    )  # fmt: skip
    if figures.successful:
        found.append(
            Picture(
                "ttft", "TTFT over time", f"Time from {from_when} to the first token, request by request.",
                (("dot", 0, "a request"),),
                lambda figure, palette: _draw_ttft(figure, palette, columns),
            )
        )  # fmt: skip
    kinds = [index for index, name in enumerate(ERROR_CLASSES) if figures.failures.get(name)]
    if kinds:
        found.append(
            Picture(
                "failures", "Failed requests over time", "When each failure was noticed.",
                tuple(("line", place % 6, ERROR_CLASSES[kind]) for place, kind in enumerate(kinds)),
                lambda figure, palette: _draw_failures(figure, palette, columns, kinds),
            )
        )  # fmt: skip
    return [replace(picture, is_valid=is_valid) for picture in found]


def pictures_of_server(told: Mapping[str, Any], is_valid: bool) -> list[Picture]:
    """Return the plot of what ServerSide.figures() told; none for a few samples.

    Several exporters that tell the same have a line each.
    """
    sources = [told, *told.get("exporters", {}).values()]
    lines = [
        (name, np.array(points))
        for source in sources
        for name, points in source.get("series", {}).items()
        if name in SERIES and len(points) >= _FEWEST_SAMPLES
    ]
    seen = {name for name, _ in lines}
    if not lines:
        return []
    return [
        Picture(
            "server", "The server meanwhile", "What the server and its exporters say of themselves.",
            tuple(("line", place, words) for place, (name, words) in enumerate(SERIES.items()) if name in seen),
            lambda figure, palette: _draw_server(figure, palette, lines),
            is_valid,
        )
    ]  # fmt: skip


def pictures_of_sweep(points: Sequence[Point], knee: Knee | None, capacity: Capacity | None) -> list[Picture]:
    """Return the plots of a sweep; none for fewer than two points."""
    if len(points) < 2:
        return []
    ordered = sorted(points, key=lambda point: point.load)
    bent = (
        f"The knee is at {knee.load:g}." if knee is not None else "The curve has no knee: it has not bent, or not yet."
    )
    if capacity is not None and capacity.good_load is not None:
        bent += f" The objectives were met up to {capacity.good_load:g}."
    if not all(point.is_valid for point in points):
        bent += " Hollow points are not valid."
    return [
        Picture(
            "saturation", "Throughput against load", f"{bent} Bars are confidence intervals.",
            (("line", 0, "finished requests/s"),),
            lambda figure, palette: _draw_saturation(figure, palette, ordered, knee),
        ),
        Picture(
            "ttft-load", "TTFT against load", "Median and 99th percentile with confidence intervals.",
            (("line", 0, "p50"), ("dash", 1, "p99")),
            lambda figure, palette: _draw_ttft_by_load(figure, palette, ordered, knee),
        ),
    ]  # fmt: skip


def _draw_percentiles(figure: Figure, palette: Palette, figures: Figures, columns: Columns) -> None:
    axes = figure.subplots()
    taken = latencies_of(columns)
    told = {"ttft": figures.ttft_ms, "e2e": figures.e2e_ms}
    rarest = 1.0
    for place, (name, distribution) in enumerate(told.items()):
        ordered = taken[name].ordered_ms
        count = len(ordered)
        rarest = max(rarest, count)
        ranks = np.unique(np.round(count - np.geomspace(count, 1, 400)).astype(int))
        nines = np.log10(count / (count - ranks))
        axes.plot(
            nines, ordered[ranks], color=palette.series[place], linewidth=2, linestyle=("-", (0, (5, 1.6)))[place]
        )
        for figure_name, (low, high) in distribution.intervals.items():
            if figure_name in PERCENTILES:
                at = -np.log10(1 - PERCENTILES[figure_name])
                axes.plot([at, at], [low, high], color=palette.series[place], linewidth=5, alpha=0.4)
    ticks = [level for level in _PERCENTILE_TICKS if level == 0 or 1 / (1 - level) <= rarest * 1.01]
    axes.set_xticks([-np.log10(1 - level) for level in ticks], [_PERCENTILE_TICKS[level] for level in ticks])
    axes.set_xlabel("percentile")
    axes.set_ylabel("ms")
    _scale(axes, np.concatenate([taken[name].ordered_ms for name in told]))


def _draw_gaps(figure: Figure, palette: Palette, columns: Columns) -> None:
    axes = figure.subplots()
    gaps_ms = columns.token_gaps_s * 1000
    end_ms = max(float(np.quantile(gaps_ms, 0.999)) * 1.02, 1e-3)
    counts, edges = np.histogram(gaps_ms, bins=_BINS, range=(0, end_ms))
    shares = counts / len(gaps_ms) * 100
    axes.stairs(shares, edges, color=palette.series[0], linewidth=1.6)
    axes.stairs(shares, edges, fill=True, color=palette.series[0], alpha=0.18, linewidth=0)
    axes.set_xlim(0, end_ms)
    axes.set_ylim(0)
    axes.set_xlabel("ms for a token")
    axes.set_ylabel("% of gaps")


def _draw_timeline(figure: Figure, palette: Palette, columns: Columns, steady: Steady) -> None:
    edges_s = _edges(columns)
    timeline = timeline_of(columns, edges_s)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    for axes, values, place in ((upper, timeline.output_tokens_per_s, 0), (lower, timeline.in_flight, 1)):
        axes.stairs(values, edges_s, color=palette.series[place], linewidth=1.6)
        axes.stairs(values, edges_s, fill=True, color=palette.series[place], alpha=0.18, linewidth=0)
        axes.set_ylim(0, max(float(values.max()) * 1.1, 1e-3))
        axes.set_xlim(edges_s[0], edges_s[-1])
        if steady.is_found:
            axes.axvspan(steady.begin_s, steady.end_s, color=palette.muted, alpha=0.12, linewidth=0)
    upper.set_ylabel("output tokens/s")
    lower.set_ylabel("in flight")
    lower.set_xlabel("s since the start")
    figure.align_ylabels()


def _draw_server(figure: Figure, palette: Palette, lines: Sequence[tuple[str, Floats]]) -> None:
    seen = {name for name, _ in lines}
    panels = [panel for panel in _PANELS if seen.intersection(panel[2])]
    places = {name: place for place, name in enumerate(SERIES)}
    column = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (unit, scale, names) in zip(column, panels, strict=True):
        drawn = [(name, points * (1, scale)) for name, points in lines if name in names]
        for name, points in drawn:
            axes.plot(*points.T, color=palette.series[places[name]], linewidth=1.6)
        axes.set_ylim(0, max(1.1 * max(points[:, 1].max() for _, points in drawn), 1e-3))
        axes.set_xlim(0)
        axes.set_ylabel(unit)
    column[-1].set_xlabel("s since the start")
    figure.align_ylabels()


def _draw_ttft(figure: Figure, palette: Palette, columns: Columns) -> None:
    axes = figure.subplots()
    kept = np.flatnonzero(columns.is_success)
    # Of many requests every n-th is shown, and the slowest all the same.
    ttft_ms = (columns.first_s - columns.start_s)[kept] * 1000
    if len(kept) > _MAX_MARKS:
        shown = np.zeros(len(kept), dtype=bool)
        shown[:: len(kept) // _MAX_MARKS + 1] = True
        shown[np.argpartition(ttft_ms, -100)[-100:]] = True
        kept, ttft_ms = kept[shown], ttft_ms[shown]
    axes.plot(columns.start_s[kept], ttft_ms, ".", color=palette.series[0], markersize=4, alpha=0.55, markeredgewidth=0)
    axes.set_xlim(*_edges(columns)[[0, -1]])
    axes.set_xlabel("s since the start")
    axes.set_ylabel("ms")
    _scale(axes, ttft_ms)


def _draw_failures(figure: Figure, palette: Palette, columns: Columns, kinds: Sequence[int]) -> None:
    axes = figure.subplots()
    edges_s = _edges(columns)
    base = np.zeros(len(edges_s) - 1)
    for place, kind in enumerate(kinds):
        counts, _ = np.histogram(columns.eof_s[columns.rows["error"] == kind], bins=edges_s)
        colour = palette.series[place % 6]
        axes.bar(edges_s[:-1], counts, np.diff(edges_s), bottom=base, align="edge", color=colour, linewidth=0)
        base += counts
    axes.set_xlim(edges_s[0], edges_s[-1])
    _whole_numbers(axes)
    axes.set_xlabel("s since the start")
    axes.set_ylabel("failed requests")


def _draw_saturation(figure: Figure, palette: Palette, points: Sequence[Point], knee: Knee | None) -> None:
    axes = figure.subplots()
    intervals = [point.intervals.get("requests_per_s") for point in points]
    values = [point.requests_per_s for point in points]
    if points[0].kind == "rate":
        end = max(*values, points[0].load) * 1.05
        axes.plot([0, end], [0, end], color=palette.muted, linewidth=1.2, linestyle=(0, (2, 2)))
        axes.annotate(
            "finished = asked", (0.4 * end, 0.4 * end), (-8, 4), textcoords="offset points", ha="right", va="bottom",
            color=palette.muted, fontsize=8.5,
        )  # fmt: skip
    _draw_points(axes, palette, points, values, intervals, 0, "-")
    axes.set_ylim(0)
    axes.set_ylabel("finished requests/s")
    _finish_load_axis(axes, palette, points, knee)


def _draw_ttft_by_load(figure: Figure, palette: Palette, points: Sequence[Point], knee: Knee | None) -> None:
    axes = figure.subplots()
    drawn: list[float] = []
    dashes: tuple[Any, ...] = ("-", (0, (5, 1.6)))
    for place, name in enumerate(("p50", "p99")):
        told = [(point, value) for point in points if (value := getattr(point.ttft_ms, name)) is not None]
        intervals = [point.ttft_ms.intervals.get(name) for point, _ in told]
        values = [value for _, value in told]
        _draw_points(axes, palette, [point for point, _ in told], values, intervals, place, dashes[place])
        drawn += values
    axes.set_ylabel("TTFT in ms")
    if drawn:
        _scale(axes, np.array(drawn))
    _finish_load_axis(axes, palette, points, knee)


def _draw_points(
    axes: Axes, palette: Palette, points: Sequence[Point], values: Sequence[float],
    intervals: Sequence[Interval | None], place: int, dashes: Any,
) -> None:  # fmt: skip
    colour = palette.series[place]
    # A point that is not valid is no part of the curve.
    curve = [value if point.is_valid else np.nan for point, value in zip(points, values, strict=True)]
    axes.plot([point.load for point in points], curve, color=colour, linewidth=1.8, linestyle=dashes)
    for point, value, interval in zip(points, values, intervals, strict=True):
        if interval is not None:
            axes.plot([point.load] * 2, interval, color=colour, linewidth=5, alpha=0.4, solid_capstyle="butt")
        fill = colour if point.is_valid else palette.paper
        axes.plot(point.load, value, "os"[place], color=fill, markeredgecolor=colour, markersize=6, zorder=4)


def _finish_load_axis(axes: Axes, palette: Palette, points: Sequence[Point], knee: Knee | None) -> None:
    axes.set_xlim(0, max(point.load for point in points) * 1.06)
    axes.set_xlabel("requests/s asked for" if points[0].kind == "rate" else "requests at once")
    if knee is not None:
        axes.axvline(knee.load, color=palette.ink, linewidth=1.2, linestyle=(0, (1, 1.5)), zorder=1)
        axes.annotate("knee", (knee.load, 0), (4, 4), xycoords=("data", "axes fraction"), textcoords="offset points",
                      color=palette.ink, fontsize=9)  # fmt: skip


def _edges(columns: Columns) -> Floats:
    end_s = float(columns.eof_s.max())
    begin_s = min(0.0, float(columns.start_s.min()))
    # Fewer bins than requests, or each bin holds one and the line is a comb.
    bins = int(np.clip(len(columns) // 8, 10, _BINS))
    return np.linspace(begin_s, max(end_s, begin_s + 1e-3), bins + 1)


def _scale(axes: Axes, values: Floats) -> None:
    """Make y logarithmic where ``values`` span much, with plain numbers at its marks."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    positive = values[values > 0]
    if not len(positive) or positive.max() / positive.min() < 8:
        axes.set_ylim(0, max(float(values.max()) * 1.06, 1e-3))
        return
    axes.set_yscale("log")
    decades = np.log10(positive.max() / positive.min())
    marks = (1.0, 2.0, 5.0) if decades < 2.5 else (1.0, 3.0) if decades < 4 else (1.0,)
    axes.yaxis.set_major_locator(LogLocator(subs=marks, numticks=20))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _whole_numbers(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
