"""A Measurement to figures: vectorised, at a cost that hardly depends on the number of requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from client.load.bootstrap import interval_of
from client.load.columns import Columns, Flags, Floats, Window, columns_of
from client.load.figures import Distribution, Figures, Little
from client.load.repeats import batch_means
from client.load.rows import WARMUP
from client.load.run import Measurement
from client.load.samples import PERCENTILES, Samples, latencies_of, ratios_of, resample
from client.load.slo import Slo, meets
from client.load.spec import ERROR_CLASSES
from client.load.timeline import Steady, find_steady, max_in_flight, mean_in_flight, output_tokens_within
from client.load.worker import WorkerReport

# The first and last sendings depend on single requests; the rate is taken between these shares of them.
_TRIM = 0.02
_MIN_TRIMMED = 50
_BATCHES = 20
# A load that is over sooner has no time to wait for anything.
_MIN_BUSY_S = 0.5
# Requests that are in flight together end together: a rate has no interval before so many rounds of them.
_ROUNDS_FOR_RATES = 10


@dataclass(frozen=True)
class Options:
    """How figures are taken.

    Attributes:
        warmup_s, cooldown_s: Left out at the start and at the end of the run.
        only_steady: Leave out what is not steady, too, where a steady part is found.
        expected: How many requests were asked for; None if the load had no such number.
        slos: What a good request meets.
        seed: Of the bootstrap.
        confidence: Of the intervals.
    """

    warmup_s: float = 0.0
    cooldown_s: float = 0.0
    only_steady: bool = False
    expected: int | None = None
    slos: Sequence[Slo] = field(default=())
    seed: int = 0
    confidence: float = 0.95


DEFAULTS = Options()


@dataclass(frozen=True)
class Analysis:
    """The figures of a measurement.

    Attributes:
        columns: The requests that they are of.
        replicates: By the names of metrics_of(): what each would have been in other draws of the same requests.
    """

    figures: Figures
    columns: Columns
    replicates: dict[str, Floats]


def compute_figures(measurement: Measurement, options: Options = DEFAULTS) -> Figures:
    """Return the figures of ``measurement``."""
    return analyse(measurement, options).figures


def analyse(measurement: Measurement, options: Options = DEFAULTS) -> Analysis:
    """Return the figures of ``measurement`` with what is behind them."""
    everything = columns_of(measurement)
    steady = find_steady(everything)
    window, is_whole = _window(everything, steady, options)
    columns = everything if is_whole else everything.within(window)
    within = _Within(everything, columns, window, is_whole)
    taken = latencies_of(columns)
    replicates = resample(columns, taken, options.slos, options.seed)

    def spread(name: str) -> Distribution:
        return _distribution(name, taken[name], replicates.values, options.confidence)

    good = meets(columns, options.slos)
    warmup = measurement.rows[measurement.rows["phase"] == WARMUP]
    open_rates = _open_rates(columns)
    reports = measurement.workers
    rates = within.rates(good)
    told = _told_rates(columns, rates, replicates.values, options.slos)
    figures = Figures(
        window_s=window,
        duration_s=window[1] - window[0],
        steady=steady,
        is_open_loop=columns.is_open,
        total=len(columns),
        successful=int(columns.is_success.sum()),
        successful_without_tokens=int((columns.is_success & (columns.tokens == 0)).sum()),
        failed=int((~columns.is_success).sum()),
        failed_share=float((~columns.is_success).mean()) if len(columns) else 0.0,
        unfinished=max(0, options.expected - len(everything)) if options.expected is not None else 0,
        failures=_failures(columns),
        warmup_requests=len(warmup),
        warmup_failed=int((warmup["error"] >= 0).sum()),
        was_cancelled=measurement.was_cancelled,
        ttft_ms=spread("ttft"),
        ttft_service_ms=spread("ttft_service"),
        first_content_ms=spread("first_content"),
        itl_ms=spread("itl"),
        itl_chunk_ms=spread("itl_chunk"),
        tpot_ms=spread("tpot"),
        e2e_ms=spread("e2e"),
        e2e_service_ms=spread("e2e_service"),
        e2e_failed_ms=spread("e2e_failed"),
        schedule_delay_ms=spread("schedule_delay"),
        client_loop_lag_ms=spread("client_loop_lag"),
        prompt_tokens=int(columns.prompt_tokens.sum()),
        output_tokens=int(columns.tokens.sum()),
        tokens_source=_tokens_source(columns),
        requests_per_s=rates["requests_per_s"],
        output_tokens_per_s=rates["output_tokens_per_s"],
        total_tokens_per_s=rates["total_tokens_per_s"],
        rate_asked_per_s=open_rates.asked_per_s,
        rate_sent_per_s=open_rates.sent_per_s,
        rate_finished_per_s=open_rates.finished_per_s,
        latency_growth=open_rates.growth,
        latency_growth_error=open_rates.growth_error,
        concurrency_mean=mean_in_flight(everything, window) if window[1] > window[0] else 0.0,
        concurrency_max=max_in_flight(columns),
        little=_little(everything, (steady.begin_s, steady.end_s)) if steady.is_found else None,
        slos=tuple(options.slos),
        goodput_per_s=rates["goodput_per_s"] if options.slos else None,
        good_share=float(good.mean()) if options.slos and len(columns) else None,
        tokens_per_second=_tokens_per_second(columns),
        requests_per_client=_requests_per_client(columns),
        client_cpu_s=sum(report.cpu_s for report in reports),
        client_busy_share=_busy_share(reports),
        client_start_s=measurement.start_s,
        connections_opened=sum(report.opened for report in reports),
        confidence=options.confidence,
        block=replicates.block,
        intervals={
            name: interval
            for name, values in told.items()
            if (not name.endswith("_per_s") or len(columns) >= _ROUNDS_FOR_RATES * max_in_flight(columns))
            and (interval := interval_of(values, options.confidence)) is not None
        },
    )
    return Analysis(figures, columns, replicates.values | told)


@dataclass(frozen=True)
class _Within:
    """Amounts that fall into a window."""

    everything: Columns
    columns: Columns
    window: Window
    is_whole: bool

    def rates(self, good: Flags) -> dict[str, float]:
        """Return what came to an end within the window, per second."""
        length_s = self.window[1] - self.window[0]
        ended = self.columns if self.is_whole else self.everything
        is_inside = (ended.eof_s > self.window[0]) & (ended.eof_s <= self.window[1])
        output = float(ended.tokens.sum()) if self.is_whole else output_tokens_within(ended, self.window)
        amounts = {
            "requests_per_s": float((is_inside & ended.is_success).sum()),
            "output_tokens_per_s": output,
            "total_tokens_per_s": output + float(ended.prompt_tokens[is_inside].sum()),
            "goodput_per_s": float(good.sum()),
        }
        return {name: amount / length_s if length_s > 0 else 0.0 for name, amount in amounts.items()}


def _window(columns: Columns, steady: Steady, options: Options) -> tuple[Window, bool]:
    """Return what is measured, and whether it is the whole run."""
    end_s = float(columns.eof_s.max()) if len(columns) else 0.0
    window = (options.warmup_s, end_s - options.cooldown_s)
    if options.only_steady and steady.is_found:
        window = (max(window[0], steady.begin_s), min(window[1], steady.end_s))
    window = (window[0], max(window))
    return window, window == (0.0, end_s)


def _distribution(name: str, samples: Samples, replicates: dict[str, Floats], confidence: float) -> Distribution:
    ordered = samples.ordered_ms
    if not len(ordered):
        return Distribution()
    intervals = {}
    for figure in ("mean", *PERCENTILES):
        interval = interval_of(replicates.get(f"{name}_{figure}", np.empty(0)), confidence)
        if interval is not None:
            intervals[figure] = interval
    values = {figure: samples.percentile(level) for figure, level in PERCENTILES.items()}
    return Distribution(
        **values, mean=float(ordered.mean()), max=float(ordered[-1]), count=len(ordered), intervals=intervals
    )


def _busy_share(reports: Sequence[WorkerReport]) -> float:
    return max((report.cpu_s / report.lasted_s for report in reports if report.lasted_s >= _MIN_BUSY_S), default=0.0)


def _failures(columns: Columns) -> dict[str, int]:
    counts = np.bincount(columns.rows["error"][~columns.is_success], minlength=len(ERROR_CLASSES))
    return dict(zip(ERROR_CLASSES, counts.tolist(), strict=True))


def _tokens_source(columns: Columns) -> str:
    is_counted = columns.rows["usage_tokens"][columns.is_success] >= 0
    if not len(is_counted):
        return "none"
    return "usage" if is_counted.all() else "mixed" if is_counted.any() else "chunks"


@dataclass(frozen=True)
class _OpenRates:
    """What was asked of an open loop and what came of it, as Figures has it."""

    asked_per_s: float | None = None
    sent_per_s: float | None = None
    finished_per_s: float | None = None
    growth: float | None = None
    growth_error: float | None = None


def _open_rates(columns: Columns) -> _OpenRates:
    if not columns.is_open or len(columns) < _MIN_TRIMMED:
        return _OpenRates()
    asked, sent = _trimmed_rate(columns.intended_s), _trimmed_rate(columns.sent_s)
    at_s = batch_means(columns.intended_s, _BATCHES)
    lasted_s = batch_means(columns.eof_s - columns.intended_s, _BATCHES)
    from_middle_s = at_s - at_s.mean()
    spread = float(from_middle_s @ from_middle_s)
    if asked is None or spread == 0:
        return _OpenRates(asked, sent)
    growth = float(from_middle_s @ lasted_s) / spread
    left_s = lasted_s - lasted_s.mean() - growth * from_middle_s
    error = float(np.sqrt(left_s @ left_s / (_BATCHES - 2) / spread))
    return _OpenRates(asked, sent, asked / (1 + max(0.0, growth)), growth, error)


def _trimmed_rate(times_s: Floats) -> float | None:
    first, last = int(len(times_s) * _TRIM), len(times_s) - 1 - int(len(times_s) * _TRIM)
    ordered = np.partition(times_s, (first, last))
    span_s = float(ordered[last] - ordered[first])
    return (last - first) / span_s if span_s > 0 else None


def _little(columns: Columns, window: Window) -> Little | None:
    is_inside = (columns.eof_s > window[0]) & (columns.eof_s <= window[1])
    in_flight = mean_in_flight(columns, window)
    if not is_inside.any() or in_flight <= 0:
        return None
    length_s = window[1] - window[0]
    rate_per_s = float(is_inside.sum()) / length_s
    time_s = float((columns.eof_s - columns.sent_s)[is_inside].mean())
    error = abs(rate_per_s * time_s / in_flight - 1)
    return Little(window, in_flight, rate_per_s, time_s, error, 0.05 + 2 * time_s / length_s)


def _tokens_per_second(columns: Columns) -> dict[str, float]:
    """Return each client's output tokens over the span from its first sending to its last end."""
    clients, of_client = np.unique(columns.rows["client"], return_inverse=True)
    if columns.is_open or not len(clients):
        return {}
    begin_s, end_s = np.full(len(clients), np.inf), np.full(len(clients), -np.inf)
    np.minimum.at(begin_s, of_client, columns.sent_s)
    np.maximum.at(end_s, of_client, columns.eof_s)
    tokens = np.bincount(of_client, columns.tokens, len(clients))
    span_s = end_s - begin_s
    rates = np.divide(tokens, span_s, out=np.zeros(len(clients)), where=span_s > 0)
    return dict(zip(map(str, clients.tolist()), rates.tolist(), strict=True))


def _requests_per_client(columns: Columns) -> dict[str, dict[str, int]]:
    clients, of_client = np.unique(columns.rows["client"], return_inverse=True)
    if columns.is_open:
        return {}
    total = np.bincount(of_client, minlength=len(clients))
    good = np.bincount(of_client, columns.is_success, len(clients)).astype(int)
    counts = zip(clients.tolist(), good.tolist(), (total - good).tolist(), strict=True)
    return {str(client): {"successful": successful, "failed": failed} for client, successful, failed in counts}


def _told_rates(
    columns: Columns, rates: Mapping[str, float], replicates: Mapping[str, Floats], slos: Sequence[Slo]
) -> dict[str, Floats]:
    """Return the replicates of rates and shares; those of rates are scaled from what was resampled to what is told."""
    scaled = {}
    for name, (point, _, _) in ratios_of(columns, slos).items():
        if name in replicates:
            scale = rates[name] / point if name in rates and point > 0 else 1.0
            scaled[name] = replicates[name] * scale
    return scaled
