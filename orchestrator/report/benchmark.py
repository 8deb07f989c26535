"""What the benchmark measured."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from orchestrator.plots import plot_latency, plot_throughput
from orchestrator.report.traces import RequestTrace
from orchestrator.report.untrusted import as_count, as_list, as_map, as_number, as_text
from orchestrator.report.views import Callout, Cell, Fact, Key, Plot, Section, Table, number_cell
from orchestrator.report.wording import plural, quantity, share, state_badge, time_span

_LATENCIES = (
    ("ttft_s", "TTFT", "time to first token"),
    ("itl_s", "ITL", "time between tokens"),
    ("tpot_s", "TPOT", "time per output token"),
    ("e2e_s", "End to end", "the whole request"),
)
_COLUMNS = ("mean", "p50", "p90", "p99", "max")
_FAILURES = {
    "connect": "no connection to the server",
    "timeout": "no complete answer in time",
    "http_status": "the server answered with an error status",
    "protocol": "the answer was not what the API promises",
    "server_error": "the server reported an error in its answer",
    "zero_tokens": "the answer had no tokens",
}


def benchmark_cards(benchmark: Mapping[str, Any]) -> list[Fact]:
    """Return the key figures; none if there was no benchmark."""
    metrics = as_map(benchmark.get("metrics"))
    if not metrics:
        return []
    ttft, itl = as_map(metrics.get("ttft_s")), as_map(metrics.get("itl_s"))
    clients = as_count(benchmark.get("n_clients"))
    failed, total = as_count(benchmark.get("failed")), as_count(benchmark.get("total_queries"))
    failures = Fact("Failed requests", quantity(failed), "not counted" if failed is None else None)
    if failed is not None and total:
        failures = Fact("Failed requests", quantity(failed), f"of {total:,}: {share(failed / total)}")
    rate = as_number(metrics.get("output_tokens_per_s"))
    return [
        Fact("Output tokens/s", quantity(rate), f"with {plural(clients, 'client')}" if clients else None),
        Fact("TTFT p50", time_span(as_number(ttft.get("p50"))), "time to first token"),
        Fact("TTFT p99", time_span(as_number(ttft.get("p99"))), "time to first token"),
        Fact("ITL p50", time_span(as_number(itl.get("p50"))), "between tokens"),
        failures,
    ]


def benchmark_section(benchmark: Mapping[str, Any], trace: RequestTrace, absence: str) -> Section:
    """Return the section; ``absence`` says why there is none if ``benchmark`` is empty."""
    if not benchmark:
        return Section("benchmark", "Benchmark", absence=absence)
    metrics = as_map(benchmark.get("metrics"))
    tables = [_latency_table(metrics)] if metrics else []
    tables += _failure_table(as_map(metrics.get("failures")))
    return Section(
        "benchmark",
        "Benchmark",
        badge=state_badge(benchmark.get("state")),
        callouts=tuple(_verdict(benchmark, metrics)),
        facts=tuple(_facts(benchmark, metrics)),
        plots=tuple(_plots(trace, as_count(benchmark.get("total_queries")))),
        tables=tuple(tables),
        paragraphs=() if trace.flights else ("No record of a single request was found, so there is nothing to draw.",),
    )


def _verdict(benchmark: Mapping[str, Any], metrics: Mapping[str, Any]) -> list[Callout]:
    callouts = []
    error = as_text(benchmark.get("error"), 8000)
    if error:
        callouts.append(Callout("bad", "The benchmark ended with an error.", code=error))
    reasons = tuple(text for item in as_list(benchmark.get("invalid_reasons")) if (text := as_text(item)))
    if benchmark.get("valid") is True:
        callouts.append(Callout("good", "Valid: these figures met every condition for being published."))
    elif benchmark.get("valid") is False:
        text = "Not valid: do not publish or compare these figures."
        callouts.append(Callout("warn", text if reasons else f"{text} No reason was recorded.", items=reasons))
    elif metrics:
        callouts.append(Callout("plain", "Whether these figures are valid was not recorded."))
    elif not error:
        callouts.append(Callout("warn", "The benchmark left no figures."))
    for earlier in as_list(benchmark.get("earlier")):
        why = as_list(earlier.get("invalid_reasons")) if isinstance(earlier, Mapping) else []
        items = tuple(text for item in why if (text := as_text(item)))
        callouts.append(Callout("plain", "Measured again; the figures of before are not valid:", items=items))
    return callouts


def _facts(benchmark: Mapping[str, Any], metrics: Mapping[str, Any]) -> list[Fact]:
    facts = []
    clients, each = as_count(benchmark.get("n_clients")), as_count(benchmark.get("n_requests_per_client"))
    if clients is not None:
        facts.append(Fact("Load", plural(clients, "client"), f"{plural(each, 'request')} each" if each else None))
    successful, total = as_count(benchmark.get("successful")), as_count(benchmark.get("total_queries"))
    if successful is not None:
        facts.append(Fact("Successful", quantity(successful), f"of {total:,}" if total is not None else None))
    if (duration_s := as_number(benchmark.get("total_time"))) is not None:
        facts.append(Fact("Duration", time_span(duration_s)))
    for key, label, unit in (
        ("output_tokens_per_s", "Output", "tokens/s"),
        ("total_tokens_per_s", "Prompt and output", "tokens/s"),
        ("request_per_s", "Requests", "per s"),
    ):
        if (rate := as_number(metrics.get(key))) is not None:
            facts.append(Fact(label, quantity(rate, unit)))
    rates = [
        rate for item in as_map(metrics.get("tokens_per_second")).values() if (rate := as_number(item)) is not None
    ]
    if len(rates) > 1:
        middle = quantity(statistics.median(rates), "tokens/s")
        facts.append(Fact("Per client, median", middle, f"{quantity(min(rates))} to {quantity(max(rates))}"))
    return facts


def _latency_table(metrics: Mapping[str, Any]) -> Table:
    rows = []
    for key, label, words in _LATENCIES:
        figures = as_map(metrics.get(key))
        numbers = [number_cell(time_span(as_number(figures.get(column)))) for column in _COLUMNS]
        rows.append((Cell(label, remark=words), *numbers, number_cell(quantity(as_number(figures.get("count"))))))
    return Table("Latency of successful requests", ("Metric", *_COLUMNS, "samples"), tuple(rows))


def _failure_table(failures: Mapping[str, Any]) -> list[Table]:
    counts = [(name, count) for name, item in failures.items() if (count := as_count(item))]
    if not counts:
        return []
    rows = tuple(
        (Cell(as_text(name, 60) or "–"), Cell(_FAILURES.get(name, "")), number_cell(f"{count:,}"))
        for name, count in sorted(counts, key=lambda pair: -pair[1])
    )
    return [Table("Failed requests by class", ("Class", "What happened", "Requests"), rows)]


def _plots(trace: RequestTrace, total: int | None) -> list[Plot]:
    if not trace.flights:
        return []
    count = plural(len(trace.flights), "request")
    apart = f" The summary counts {total:,}." if total is not None and total != len(trace.flights) else ""
    plots = []
    if trace.e2e_s:
        first = f"Half of the requests had their first token within {time_span(statistics.median(trace.ttft_s))} and " \
            if trace.ttft_s else "Half of the requests "  # fmt: skip
        words = f"{first}were done within {time_span(statistics.median(trace.e2e_s))}."
        keys = (Key("line", 0, "first token"), Key("dash", 1, "whole request"))
        svg = plot_latency(trace.ttft_s, trace.e2e_s, f"Latency distribution of {len(trace.e2e_s)} requests. {words}")
        caption = f"{words} {plural(len(trace.e2e_s), 'successful request')}.{apart}"
        plots.append(Plot("How long requests took", Markup(svg), keys, caption))  # noqa: S704 - our own picture
    words = f"Output tokens per second, and below it how many requests were under way; {count}."
    svg = plot_throughput(trace.flights, f"Throughput over the benchmark. {words}")
    keys = (Key("line", 0, "output tokens/s"), Key("line", 1, "requests in flight"))
    plots.append(Plot("Throughput over time", Markup(svg), keys, words))  # noqa: S704 - our own picture
    return plots
