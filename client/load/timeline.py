"""What was under way at each moment: concurrency, tokens and completions over time, and the steady part of a run."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np

from client.load.columns import Columns, Floats, Window

# Tokens that all came at once still need a span.
_MIN_SPAN_S = 1e-3
_BATCH = 5
_MIN_BATCHES, _MAX_BATCHES = 8, 100


@dataclass(frozen=True)
class Timeline:
    """Means over each bin between ``edges_s`` (seconds since the common start)."""

    edges_s: Floats
    in_flight: Floats
    output_tokens_per_s: Floats
    finished_per_s: Floats


class Steady(msgspec.Struct, frozen=True):
    """The part of a run in which nothing but noise changes.

    MSER-5 (White, Cobb and Spratt 2000: "A comparison of five steady-state truncation heuristics") cuts off the start
    that minimises the squared standard error of what is left, on means of five. It is applied to the requests in flight
    and to the output tokens per second, from the front and, for the drain, from the back; the innermost cuts hold.
    MSER alone calls a queue that grows and shrinks again steady, so the quarters of what is left are compared as well.

    Attributes:
        is_found: False where the cuts would take half of the run, or where a quarter of what is left is off the mean of
            all by more than a tenth and three standard errors. The window is then the whole run.
    """

    begin_s: float
    end_s: float
    is_found: bool


def timeline_of(columns: Columns, edges_s: Floats) -> Timeline:
    """Return what ``columns`` did between ``edges_s``; a stream's tokens are spread evenly from its first to its last
    piece.
    """
    lengths_s = np.diff(edges_s)
    return Timeline(
        edges_s,
        np.diff(_busy_s(columns, edges_s)) / lengths_s,
        np.diff(_tokens(columns, edges_s)) / lengths_s,
        np.diff(np.searchsorted(np.sort(columns.eof_s[columns.is_success]), edges_s, side="right")) / lengths_s,
    )


def mean_in_flight(columns: Columns, window: Window) -> float:
    """Return the mean number of requests under way within ``window``, failed ones included."""
    busy_s = _busy_s(columns, np.array(window))
    return float(busy_s[1] - busy_s[0]) / (window[1] - window[0])


def max_in_flight(columns: Columns) -> int:
    """Return how many requests were under way at once at most."""
    if not len(columns):
        return 0
    # An answer that ends when the next request is sent makes room for it.
    moments = np.concatenate([columns.eof_s, columns.sent_s])
    changes = np.concatenate([np.full(len(columns), -1), np.ones(len(columns), dtype=int)])
    return int(np.cumsum(changes[np.argsort(moments, kind="stable")]).max())


def output_tokens_within(columns: Columns, window: Window) -> float:
    """Return how many output tokens arrived within ``window``."""
    tokens = _tokens(columns, np.array(window))
    return float(tokens[1] - tokens[0])


def find_steady(columns: Columns) -> Steady:
    """Return the steady part of the run; the whole of it, not found, for fewer than 40 requests."""
    if not len(columns):
        return Steady(0.0, 0.0, False)
    begin_s, end_s = float(columns.start_s.min()), float(columns.eof_s.max())
    batches = min(_MAX_BATCHES, len(columns) // _BATCH)
    if batches < _MIN_BATCHES or end_s <= begin_s:
        return Steady(begin_s, end_s, False)
    edges_s = np.linspace(begin_s, end_s, batches * _BATCH + 1)
    timeline = timeline_of(columns, edges_s)
    series = (timeline.in_flight, timeline.output_tokens_per_s)
    front = max(mser(values) for values in series)
    back = max(mser(values[::-1]) for values in series)
    left = slice(front * _BATCH, (batches - back) * _BATCH)
    if front + back >= batches // 2 or not all(is_level(values[left]) for values in series):
        return Steady(begin_s, end_s, False)
    return Steady(float(edges_s[front * _BATCH]), float(edges_s[(batches - back) * _BATCH]), True)


def mser(values: Floats) -> int:
    """Return how many batches of five of ``values`` to cut off its front; half of them means it is not steady."""
    batches = values[: len(values) // _BATCH * _BATCH].reshape(-1, _BATCH).mean(axis=1)
    left = np.arange(len(batches), 0, -1)
    sums, squares = np.cumsum(batches[::-1])[::-1], np.cumsum(batches[::-1] ** 2)[::-1]
    errors = np.maximum(squares - sums**2 / left, 0.0) / left**2
    # What rounding leaves of a constant series must not decide.
    errors[errors < 1e-12 * max(float(squares[0]), 1e-300)] = 0.0
    return int(np.argmin(errors[: len(batches) // 2 + 1]))


def is_level(values: Floats) -> bool:
    """Return whether no quarter of ``values``, at least twenty, is off the mean by more than a tenth and three standard
    errors, which are those of fifths of a quarter: values that follow each other are not independent.
    """
    fifths = values[: len(values) // 20 * 20].reshape(4, 5, -1).mean(axis=2)
    mean = float(fifths.mean())
    error = float(np.sqrt(fifths.var(axis=1, ddof=1).mean() / 5))
    return bool(np.abs(fifths.mean(axis=1) - mean).max() <= max(0.1 * abs(mean), 3 * error))


def _busy_s(columns: Columns, at_s: Floats) -> Floats:
    return _ramps(at_s, columns.sent_s) - _ramps(at_s, columns.eof_s)


def _tokens(columns: Columns, at_s: Floats) -> Floats:
    has_text = (columns.tokens > 0) & ~np.isnan(columns.first_s)
    first_s = columns.first_s[has_text]
    last_s = np.maximum(columns.last_s[has_text], first_s + _MIN_SPAN_S)
    rates = columns.tokens[has_text] / (last_s - first_s)
    return _ramps(at_s, first_s, rates) - _ramps(at_s, last_s, rates)


def _ramps(at_s: Floats, from_s: Floats, slopes: Floats | None = None) -> Floats:
    """Return, for each of ``at_s``, the sum of what has grown since each of ``from_s`` with its slope (default 1)."""
    order = np.argsort(from_s, kind="stable")
    slopes = np.ones(len(from_s)) if slopes is None else slopes[order]
    steepness = np.concatenate([[0.0], np.cumsum(slopes)])
    offsets = np.concatenate([[0.0], np.cumsum(slopes * from_s[order])])
    begun = np.searchsorted(from_s[order], at_s)
    return np.asarray(at_s * steepness[begun] - offsets[begun])
