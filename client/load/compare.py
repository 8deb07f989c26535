"""Loads against each other: differences with intervals and tests, analysis of variance, and a gate for regressions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import msgspec
import numpy as np

from client.errors import ClientServiceError
from client.load.analysis import DEFAULTS, Analysis, Options, analyse
from client.load.bootstrap import interval_of
from client.load.columns import Floats
from client.load.figures import metrics_of
from client.load.repeats import Anova, Estimate, anova, batch_means, cliffs_delta, combine, hedges_g, welch
from client.load.run import Measurement
from client.load.samples import LATENCIES, latencies_of

# Of a run without repeats, so many stretches of time stand for them in the analysis of variance.
BATCHES = 20
_MIN_PER_BATCH = 5
_TERM = re.compile(r"\s*(\w+)\s*([<>])\s*([+-]?[0-9.]+(?:[eE][+-]?[0-9]+)?)\s*(%?)\s*")


class GateError(ClientServiceError):
    """A condition of the regression gate cannot be read, or names a metric that was not measured."""


class Difference(msgspec.Struct, frozen=True):
    """One metric of two sides: ``b`` − ``a``.

    Attributes:
        relative: The difference as a share of ``a``; None where that is 0.
        low, high, p_value: Interval of the difference, and how likely one as great is by chance; None where there are
            too few samples.
        test: ``welch`` over repeats, or ``bootstrap`` over blocks of requests, which does not know how runs differ.
        effect: Hedges' g over repeats; else Cliff's delta over samples, and None for rates.
    """

    metric: str
    a: float
    b: float
    difference: float
    relative: float | None
    low: float | None
    high: float | None
    p_value: float | None
    test: Literal["welch", "bootstrap"]
    effect: float | None

    @property
    def is_certain(self) -> bool:
        """Whether the interval leaves no room for there being no difference."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


class Comparison(msgspec.Struct, frozen=True):
    """Sides against the first one.

    Attributes:
        estimates: Of each side, by metric.
        differences: By the name of the other side.
        groups: Analysis of variance over all sides, by metric.
        group_unit: What its values are: ``repeat``, or ``batch``, means over stretches of time of a single run.
    """

    base: str
    estimates: dict[str, dict[str, Estimate]]
    differences: dict[str, tuple[Difference, ...]]
    groups: dict[str, Anova]
    group_unit: Literal["repeat", "batch"]


class Condition(msgspec.Struct, frozen=True):
    """When a change is a regression: ``ttft_p99>5%``, ``output_tokens_per_s<-3%``, ``e2e_p50>20`` (milliseconds)."""

    metric: str
    direction: Literal["<", ">"]
    limit: float
    is_relative: bool

    def __str__(self) -> str:
        limit = f"{self.limit * 100:g}%" if self.is_relative else f"{self.limit:g}"
        return f"{self.metric}{self.direction}{limit}"


class Verdict(msgspec.Struct, frozen=True):
    """What became of a condition.

    Attributes:
        outcome: ``unsure`` if the change is beyond the limit, but its interval has room for no change at all.
        words: One line with the figures.
    """

    condition: Condition
    outcome: Literal["pass", "fail", "unsure"]
    words: str


@dataclass(frozen=True)
class Side:
    """What is compared under ``name``: a run and its repeats."""

    name: str
    repeats: tuple[Measurement, ...]


def compare(sides: Sequence[Side], options: Options = DEFAULTS) -> Comparison:
    """Return each of ``sides`` against the first.

    Raises:
        ValueError: there are fewer than two, one has no run, or two have the same name.
    """
    if len({side.name for side in sides}) < max(2, len(sides)) or not all(side.repeats for side in sides):
        raise ValueError("a comparison needs two sides with different names, each with a run")
    analysed: dict[str, list[Analysis]] = {}
    seed = options.seed
    for side in sides:
        # Draws of the same numbers would make sides of the same length vary together.
        analysed[side.name] = [
            analyse(repeat, replace(options, seed=seed + number)) for number, repeat in enumerate(side.repeats)
        ]
        seed += len(side.repeats)
    base, *others = analysed
    has_repeats = min(map(len, analysed.values())) >= 2
    metrics = {name: [metrics_of(run.figures) for run in runs] for name, runs in analysed.items()}
    return Comparison(
        base=base,
        estimates={name: combine(values, options.confidence) for name, values in metrics.items()},
        differences={other: _differences(analysed[base], analysed[other], options.confidence) for other in others},
        groups=_over_repeats(metrics) if has_repeats else _over_batches(analysed),
        group_unit="repeat" if has_repeats else "batch",
    )


def parse_fail_on(text: str) -> tuple[Condition, ...]:
    """Return the conditions in ``text``, any of which is a regression.

    Raises:
        GateError: a term is not ``METRIC>CHANGE`` or ``METRIC<CHANGE``.
    """
    conditions = []
    for term in text.split(","):
        match = _TERM.fullmatch(term)
        try:
            limit = float(match[3]) if match is not None else None
        except ValueError:
            limit = None
        if match is None or limit is None:
            raise GateError(
                f"condition {term.strip()!r} is not METRIC>CHANGE or METRIC<CHANGE, as in 'ttft_p99>5%', "
                "'output_tokens_per_s<-3%' or 'e2e_p50>20' (milliseconds)"
            )
        is_relative = match[4] == "%"
        direction: Literal["<", ">"] = "<" if match[2] == "<" else ">"
        conditions.append(Condition(match[1], direction, limit / 100 if is_relative else limit, is_relative))
    return tuple(conditions)


def judge(differences: Sequence[Difference], conditions: Sequence[Condition]) -> tuple[Verdict, ...]:
    """Return the verdict on each of ``conditions``.

    Raises:
        GateError: a metric was not measured on both sides.
    """
    by_metric = {difference.metric: difference for difference in differences}
    return tuple(_judge(by_metric, condition) for condition in conditions)


def _judge(by_metric: Mapping[str, Difference], condition: Condition) -> Verdict:
    difference = by_metric.get(condition.metric)
    if difference is None:
        raise GateError(f"{condition}: {condition.metric!r} was not measured. Metrics: {', '.join(by_metric)}")
    change = difference.relative if condition.is_relative else difference.difference
    if change is None:
        raise GateError(f"{condition}: {condition.metric} was 0 before, so its change is no share; give a difference")
    is_beyond = change > condition.limit if condition.direction == ">" else change < condition.limit
    words = f"{condition}: {difference.a:.6g} → {difference.b:.6g}"
    if difference.relative is not None:
        words += f" ({difference.relative:+.2%})"
    if difference.low is None or difference.high is None:
        words += "; too few samples for an interval"
    else:
        words += f"; difference {difference.low:+.4g} to {difference.high:+.4g}"
    if not is_beyond:
        return Verdict(condition, "pass", words)
    return Verdict(condition, "fail" if difference.is_certain else "unsure", words)


def _differences(a: list[Analysis], b: list[Analysis], confidence: float) -> tuple[Difference, ...]:
    values_a, values_b = ([metrics_of(run.figures) for run in runs] for runs in (a, b))
    names = [name for name in values_a[0] if all(name in values for values in (*values_a, *values_b))]
    has_repeats = min(len(a), len(b)) >= 2
    effects = {} if has_repeats else _sample_effects(a, b)
    differences = []
    for name in names:
        side_a, side_b = ([values[name] for values in side] for side in (values_a, values_b))
        mean_a, mean_b = float(np.mean(side_a)), float(np.mean(side_b))
        relative = (mean_b - mean_a) / mean_a if mean_a else None
        low = high = p_value = None
        if has_repeats:
            tested = welch(side_a, side_b, confidence)
            low, high, p_value = tested.low, tested.high, tested.p_value
        else:
            drawn = _replicates(b, name) - _replicates(a, name)
            interval = interval_of(drawn, confidence)
            if interval is not None:
                low, high, p_value = *interval, _bootstrap_p(drawn)
        effect = hedges_g(side_a, side_b) if has_repeats else effects.get(name.split("_", maxsplit=1)[0])
        test: Literal["welch", "bootstrap"] = "welch" if has_repeats else "bootstrap"
        difference = mean_b - mean_a
        differences.append(Difference(name, mean_a, mean_b, difference, relative, low, high, p_value, test, effect))
    return tuple(differences)


def _replicates(runs: list[Analysis], metric: str) -> Floats:
    """Return the mean over ``runs`` in each resample; NaN, one for all, where a run has too few samples."""
    if any(metric not in run.replicates for run in runs):
        return np.array([np.nan])
    return np.asarray(np.mean([run.replicates[metric] for run in runs], axis=0))


def _bootstrap_p(drawn: Floats) -> float:
    tail = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return min(1.0, 2 * (tail + 1) / (len(drawn) + 1))


def _sample_effects(a: list[Analysis], b: list[Analysis]) -> dict[str, float]:
    effects = {}
    for latency in LATENCIES:
        ordered_a, ordered_b = (
            np.sort(np.concatenate([latencies_of(run.columns)[latency].ordered_ms for run in runs])) for runs in (a, b)
        )
        if len(ordered_a) and len(ordered_b):
            effects[latency] = cliffs_delta(ordered_a, ordered_b)
    return effects


def _over_repeats(metrics: Mapping[str, list[dict[str, float]]]) -> dict[str, Anova]:
    everything = [values for runs in metrics.values() for values in runs]
    names = [name for name in everything[0] if all(name in values for values in everything)]
    return {name: anova([np.array([values[name] for values in runs]) for runs in metrics.values()]) for name in names}


def _over_batches(analysed: Mapping[str, list[Analysis]]) -> dict[str, Anova]:
    found = {}
    for latency in ("ttft", "tpot", "e2e"):
        groups = []
        for runs in analysed.values():
            values_ms = np.concatenate([latencies_of(run.columns)[latency].values_s for run in runs]) * 1000
            values_ms = values_ms[~np.isnan(values_ms)]
            batches = min(BATCHES, len(values_ms) // _MIN_PER_BATCH)
            groups.append(batch_means(values_ms, batches) if batches >= 2 else np.empty(0))
        if min(map(len, groups)) >= 2:
            found[f"{latency}_mean"] = anova(groups)
    return found
