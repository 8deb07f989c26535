"""A summary for people at a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

from client.load.export import Summary
from client.load.figures import Distribution
from client.load.saturation import Point

_LATENCIES = (
    ("TTFT", "ttft_ms"),
    ("  from sending", "ttft_service_ms"),
    ("ITL", "itl_ms"),
    ("TPOT", "tpot_ms"),
    ("end to end", "e2e_ms"),
    ("sent late by", "schedule_delay_ms"),
)
_OPEN_ONLY = {"ttft_service_ms", "schedule_delay_ms"}


def show_summary(summary: Summary, errors: Sequence[str] = ()) -> str:
    """Return ``summary`` as text."""
    lines = [f"{summary.about.get('model')} at {summary.about.get('url')} ({summary.about.get('api')})", ""]
    if summary.points:
        lines += [*_points(summary.points), "", *_found(summary), ""]
    lines += [*_rates(summary), "", *_latencies(summary)]
    if summary.failed:
        classes = ", ".join(f"{name} {count}" for name, count in summary.failures.items() if count)
        lines += ["", f"Failures: {classes}", *(f"  {words[:76]}" for words in errors[:5])]
    if summary.client_adds_ms is not None:
        lines += ["", f"Self-check: this client adds {summary.client_adds_ms:.2f} ms to the median TTFT of a mock"]
    lines += ["", *_verdict(summary)]
    return "\n".join(lines) + "\n"


def _rates(summary: Summary) -> list[str]:
    lines = [
        f"Requests: {summary.successful} of {summary.total} succeeded in {summary.duration_s:.2f} s",
        f"Throughput: {summary.requests_per_s:.4g} requests/s, {summary.output_tokens_per_s:.4g} output tokens/s",
    ]
    if summary.goodput_per_s is not None:
        objectives = ", ".join(map(str, summary.slos))
        lines.append(f"Goodput: {summary.goodput_per_s:.4g} requests/s meet {objectives}")
    server = summary.about.get("server_side", {})
    if "joules_per_output_token" in server:
        lines.append(f"Energy of the GPUs: {server['energy_j']:.4g} J, {server['joules_per_output_token']:.3g} J/token")
    return lines


def _latencies(summary: Summary) -> list[str]:
    lines = [f"{'ms':<16}" + "".join(f"{name:>10}" for name in ("mean", "p50", "p90", "p99", "p99.9"))]
    for name, field in _LATENCIES:
        told: Distribution = getattr(summary, field)
        if told.count and (summary.is_open_loop or field not in _OPEN_ONLY):
            cells = (told.mean, told.p50, told.p90, told.p99, told.p999)
            lines.append(f"{name:<16}" + "".join(f"{_number(value):>10}" for value in cells))
    return lines


def _points(points: Sequence[Point]) -> list[str]:
    kind = "at once" if points[0].kind == "concurrency" else "requests/s"
    names = (kind, "done/s", "tokens/s", "TTFT p50", "TTFT p99", "ITL p50", "valid")
    lines = ["".join(f"{name:>11}" for name in names)]
    for point in points:
        cells = (
            f"{point.load:g}", f"{point.requests_per_s:.4g}", f"{point.output_tokens_per_s:.4g}",
            _number(point.ttft_ms.p50), _number(point.ttft_ms.p99), _number(point.itl_ms.p50),
            "yes" if point.is_valid else "NO",
        )  # fmt: skip
        lines.append("".join(f"{cell:>11}" for cell in cells))
    return lines


def _found(summary: Summary) -> list[str]:
    lines = []
    if summary.knee is not None:
        lines.append(f"Knee: {summary.knee.load:g}, with {summary.knee.requests_per_s:.4g} requests/s")
    if summary.capacity is not None:
        good, bad = summary.capacity.good_load, summary.capacity.bad_load
        text = f"up to {good:g}" if good is not None else "at no load that was tried"
        lines.append(f"Objectives are met {text}" + (f", no more at {bad:g}" if bad is not None else ""))
    lines.append("The figures below are those of one of these loads: the best that met the objectives, or the knee.")
    return lines


def _verdict(summary: Summary) -> list[str]:
    if summary.valid:
        return ["Valid: nothing speaks against these figures."]
    return ["NOT VALID:", *(f"  - {reason}" for reason in summary.invalid_reasons)]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}" if value < 1000 else f"{value:.0f}"
