"""The report's plots, as SVG to be put into a page.

Nothing that a run says is drawn as text: labels hold numbers only, so no name can break a plot. Colours are CSS
variables of the page (``--plot-ink``, ``--plot-0``, …), so one picture is legible on a light and on a dark page; text
takes the page's font. matplotlib is imported when the first plot is drawn.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
    from numpy.typing import NDArray

# Colours that no drawing has by chance; each becomes a variable of the page.
_INK, _MUTED, _GRID, _PAPER = "#010101", "#010102", "#010103", "#010104"
_SERIES = tuple(f"#0102{index:02x}" for index in range(6))
_VARIABLES = {_INK: "--plot-ink", _MUTED: "--plot-muted", _GRID: "--plot-grid", _PAPER: "--plot-paper"} | {
    colour: f"--plot-{index}" for index, colour in enumerate(_SERIES)
}
_MARKERS = ("o", "s", "^", "D", "v", "*")
STYLES = len(_SERIES)
"""How many styles (colour and marker) there are for series; a style is an index below it."""

_SIZE_IN = (5.0, 3.6)
_MAX_ECDF_POINTS = 300
_BINS = 60
_LOG_ABOVE_RATIO = 5.0
_LOOK: Mapping[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "orch",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _INK,
    "axes.linewidth": 0.8,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "text.parse_math": False,
    "xtick.color": _MUTED,
    "xtick.labelcolor": _INK,
    "ytick.color": _MUTED,
    "ytick.labelcolor": _INK,
}


@dataclass(frozen=True, slots=True)
class Flight:
    """When one request was under way, in seconds of the benchmark's clock, and how many tokens it brought.

    ``tokens`` arrived evenly between the first and the last token; both are None where none came.
    """

    sent_at_s: float
    eof_at_s: float
    first_token_at_s: float | None
    last_token_at_s: float | None
    tokens: float


@dataclass(frozen=True, slots=True)
class TrialPoint:
    """One trial: its number, its objective (None if it ended without one) and the style of its source."""

    number: int
    objective: float | None
    style: int


@dataclass(frozen=True, slots=True)
class Curve:
    """Validation accuracy (a share) by epoch of one trial; ``style`` is None for a trial of unknown source."""

    epochs: Sequence[int]
    accuracy: Sequence[float]
    style: int | None
    is_best: bool = False


def plot_latency(ttft_s: Sequence[float], e2e_s: Sequence[float], description: str) -> str:
    """Return the share of requests that were as fast as x, for the first token (style 0) and the end (style 1)."""
    with _figure() as figure:
        axes = figure.subplots()
        for style, samples, dashes in ((0, ttft_s, "solid"), (1, e2e_s, (0, (5, 1.6)))):
            if samples:
                x, y = _ecdf(samples)
                axes.step(x, y, where="post", color=_SERIES[style], linestyle=dashes, linewidth=2)
        axes.set_ylim(0, 1.02)
        axes.set_yticks([0, 0.25, 0.5, 0.75, 0.9, 0.99])
        axes.yaxis.set_major_formatter(_percent)
        axes.set_ylabel("requests as fast or faster")
        _scale_time_axis(axes, [*ttft_s, *e2e_s])
        return _to_svg(figure, "latency", description)


def plot_throughput(flights: Sequence[Flight], description: str) -> str:
    """Return output tokens per second over the benchmark, above the mean number of requests in flight."""
    import numpy as np

    span_s = max(1e-3, *(flight.eof_at_s for flight in flights))
    edges = np.linspace(0.0, span_s, _BINS + 1)
    tokens_per_s, in_flight = rates_over_time(flights, edges)
    with _figure() as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
        for axes, values, style in ((upper, tokens_per_s, 0), (lower, in_flight, 1)):
            axes.stairs(values, edges, color=_SERIES[style], linewidth=1.6)
            axes.stairs(values, edges, fill=True, color=_SERIES[style], alpha=0.18, linewidth=0)
            axes.set_ylim(0, max(float(values.max()) * 1.1, 1e-3))
            axes.set_xlim(0, span_s)
            axes.yaxis.set_major_formatter(_plain)
        upper.yaxis.set_major_locator(_locator(4))
        lower.yaxis.set_major_locator(_integers(4))
        upper.set_ylabel("output tokens/s")
        lower.set_ylabel("in flight")
        unit, factor = _time_unit(span_s)
        lower.xaxis.set_major_locator(_locator(6, factor))
        lower.xaxis.set_major_formatter(_scaled(factor))
        lower.set_xlabel(f"time since the start of the benchmark ({unit})")
        figure.align_ylabels()
        return _to_svg(figure, "throughput", description)


def plot_objective(trials: Sequence[TrialPoint], name: str, description: str) -> str:
    """Return the objective by trial number, with the best so far as a line and a cross for trials without one.

    ``name`` must be a text of ours, not of the run.
    """
    done = sorted((trial.number, trial.objective, trial.style) for trial in trials if trial.objective is not None)
    with _figure() as figure:
        axes = figure.subplots()
        best = best_so_far([objective for _, objective, _ in done])
        last = max(trial.number for trial in trials)
        if done:
            numbers = [number for number, _, _ in done]
            axes.step([*numbers, last], [*best, best[-1]], where="post", color=_MUTED, linewidth=1.4)
        for style in range(STYLES):
            of_style = [(number, objective) for number, objective, its in done if its == style]
            _draw_points(axes, of_style, style)
        low, high = _padded([objective for _, objective, _ in done])
        axes.set_ylim(low, high)
        lost = [trial.number for trial in trials if trial.objective is None]
        axes.plot(lost, [low + 0.035 * (high - low)] * len(lost), "x", color=_INK, markersize=6, markeredgewidth=1.6)
        first = min(trial.number for trial in trials)
        axes.set_xlim(first - 0.6, last + 0.6)
        axes.xaxis.set_major_locator(_integers())
        axes.yaxis.set_major_locator(_locator(6))
        axes.yaxis.set_major_formatter(_percent)
        axes.set_xlabel("trial")
        axes.set_ylabel(name)
        return _to_svg(figure, "objective", description)


def plot_curves(curves: Sequence[Curve], description: str) -> str:
    """Return validation accuracy by epoch, a line for each trial; the best one is thick and on top."""
    with _figure() as figure:
        axes = figure.subplots()
        for curve in sorted(curves, key=lambda item: item.is_best):
            colour = _MUTED if curve.style is None else _SERIES[curve.style]
            # A single epoch makes no line.
            marker = "o" if curve.is_best or len(curve.epochs) == 1 else ""
            axes.plot(
                curve.epochs,
                curve.accuracy,
                color=colour,
                linewidth=2.6 if curve.is_best else 1.3,
                alpha=1.0 if curve.is_best else 0.6,
                marker=marker,
                markersize=5 if curve.is_best else 3.5,
                markevery=[len(curve.epochs) - 1],
                markeredgecolor=_PAPER,
                zorder=4 if curve.is_best else 3,
            )
        low, high = _padded([value for curve in curves for value in curve.accuracy])
        axes.set_ylim(low, high)
        last = max(epoch for curve in curves for epoch in curve.epochs)
        first = min(epoch for curve in curves for epoch in curve.epochs)
        margin = max(0.03 * (last - first), 0.15)
        axes.set_xlim(first - margin, last + margin)
        axes.xaxis.set_major_locator(_integers())
        axes.yaxis.set_major_locator(_locator(6))
        axes.yaxis.set_major_formatter(_percent)
        axes.set_xlabel("epoch")
        axes.set_ylabel("validation accuracy")
        return _to_svg(figure, "curves", description)


def rates_over_time(flights: Sequence[Flight], edges: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the output tokens per second and the mean requests in flight of each bin between ``edges`` (seconds)."""
    import numpy as np

    sent_at_s = np.array([flight.sent_at_s for flight in flights])
    eof_at_s = np.maximum([flight.eof_at_s for flight in flights], sent_at_s)
    streams = [flight for flight in flights if flight.first_token_at_s is not None and flight.tokens > 0]
    first_at_s = np.array([flight.first_token_at_s for flight in streams], dtype=float)
    last_at_s = np.array([flight.last_token_at_s or flight.first_token_at_s for flight in streams], dtype=float)
    # Tokens that all came at once still need a span.
    length_s = np.maximum(last_at_s - first_at_s, 1e-6)
    count = np.array([flight.tokens for flight in streams], dtype=float)
    tokens = [float(np.sum(count * np.clip((edge - first_at_s) / length_s, 0, 1))) for edge in edges]
    busy_s = [float(np.sum(np.clip(edge, sent_at_s, eof_at_s) - sent_at_s)) for edge in edges]
    return np.diff(tokens) / np.diff(edges), np.diff(busy_s) / np.diff(edges)


def best_so_far(objectives: Sequence[float]) -> list[float]:
    """Return the highest of ``objectives`` up to each one."""
    best: list[float] = []
    for objective in objectives:
        best.append(max(objective, best[-1]) if best else objective)
    return best


@contextmanager
def _figure() -> Iterator[Figure]:
    """Yield an empty figure that looks like the others, whatever the user's own matplotlibrc says."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(dict(_LOOK))  # type: ignore[arg-type]
        yield Figure(figsize=_SIZE_IN, layout="constrained")


def _to_svg(figure: Figure, prefix: str, description: str) -> str:
    """Return ``figure`` as an ``<svg>`` element whose ids begin with ``prefix``, so that several fit on a page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = buffer.getvalue()
    body = text[text.index("<svg") :]
    body = body[body.index(">") + 1 :]
    # matplotlib's style element would hold for the whole page; the page has the rule instead.
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, count=1, flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->\s*", "", body, flags=re.DOTALL)
    body = re.sub(r'(\sid="|url\(#|href="#)', rf"\1{prefix}-", body).replace("xlink:href", "href")
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, f"var({variable})")
    width, height = (round(72 * inches, 1) for inches in figure.get_size_inches())
    label = html.escape(description)
    return f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{label}">{body}'


def _ecdf(samples: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return the steps of the empirical distribution, thinned to what a picture can show (the extremes stay)."""
    ordered = sorted(samples)
    count, last = len(ordered), _MAX_ECDF_POINTS - 1
    shown = list(range(count))
    if count > _MAX_ECDF_POINTS:
        shown = sorted({round(step / last * (count - 1)) for step in range(last + 1)})
    return [ordered[0], *(ordered[i] for i in shown)], [0.0, *((i + 1) / count for i in shown)]


def _draw_points(axes: Axes, points: Sequence[tuple[int, float]], style: int) -> None:
    axes.plot(
        [number for number, _ in points],
        [value for _, value in points],
        linestyle="none",
        marker=_MARKERS[style],
        color=_SERIES[style],
        markersize=7,
        markeredgecolor=_PAPER,
        zorder=3,
    )


def _scale_time_axis(axes: Axes, samples_s: Sequence[float]) -> None:
    """Make x a time axis: logarithmic where the samples span much, with a unit at each mark."""
    from matplotlib.ticker import LogLocator, NullFormatter

    positive = [value for value in samples_s if value > 0]
    low, high = (min(positive), max(positive)) if positive else (0.001, 0.001)
    if high / low < _LOG_ABOVE_RATIO:
        axes.set_xlim(0, high * 1.04)
        unit, factor = _time_unit(high)
        axes.xaxis.set_major_locator(_locator(6, factor))
        axes.xaxis.set_major_formatter(_scaled(factor))
        axes.set_xlabel(f"time since sending ({unit})")
        return
    axes.set_xscale("log")
    axes.set_xlim(low * 0.9, high * 1.12)
    decades = math.log10(high / low)
    marks = (1.0, 2.0, 5.0) if decades < 2 else (1.0, 3.0) if decades < 3 else (1.0,)
    axes.xaxis.set_major_locator(LogLocator(subs=marks, numticks=20))
    axes.xaxis.set_major_formatter(_mark_of_time)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("time since sending (logarithmic)")


def _time_unit(longest_s: float) -> tuple[str, float]:
    """Return the unit for an axis up to ``longest_s``, and what seconds are multiplied with."""
    if longest_s < 1:
        return "ms", 1000.0
    if longest_s < 300:
        return "s", 1.0
    return ("min", 1 / 60) if longest_s < 3 * 3600 else ("h", 1 / 3600)


def _padded(values: Sequence[float]) -> tuple[float, float]:
    """Return limits with some air around ``values``; shares near 0 get an axis from 0."""
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    air = max(0.08 * (high - low), 0.01)
    return (0.0 if 0 <= low < air else low - air), high + air


def _percent(value: float, _position: float = 0) -> str:
    return f"{100 * value:.3g}\u00a0%"


def _plain(value: float, _position: float = 0) -> str:
    return f"{value:,.6g}"


def _mark_of_time(value_s: float, _position: float = 0) -> str:
    if value_s < 0.9995:
        return f"{1000 * value_s:.3g}\u00a0ms"
    return f"{value_s:.4g}\u00a0s" if value_s < 600 else f"{value_s / 60:.3g}\u00a0min"


def _scaled(factor: float) -> Callable[[float, float], str]:
    def write(value: float, _position: float = 0) -> str:
        return _plain(value * factor)

    return write


def _locator(marks: int, factor: float = 1.0) -> MaxNLocator:
    """Return a locator of about ``marks`` values that are round once they are multiplied with ``factor``."""
    import numpy as np
    from matplotlib.ticker import MaxNLocator

    class Rounded(MaxNLocator):
        def tick_values(self, vmin: float, vmax: float) -> Any:
            return np.asarray(super().tick_values(vmin * factor, vmax * factor)) / factor

    return Rounded(marks, steps=[1, 2, 2.5, 5, 10])


def _integers(marks: int = 8) -> MaxNLocator:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(marks, integer=True, min_n_ticks=1)
