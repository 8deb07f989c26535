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
    ("ttft_ms", "TTFT", "time to first token"),
    ("itl_ms", "ITL", "time between tokens"),
    ("tpot_ms", "TPOT", "time per output token"),
    ("e2e_ms", "End to end", "the whole request"),
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
    if not _has_figures(benchmark):
        return []
    ttft, itl = as_map(benchmark.get("ttft_ms")), as_map(benchmark.get("itl_ms"))
    clients = as_count(benchmark.get("n_clients"))
    failed, total = as_count(benchmark.get("failed")), as_count(benchmark.get("total_queries"))
    failures = Fact("Failed requests", quantity(failed), "not counted" if failed is None else None)
    if failed is not None and total:
        failures = Fact("Failed requests", quantity(failed), f"of {total:,}: {share(failed / total)}")
    rate = as_number(benchmark.get("output_tokens_per_s"))
    return [
        Fact("Output tokens/s", quantity(rate), f"with {plural(clients, 'client')}" if clients else None),
        Fact("TTFT p50", _span_ms(ttft.get("p50")), "time to first token"),
        Fact("TTFT p99", _span_ms(ttft.get("p99")), "time to first token"),
        Fact("ITL p50", _span_ms(itl.get("p50")), "between tokens"),
        failures,
    ]


def benchmark_section(benchmark: Mapping[str, Any], trace: RequestTrace, absence: str) -> Section:
    """Return the section; ``absence`` says why there is none if ``benchmark`` is empty."""
    if not benchmark:
        return Section("benchmark", "Benchmark", absence=absence)
    tables = [_latency_table(benchmark)] if _has_figures(benchmark) else []
    tables += _points_table(benchmark)
    tables += _failure_table(as_map(benchmark.get("failures")))
    paragraphs = [] if trace.flights else ["No record of a single request was found, so there is nothing to draw."]
    if page := as_text(benchmark.get("page")):
        paragraphs.append(f"Intervals, the server's own metrics and more plots are in {page}.")
    return Section(
        "benchmark",
        "Benchmark",
        badge=state_badge(benchmark.get("state")),
        callouts=tuple(_verdict(benchmark)),
        facts=tuple(_facts(benchmark)),
        plots=tuple(_plots(trace, as_count(benchmark.get("total_queries")))),
        tables=tuple(tables),
        paragraphs=tuple(paragraphs),
    )


def _has_figures(benchmark: Mapping[str, Any]) -> bool:
    return "output_tokens_per_s" in benchmark


def _span_ms(value_ms: object) -> str:
    number = as_number(value_ms)
    return time_span(None if number is None else number / 1000)


def _verdict(benchmark: Mapping[str, Any]) -> list[Callout]:
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
    elif _has_figures(benchmark):
        callouts.append(Callout("plain", "Whether these figures are valid was not recorded."))
    elif not error:
        callouts.append(Callout("warn", "The benchmark left no figures."))
    for earlier in as_list(benchmark.get("earlier")):
        why = as_list(earlier.get("invalid_reasons")) if isinstance(earlier, Mapping) else []
        items = tuple(text for item in why if (text := as_text(item)))
        callouts.append(Callout("plain", "Measured again; the figures of before are not valid:", items=items))
    return callouts


def _facts(benchmark: Mapping[str, Any]) -> list[Fact]:
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
        ("requests_per_s", "Requests", "per s"),
        ("goodput_per_s", "Good requests", "per s"),
    ):
        if (rate := as_number(benchmark.get(key))) is not None:
            facts.append(Fact(label, quantity(rate, unit)))
    rates = [
        rate for item in as_map(benchmark.get("tokens_per_second")).values() if (rate := as_number(item)) is not None
    ]
    if len(rates) > 1:
        middle = quantity(statistics.median(rates), "tokens/s")
        facts.append(Fact("Per client, median", middle, f"{quantity(min(rates))} to {quantity(max(rates))}"))
    if (adds_ms := as_number(benchmark.get("client_adds_ms"))) is not None:
        facts.append(Fact("Client adds to TTFT p50", _span_ms(adds_ms), "by the self-check, at most"))
    return facts


def _latency_table(benchmark: Mapping[str, Any]) -> Table:
    rows = []
    for key, label, words in _LATENCIES:
        figures = as_map(benchmark.get(key))
        numbers = [number_cell(_span_ms(figures.get(column))) for column in _COLUMNS]
        rows.append((Cell(label, remark=words), *numbers, number_cell(quantity(as_number(figures.get("count"))))))
    return Table("Latency of successful requests", ("Metric", *_COLUMNS, "samples"), tuple(rows))


def _points_table(benchmark: Mapping[str, Any]) -> list[Table]:
    rows = []
    for item in as_list(benchmark.get("points")):
        point = as_map(item)
        ttft, itl = as_map(point.get("ttft_ms")), as_map(point.get("itl_ms"))
        rate, failed = as_number(point.get("output_tokens_per_s")), as_number(point.get("failed_share"))
        unit = "/s" if point.get("kind") == "rate" else " at once"
        rows.append(
            (
                Cell(f"{quantity(as_number(point.get('load')))}{unit}"),
                number_cell(quantity(as_number(point.get("requests_per_s")))),
                number_cell(quantity(rate)),
                number_cell(_span_ms(ttft.get("p50"))),
                number_cell(_span_ms(ttft.get("p99"))),
                number_cell(_span_ms(itl.get("p50"))),
                number_cell("–" if failed is None else share(failed)),
                Cell("yes" if point.get("is_valid") is True else "no"),
            )
        )
    columns = ("Load", "Requests/s", "Output tokens/s", "TTFT p50", "TTFT p99", "ITL p50", "Failed", "Valid")
    return [Table("Sweep", columns, tuple(rows))] if rows else []


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
