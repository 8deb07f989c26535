"""A load as one HTML page that needs nothing else: verdict, key figures, plots and tables.

Text that a server or a user gave is cleaned and escaped; the page runs no script and loads nothing.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from client.load.columns import Columns
from client.load.export import Summary, write_private
from client.load.figures import Distribution, Interval
from client.load.pictures import Picture
from client.load.plots import pictures_of_load, pictures_of_server, pictures_of_sweep
from client.load.repeats import Estimate

_CSS = Path(__file__).with_name("report.css")
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
# Control characters but tab and newline, lone surrogates, and the marks that reorder the text after them.
_UNSHOWABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069\ufffe\uffff]")
# How the quantities of a server and its exporters are shown, by the ends of their names.
_UNITS = {
    "_bytes": (2.0**-30, " GiB"),
    "_bytes_per_s": (1e-6, " MB/s"),
    "_s": (1e3, " ms"),
    "_w": (1, " W"),
    "_j": (1, " J"),
    "_share": (100, " %"),
    "": (1, ""),
}
_ABBREVIATION = re.compile(r"\b(cpu|gpu|kv|ttft|e2e)\b", re.IGNORECASE)
_MAX_TEXT = 500
_MAX_ERRORS = 20
_COLUMNS = ("mean", "p50", "p90", "p95", "p99", "p999")
_HEADINGS = ("", "mean", "p50", "p90", "p95", "p99", "p99.9", "max", "samples")
_LATENCIES = (
    ("ttft_ms", "TTFT", "time to first token"),
    ("ttft_service_ms", "TTFT, service", "from sending"),
    ("itl_ms", "ITL", "time between tokens"),
    ("itl_chunk_ms", "ITL by chunk", "time between arrivals"),
    ("tpot_ms", "TPOT", "time per output token of a request"),
    ("e2e_ms", "End to end", "the whole request"),
    ("e2e_service_ms", "End to end, service", "from sending"),
    ("e2e_failed_ms", "Failed requests", "until the failure was noticed"),
    ("schedule_delay_ms", "Schedule delay", "sent − intended"),
    ("client_loop_lag_ms", "Client's timers", "how late they ran"),
)


def write_report(
    folder: Path, summary: Summary, columns: Columns | None = None, errors: Sequence[str] = ()
) -> list[Path]:
    """Write ``report.html`` and each plot as ``plots/NAME.png`` into ``folder``; return what was written.

    Args:
        folder: Is there already.
        summary: What the page tells.
        columns: The requests behind it; without them there are no plots of single requests.
        errors: What was said of requests that failed.

    Raises:
        StorageError: a file cannot be written.
    """
    pictures = _pictures(summary, columns)
    (folder / "plots").mkdir(mode=0o700, exist_ok=True)
    files = {folder / "report.html": render_page(summary, pictures, errors).encode()}
    files |= {folder / "plots" / f"{picture.name}.png": picture.png() for picture in pictures}
    for path, data in files.items():
        write_private(path, data)
    return list(files)


def render_report(summary: Summary, columns: Columns | None = None, errors: Sequence[str] = ()) -> str:
    """Return the page; the arguments are those of write_report()."""
    return render_page(summary, _pictures(summary, columns), errors)


def render_page(summary: Summary, pictures: Sequence[Picture], errors: Sequence[str]) -> str:
    """Return the page with ``pictures``."""
    name = f"Load on {_clean(summary.about.get('model') or summary.about.get('url') or 'a server')}"
    badge = '<span class="badge good">valid</span>' if summary.valid else '<span class="badge bad">not valid</span>'
    started = datetime.fromtimestamp(summary.started_at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    facts = [("Started", started), ("Lasted", f"{_number(summary.duration_s)} s"), *_about(summary.about)]
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">',
            f"<title>{_text(name)} · orch</title>\n<style>\n{_CSS.read_text()}</style>\n</head>\n<body>",
            f'<header><div class="wrap"><div class="title"><h1>{_text(name)}</h1>{badge}</div>',
            f"{_facts(facts)}</div></header>",
            f'<main class="wrap">\n{_verdict(summary)}\n{_cards(summary)}',
            *_sections(summary, pictures, errors),
            f'</main>\n<footer><div class="wrap">{_footer(summary)}</div></footer>\n</body>\n</html>\n',
        ]
    )


def _pictures(summary: Summary, columns: Columns | None) -> list[Picture]:
    sweep = pictures_of_sweep(summary.points, summary.knee, summary.capacity)
    load = pictures_of_load(summary, columns, summary.valid) if columns is not None else []
    return sweep + load + pictures_of_server(summary.about.get("server_side", {}), summary.valid)


def _sections(summary: Summary, pictures: Sequence[Picture], errors: Sequence[str]) -> list[str]:
    sections = []
    if pictures:
        plots = "\n".join(_figure(picture) for picture in pictures)
        sections.append(_section("Plots", f'<div class="plots">\n{plots}\n</div>'))
    if summary.points:
        sections.append(_section("Sweep", _points_table(summary)))
    sections.append(_section("Latency", _latency_table(summary)))
    sections.append(_section("Load and client", _facts(_load_facts(summary))))
    server_side = summary.about.get("server_side", {})
    if facts := _server_facts(server_side):
        sections.append(_section("By the server's own metrics", _facts(facts)))
    for url, told in server_side.get("exporters", {}).items():
        facts = _server_facts(told) or [("Answer", "none that is known")]
        sections.append(_section(f"By the exporter at {url}", _facts(facts)))
    if summary.repeats:
        sections.append(_section("Repeats", _repeats_table(summary)))
    if summary.failed:
        sections.append(_section("Failures", _failures_table(summary.failures) + _errors(errors)))
    return sections


def _verdict(summary: Summary) -> str:
    if summary.valid:
        return '<div class="callout good"><p>Valid: nothing speaks against publishing these figures.</p></div>'
    items = "".join(f"<li>{_text(reason)}</li>" for reason in summary.invalid_reasons)
    return (
        '<div class="callout bad"><p>Not valid: do not publish or compare these figures.</p>'
        f"<ul>{items}</ul></div>"
    )  # fmt: skip


def _cards(summary: Summary) -> str:
    rates = summary.intervals
    cards = [
        ("Output tokens/s", _number(summary.output_tokens_per_s), _range(rates.get("output_tokens_per_s"))),
        ("Requests/s", _number(summary.requests_per_s), _range(rates.get("requests_per_s"))),
        ("TTFT p50", _ms(summary.ttft_ms.p50), _range(summary.ttft_ms.intervals.get("p50"))),
        ("TTFT p99", _ms(summary.ttft_ms.p99), _range(summary.ttft_ms.intervals.get("p99"))),
        ("ITL p50", _ms(summary.itl_ms.p50), _range(summary.itl_ms.intervals.get("p50"))),
        ("Failed", f"{summary.failed:,}", f"of {summary.total:,}: {summary.failed_share:.2%}"),
    ]
    if summary.goodput_per_s is not None:
        objectives = ", ".join(map(str, summary.slos))
        cards.append(
            ("Good requests/s", _number(summary.goodput_per_s), f"{summary.good_share or 0:.1%}: {objectives}")
        )
    body = "".join(
        f'<div><dt>{_text(label)}</dt><dd>{value}</dd><dd class="remark">{_text(remark)}</dd></div>'
        for label, value, remark in cards
    )
    return f'<dl class="cards" aria-label="Key figures">{body}</dl>'


def _load_facts(summary: Summary) -> list[tuple[str, str]]:
    facts = [
        ("Kind", "open loop" if summary.is_open_loop else "closed loop"),
        ("Requests", f"{summary.successful:,} successful of {summary.total:,}"),
        ("Warm-up", f"{summary.warmup_requests:,} requests"),
        ("In flight, mean", _number(summary.concurrency_mean)),
        ("In flight, most", f"{summary.concurrency_max:,}"),
        ("Prompt tokens", f"{summary.prompt_tokens:,}"),
        ("Output tokens", f"{summary.output_tokens:,} (counted by {summary.tokens_source})"),
        ("Prompt and output", f"{_number(summary.total_tokens_per_s)} tokens/s"),
    ]
    rates = (
        ("asked", summary.rate_asked_per_s),
        ("sent", summary.rate_sent_per_s),
        ("kept up with", summary.rate_finished_per_s),
    )
    facts += [(f"Rate {name}", f"{_number(rate)}/s") for name, rate in rates if rate is not None]
    steady, little = summary.steady, summary.little
    facts.append(("Steady", f"{steady.begin_s:.1f} to {steady.end_s:.1f} s" if steady.is_found else "not found"))
    if little is not None:
        facts.append(("Little's law", f"{little.error:.1%} off; allowed: {little.allowed:.1%}"))
    if summary.client_adds_ms is not None:
        facts.append(("Client adds to TTFT p50", _ms(summary.client_adds_ms)))
    return [
        *facts,
        ("Client's CPU", f"{_number(summary.client_cpu_s)} s, {summary.client_busy_share:.0%} of a core at most"),
        ("Client's start", f"{_number(summary.client_start_s)} s"),
        ("Connections", f"{summary.connections_opened:,}"),
    ]


def _latency_table(summary: Summary) -> str:
    rows = []
    for name, label, words in _LATENCIES:
        told: Distribution = getattr(summary, name)
        if not told.count or (name.endswith("service_ms") and not summary.is_open_loop):
            continue
        if name == "itl_chunk_ms" and told.mean == summary.itl_ms.mean:
            continue
        cells = [_cell(getattr(told, figure), told.intervals.get(figure)) for figure in _COLUMNS]
        rows.append([f'{label}<div class="remark">{words}</div>', *cells, _cell(told.max), f"{told.count:,}"])
    return _table(f"Milliseconds, with {summary.confidence:.0%} intervals", _HEADINGS, rows)


def _points_table(summary: Summary) -> str:
    headings = ("Load", "Requests/s", "Output tokens/s", "TTFT p50, ms", "TTFT p99, ms", "ITL p50, ms", "E2E p99, ms",
                "Failed", "Objectives", "Valid")  # fmt: skip
    rows = []
    for point in sorted(summary.points, key=lambda point: point.load):
        intervals = point.intervals
        rows.append([
            f"{point.load:g}{'/s' if point.kind == 'rate' else ' at once'}",
            _cell(point.requests_per_s, intervals.get("requests_per_s")),
            _cell(point.output_tokens_per_s, intervals.get("output_tokens_per_s")),
            _cell(point.ttft_ms.p50, point.ttft_ms.intervals.get("p50")),
            _cell(point.ttft_ms.p99, point.ttft_ms.intervals.get("p99")),
            _cell(point.itl_ms.p50, point.itl_ms.intervals.get("p50")),
            _cell(point.e2e_ms.p99, point.e2e_ms.intervals.get("p99")),
            f"{point.failed_share:.1%}",
            "–" if point.is_good is None else "met" if point.is_good else "missed",
            "yes" if point.is_valid else "no",
        ])  # fmt: skip
    return _table("Points", headings, rows)


def _repeats_table(summary: Summary) -> str:
    rows = [
        [
            _text(name),
            _number(told.mean),
            "–" if told.sd is None else _number(told.sd),
            _range(_ends(told)),
            f"{told.count}",
        ]
        for name, told in summary.repeats.items()
    ]
    return _table("Over whole runs; latencies in ms", ("Metric", "mean", "deviation", "interval", "runs"), rows)


def _ends(told: Estimate) -> Interval | None:
    return None if told.low is None or told.high is None else (told.low, told.high)


def _failures_table(failures: Mapping[str, int]) -> str:
    counts = sorted(((name, count) for name, count in failures.items() if count), key=lambda pair: -pair[1])
    return _table(
        "Failed requests by class", ("Class", "Requests"), [[_text(name), f"{count:,}"] for name, count in counts]
    )


def _errors(errors: Sequence[str]) -> str:
    """Return the most frequent of ``errors`` with their numbers."""
    counts: dict[str, int] = {}
    for error in errors:
        counts[error] = counts.get(error, 0) + 1
    if not counts:
        return ""
    often = sorted(counts.items(), key=lambda pair: -pair[1])[:_MAX_ERRORS]
    caption = (
        "What was said of them"
        if len(counts) <= _MAX_ERRORS
        else f"What was said of them, {_MAX_ERRORS} of {len(counts):,}"
    )
    return _table(caption, ("Words", "Requests"), [[_text(error), f"{count:,}"] for error, count in often])


def _footer(summary: Summary) -> str:
    from_when = "the time a request was meant to be sent" if summary.is_open_loop else "sending"
    return _text(
        f"TTFT and end-to-end times count from {from_when}. Intervals: circular block bootstrap, {summary.block} "
        "requests in a row kept together."
    )


def _section(title: str, body: str) -> str:
    return f"<section>\n<h2>{_text(title)}</h2>\n{body}\n</section>"


def _figure(picture: Picture) -> str:
    keys = "".join(
        f'<span class="key"><span class="mark {kind} series-{place}"></span>{_text(words)}</span>'
        for kind, place, words in picture.keys
    )
    mark = "" if picture.is_valid else ' <span class="badge bad">not valid</span>'
    return (
        f'<figure>\n<h3>{_text(picture.title)}{mark}</h3>\n<div class="keys">{keys}</div>\n{picture.svg()}\n'
        f"<figcaption>{_text(picture.caption)}</figcaption>\n</figure>"
    )


def _table(caption: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table whose first column has names; ``rows`` are HTML."""

    def row_of(cells: Sequence[str], tag: str) -> str:
        first, *others = cells
        return (
            f'<tr><th scope="{"col" if tag == "th" else "row"}">{first}</th>'
            + "".join(f'<{tag} class="number">{cell}</{tag}>' for cell in others)
            + "</tr>"
        )

    body = "".join(row_of(row, "td") for row in rows)
    head = row_of([_text(heading) for heading in headings], "th")
    table = f"<caption>{_text(caption)}</caption><thead>{head}</thead><tbody>{body}</tbody>"
    return f'<div class="table"><table>{table}</table></div>'


def _facts(facts: Iterable[tuple[str, str]]) -> str:
    body = "".join(f"<div><dt>{_text(label)}</dt><dd>{_text(value)}</dd></div>" for label, value in facts)
    return f'<dl class="facts">{body}</dl>'


def _about(about: Mapping[str, Any]) -> list[tuple[str, str]]:
    shown = {name: value for name, value in about.items() if value is not None and name != "server_side"}
    return [
        (_clean(name).replace("_", " ").capitalize(), _clean("; ".join(value) if isinstance(value, list) else value))
        for name, value in shown.items()
        if value != []
    ]


def _server_facts(told: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what a server or an exporter said of itself."""
    facts = []
    for name, value in told.items():
        if name in {"series", "exporters"}:
            continue
        ending = next((ending for ending in _UNITS if name.endswith(ending)), "")
        factor, unit = _UNITS[ending]
        words = name.removesuffix(ending).replace("_", " ")
        label = _ABBREVIATION.sub(lambda found: found[0].upper(), _clean(words[:1].upper() + words[1:]))
        if not isinstance(value, Mapping):
            facts.append((label, f"{_number(factor * float(value))}{unit}"))
        elif "samples" in value:
            mean, least, most = (_number(factor * float(value[figure])) for figure in ("mean", "min", "max"))
            facts.append((label, f"mean {mean}{unit}, {least} to {most}"))
        else:
            bound = value.get("p50_at_most")
            median = f", median at most {_number(factor * float(bound))}{unit}" if bound is not None else ""
            facts.append((label, f"mean {_number(factor * float(value['mean']))}{unit}{median}"))
    return facts


def _cell(value: float | None, interval: Interval | None = None) -> str:
    if value is None:
        return "–"
    return _number(value) + (f"<small>{_range(interval)}</small>" if interval is not None else "")


def _range(interval: Interval | None) -> str:
    return "" if interval is None else f"{_number(interval[0])} – {_number(interval[1])}"


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{_number(value)} ms"


def _number(value: float) -> str:
    """Return ``value`` with about three figures, none of them lost before the point."""
    if not math.isfinite(value):
        return "–"
    size = abs(value)
    return (
        f"{value:,.0f}"
        if size >= 1000
        else f"{value:.1f}"
        if size >= 100
        else f"{value:.2f}"
        if size >= 1
        else f"{value:.3f}"
    )


def _clean(value: object) -> str:
    text = _UNSHOWABLE.sub("\ufffd", str(value))
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}…"


def _text(value: object) -> str:
    return html.escape(_clean(value))
