"""Confidence by resampling blocks of requests: requests that ran together are not independent of each other.

The circular block bootstrap (Politis and Romano 1992) over requests in the order of time, with the block length of
Politis and White (2004), corrected by Patton, Politis and White (2009). Everything that is resampled is a ratio of sums
over requests, so a resample costs one row of a matrix product. A percentile is turned into such a ratio, the share of
samples at or below it, whose variation is read back through the quantile function (Woodruff 1952; Bahadur's
representation). Requests are summed up in at most CELLS cells first, which bounds the cost for any number of requests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from client.load.columns import Flags, Floats, Ints

RESAMPLES = 1000
CELLS = 1024
# With fewer requests than this an interval would be a guess.
MIN_REQUESTS = 10
# A percentile needs so many samples beyond it before its interval means anything.
MIN_BEYOND = 5


class Resampler:
    """Sums of columns over resampled blocks of ``count`` requests; the same seed gives the same resamples."""

    def __init__(self, count: int, block: int, seed: int, resamples: int = RESAMPLES) -> None:
        """Draw the resamples.

        Args:
            count: How many requests there are; at least one.
            block: How many requests in a row stay together.
            seed: Of the random numbers.
            resamples: How often the requests are drawn anew.
        """
        cells = min(count, CELLS)
        self._count = count
        self._bounds = np.arange(cells) * count // cells
        self._width = min(cells, max(1, round(block * cells / count)))
        whole, self._rest = divmod(cells, self._width)
        random = np.random.default_rng(seed)
        starts = random.integers(cells, size=(resamples, whole))
        places = starts + np.arange(resamples)[:, None] * cells
        self._weights = np.bincount(places.ravel(), minlength=resamples * cells).reshape(resamples, cells).astype(float)
        self._last_starts = random.integers(cells, size=resamples)

    def cells(self, values: Floats | Flags, per_request: Ints | None = None) -> Floats:
        """Return the sum of ``values`` over each cell.

        Args:
            values: One for each request, or those of each request one after the other.
            per_request: In the second case, how many values each request has.
        """
        bounds = self._bounds
        if per_request is not None:
            bounds = np.concatenate([[0], np.cumsum(per_request)])[bounds]
        return _sums_between(values, bounds)

    def draw(self, cells: Sequence[Floats]) -> Floats:
        """Return the sums of each of ``cells`` in each resample, of shape (cells, resamples)."""
        sums = _circular_sums(cells, self._width) @ self._weights.T
        if self._rest:
            sums += _circular_sums(cells, self._rest)[:, self._last_starts]
        return np.asarray(sums)


def divide(sums: Floats, counts: Floats) -> Floats:
    """Return ``sums`` / ``counts``, NaN where there are none."""
    return np.asarray(np.divide(sums, counts, out=np.full(len(counts), np.nan), where=counts > 0))


def percentile_replicates(shares: Floats, share: float, level: float, ordered: Floats) -> Floats:
    """Return the percentile in each resample, NaN in one without samples.

    Args:
        shares: Share of samples at or below the percentile in each resample; NaN where it has none.
        share: That share in the sample itself.
        level: The percentile, 0 to 1.
        ordered: The samples, ascending.
    """
    levels = np.clip(level - (shares - share), 0.0, 1.0)
    found, has_samples = np.full(len(levels), np.nan), ~np.isnan(levels)
    found[has_samples] = quantiles(ordered, levels[has_samples])
    return found


def quantiles(ordered: Floats, levels: Floats) -> Floats:
    """Return the values at ``levels`` (0 to 1) of ``ordered``, linear between neighbours, as numpy.quantile."""
    positions = levels * (len(ordered) - 1)
    below = np.floor(positions).astype(np.int64)
    above = np.minimum(below + 1, len(ordered) - 1)
    return np.asarray(ordered[below] + (ordered[above] - ordered[below]) * (positions - below))


def interval_of(replicates: Floats, confidence: float) -> tuple[float, float] | None:
    """Return what lies between the tails of ``replicates``; None if a resample had nothing to say."""
    if not len(replicates) or np.isnan(replicates).any():
        return None
    tail = (1 - confidence) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return float(low), float(high)


def block_length(series: Sequence[Floats]) -> int:
    """Return how many requests in a row have to stay together: the longest that one of ``series`` asks for."""
    return max((_block_length(values) for values in series), default=1)


def _block_length(values: Floats) -> int:
    count = len(values)
    least = max(1, math.ceil(math.cbrt(count)))
    if count < MIN_REQUESTS:
        return least
    run = max(5, math.ceil(math.sqrt(math.log10(count))))
    longest = min(math.ceil(math.sqrt(count)) + run, count - 1)
    covariances = _autocovariances(values, longest)
    if covariances[0] <= 0:
        return least
    is_small = np.abs(covariances[1:] / covariances[0]) < 2 * math.sqrt(math.log10(count) / count)
    runs = np.convolve(is_small, np.ones(run), mode="valid") == run if len(is_small) >= run else np.array([False])
    reach = int(np.argmax(runs)) if runs.any() else longest
    bandwidth = min(2 * max(reach, 1), longest)
    lags = np.arange(1, bandwidth + 1)
    taper = np.minimum(1.0, 2 * (1 - lags / bandwidth))
    spread = 2 * float(np.sum(taper * lags * covariances[1 : bandwidth + 1]))
    level = float(covariances[0] + 2 * np.sum(taper * covariances[1 : bandwidth + 1]))
    if level <= 0:
        return least
    wanted = math.cbrt(2 * spread**2 / (4 / 3 * level**2) * count)
    return max(least, math.ceil(min(wanted, 3 * math.sqrt(count), count / 3)))


def _autocovariances(values: Floats, longest: int) -> Floats:
    centred = values - values.mean()
    size = 1 << (len(values) + longest).bit_length()
    spectrum = np.fft.rfft(centred, size)
    covariances = np.fft.irfft(spectrum * spectrum.conj(), size)[: longest + 1] / len(values)
    # What rounding leaves of a constant is no variation.
    if covariances[0] <= 1e-20 * float(np.mean(values**2)):
        return np.zeros(longest + 1)
    return np.asarray(covariances)


def _sums_between(values: Floats | Flags, bounds: Ints) -> Floats:
    """Return the sums of ``values`` from each of ``bounds`` to the next, or to the end."""
    has_any = np.diff(bounds, append=len(values)) > 0
    sums = np.zeros(len(bounds))
    if has_any.any():
        # Bytes are summed faster than flags are.
        sums[has_any] = (
            np.add.reduceat(values.view(np.uint8), bounds[has_any], dtype=np.uint32)
            if values.dtype == np.bool_
            else np.add.reduceat(values, bounds[has_any], dtype=np.float64)
        )
    return sums


def _circular_sums(cells: Sequence[Floats], width: int) -> Floats:
    around = np.stack(cells)
    sums = np.cumsum(np.concatenate([around, around[:, : width - 1]], axis=1), axis=1)
    sums = np.concatenate([np.zeros((len(sums), 1)), sums], axis=1)
    return np.asarray(sums[:, width:] - sums[:, :-width])
