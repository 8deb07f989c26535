"""Statistics over runs and groups: intervals of repeats, Welch's test, effect sizes, analysis of variance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from client.load.columns import Floats


class Estimate(msgspec.Struct, frozen=True):
    """A metric over repeats.

    Attributes:
        sd: Standard deviation between repeats; None for one.
        low, high: Confidence interval of the mean by Student's t; None for one repeat.
    """

    mean: float
    sd: float | None
    low: float | None
    high: float | None
    count: int


class Welch(msgspec.Struct, frozen=True):
    """The difference of two means with its interval; ``p_value`` is two-sided."""

    difference: float
    low: float
    high: float
    p_value: float


class Anova(msgspec.Struct, frozen=True):
    """One-way analysis of variance.

    Attributes:
        f: Variance between groups over that within; infinite where nothing varies within.
        between, within: Degrees of freedom.
        eta_squared: Share of the variance that the groups explain.
    """

    f: float
    between: int
    within: int
    p_value: float
    eta_squared: float


def combine(metrics: Sequence[Mapping[str, float]], confidence: float = 0.95) -> dict[str, Estimate]:
    """Return the estimate of each metric that every one of the repeats has."""
    names = [name for name in metrics[0] if all(name in repeat for repeat in metrics)] if metrics else []
    return {name: estimate([repeat[name] for repeat in metrics], confidence) for name in names}


def estimate(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """Return the mean of ``values``, of which there is at least one, with its interval."""
    count, mean = len(values), float(np.mean(values))
    if count < 2:
        return Estimate(mean, None, None, None, count)
    sd = float(np.std(values, ddof=1))
    half = _t_quantile(count - 1, confidence) * sd / math.sqrt(count)
    return Estimate(mean, sd, mean - half, mean + half, count)


def welch(a: Sequence[float], b: Sequence[float], confidence: float = 0.95) -> Welch:
    """Return ``b`` − ``a`` by Welch's test; both need two values."""
    from scipy.special import stdtr

    difference = float(np.mean(b) - np.mean(a))
    parts = [float(np.var(values, ddof=1)) / len(values) for values in (a, b)]
    error = math.sqrt(sum(parts))
    if error == 0:
        return Welch(difference, difference, difference, 1.0 if difference == 0 else 0.0)
    freedom = sum(parts) ** 2 / sum(part**2 / (len(values) - 1) for part, values in zip(parts, (a, b), strict=True))
    half = _t_quantile(freedom, confidence) * error
    p_value = 2 * float(stdtr(freedom, -abs(difference) / error))
    return Welch(difference, difference - half, difference + half, p_value)


def hedges_g(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Return the difference ``b`` − ``a`` in pooled standard deviations, corrected for few values; None where nothing
    varies.
    """
    freedom = len(a) + len(b) - 2
    pooled = math.sqrt(((len(a) - 1) * np.var(a, ddof=1) + (len(b) - 1) * np.var(b, ddof=1)) / freedom)
    if pooled == 0:
        return None
    return float(np.mean(b) - np.mean(a)) / pooled * (1 - 3 / (4 * freedom - 1))


def cliffs_delta(a: Floats, b: Floats) -> float:
    """Return how much more often a sample of ``b`` is above one of ``a`` than below: −1 to 1; both are ascending."""
    above = np.searchsorted(a, b, side="left").sum(dtype=np.float64)
    below = (len(a) - np.searchsorted(a, b, side="right")).sum(dtype=np.float64)
    return float((above - below) / (len(a) * len(b)))


def anova(groups: Sequence[Floats]) -> Anova:
    """Return the analysis of variance of ``groups``, at least two, each of at least two values.

    Raises:
        ValueError: there are fewer.
    """
    from scipy.special import fdtrc

    if len(groups) < 2 or min(map(len, groups)) < 2:
        raise ValueError("an analysis of variance needs two groups of two values")
    values = np.concatenate(groups)
    grand = values.mean()
    explained = float(sum(len(group) * (group.mean() - grand) ** 2 for group in groups))
    left = float(sum(((group - group.mean()) ** 2).sum() for group in groups))
    between, within = len(groups) - 1, len(values) - len(groups)
    if left == 0:
        differs = explained > 0
        return Anova(math.inf if differs else 0.0, between, within, 0.0 if differs else 1.0, float(differs))
    f = explained / between / (left / within)
    return Anova(f, between, within, float(fdtrc(between, within, f)), explained / (explained + left))


def batch_means(values: Floats, batches: int) -> Floats:
    """Return the means of ``batches`` stretches of ``values``, which are nearly independent if they are long."""
    bounds = np.arange(batches) * len(values) // batches
    return np.asarray(np.add.reduceat(values, bounds) / np.diff(bounds, append=len(values)))


def _t_quantile(freedom: float, confidence: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + confidence) / 2))
