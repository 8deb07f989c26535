"""Why figures must not be published as a measurement of the server. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from client.load.figures import Figures

CANCELLED = "the benchmark was cancelled"
# Growth of latency by fewer standard errors may be chance.
_CERTAIN_ERRORS = 3.0


@dataclass(frozen=True)
class Limits:
    """What is tolerated.

    Attributes:
        failed_share: Requests that may fail.
        added_share, added_ms: What the client may add to the median TTFT: the greater of the two.
        lag_share, lag_ms: How late the client's own timers may be in the median, the same way.
        unsent_share: Requests per second that the client may fall short of those asked for.
        unfinished_share: Requests per second that the server may fall short of them.
        busy_share: Share of a core that the busiest of the client's processes may use.
    """

    failed_share: float = 0.0
    added_share: float = 0.02
    added_ms: float = 0.2
    lag_share: float = 0.02
    lag_ms: float = 1.0
    unsent_share: float = 0.01
    unfinished_share: float = 0.05
    busy_share: float = 0.9


def invalid_reasons(
    figures: Figures, limits: Limits, client_adds_ms: float | None = None, may_overdrive: bool = False
) -> list[str]:
    """Return one line for each reason why ``figures`` must not be published; empty if nothing speaks against them.

    Args:
        figures: What was measured.
        limits: What is tolerated.
        client_adds_ms: How much the client added to the median TTFT of a mock whose true TTFT is known, under the same
            load on the same machine; None if there was no self-check.
        may_overdrive: Whether the load may be more than the server can take, as it must be beyond the knee of a sweep.
    """
    return [
        *_incomplete(figures, limits),
        *_disturbed(figures, limits, client_adds_ms),
        *_unsent(figures, limits),
        *([] if may_overdrive else _overdriven(figures, limits)),
    ]


def _incomplete(figures: Figures, limits: Limits) -> list[str]:
    reasons = []
    if figures.was_cancelled:
        reasons.append(CANCELLED)
    if figures.unfinished:
        reasons.append(f"{figures.unfinished} requests did not finish")
    if not figures.successful:
        reasons.append("no request succeeded")
    if figures.failed_share > limits.failed_share:
        classes = ", ".join(f"{name}: {count}" for name, count in figures.failures.items() if count)
        reasons.append(
            f"{figures.failed} of {figures.total} requests failed ({classes}): {figures.failed_share:.2%}; "
            f"allowed: {limits.failed_share:.2%}"
        )
    if figures.successful_without_tokens:
        reasons.append(f"{figures.successful_without_tokens} successful requests brought no tokens")
    return reasons


def _disturbed(figures: Figures, limits: Limits, client_adds_ms: float | None) -> list[str]:
    reasons = []
    ttft_ms = figures.ttft_service_ms.p50
    if ttft_ms is not None and client_adds_ms is not None:
        allowed_ms = max(limits.added_ms, limits.added_share * ttft_ms)
        if client_adds_ms > allowed_ms:
            reasons.append(
                f"the client adds {client_adds_ms:.2f} ms to a median TTFT of {ttft_ms:.2f} ms "
                f"({client_adds_ms / ttft_ms:.1%}); allowed: {allowed_ms:.2f} ms; give it more CPUs and processes"
            )
    lag_ms = figures.client_loop_lag_ms.p50
    if lag_ms is not None:
        allowed_ms = max(limits.lag_ms, limits.lag_share * (ttft_ms or 0.0))
        if lag_ms > allowed_ms:
            reasons.append(
                f"the client's own timers ran {lag_ms:.2f} ms late in the median; allowed: {allowed_ms:.2f} ms; "
                "give it more CPUs and processes"
            )
    if figures.client_busy_share > limits.busy_share:
        reasons.append(
            f"the client was saturated: its busiest process used {figures.client_busy_share:.0%} of a core; "
            f"allowed: {limits.busy_share:.0%}; give it more processes"
        )
    return reasons


def _unsent(figures: Figures, limits: Limits) -> list[str]:
    asked, sent = figures.rate_asked_per_s, figures.rate_sent_per_s
    if asked is None or sent is None or sent >= asked * (1 - limits.unsent_share):
        return []
    short = f"the client sent {sent:.2f} of {asked:.2f} requests/s asked for ({1 - sent / asked:.1%} short)"
    return [f"{short}; allowed: {limits.unsent_share:.0%}; give it more processes"]


def _overdriven(figures: Figures, limits: Limits) -> list[str]:
    reasons = []
    asked, finished, growth = figures.rate_asked_per_s, figures.rate_finished_per_s, figures.latency_growth
    if asked is not None and finished is not None and growth is not None:
        short, least = 1 - finished / asked, _CERTAIN_ERRORS * (figures.latency_growth_error or 0.0)
        if short > limits.unfinished_share and growth > least:
            reasons.append(
                f"overdriven: the server keeps up with {finished:.2f} of {asked:.2f} requests/s asked for "
                f"({short:.1%} short); allowed: {limits.unfinished_share:.0%}; a request takes {growth:.2f} s longer "
                "for each second of the run"
            )
    little = figures.little
    if little is not None and little.error > little.allowed:
        product = little.rate_per_s * little.time_s
        reasons.append(
            f"Little's law does not hold: {little.in_flight:.2f} requests under way, but {little.rate_per_s:.2f}/s "
            f"× {little.time_s:.4f} s = {product:.2f} ({little.error:.1%} off; allowed: {little.allowed:.1%})"
        )
    return reasons
