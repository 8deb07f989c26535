"""Numbers and states in words, with units; None is written as a dash."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from orchestrator.report.untrusted import as_number, as_text
from orchestrator.report.views import Badge, Tone

NONE = "–"
_NBSP = "\u00a0"
_TONES: dict[Tone, set[str]] = {
    "good": {"completed", "ready", "running", "done", "finished"},
    "bad": {"failed", "timeout", "out_of_memory", "node_fail", "lost", "error"},
    "warn": {
        "interrupted",
        "stopped",
        "cancelled",
        "preempted",
        "pruned",
        "skipped",
        "unknown",
        "suspended",
        "requeued",
    },
}


def state_badge(value: object) -> Badge:
    """Return the badge of a state of a run, a stage, a job or a trial."""
    text = as_text(value, 40) or "unknown"
    tone: Tone = next((tone for tone, states in _TONES.items() if text.lower() in states), "plain")
    return Badge(text.lower().replace("_", " "), tone)


def time_span(seconds: float | None) -> str:
    """Return a length of time: ms below 1 s, then s, min and s, h and min."""
    if seconds is None:
        return NONE
    if seconds < 0:
        return f"−{time_span(-seconds)}"
    if seconds < 0.9995:
        return f"{_three_digits(1000 * seconds)}{_NBSP}ms"
    if seconds < 59.95:
        return f"{seconds:.2f}{_NBSP}s" if seconds < 9.995 else f"{seconds:.1f}{_NBSP}s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}{_NBSP}min{_NBSP}{whole % 60:02d}{_NBSP}s"
    minutes = round(seconds / 60)
    return f"{minutes // 60:,}{_NBSP}h{_NBSP}{minutes % 60:02d}{_NBSP}min"


def quantity(value: float | None, unit: str = "") -> str:
    """Return a number with its unit, to three digits but never less than whole."""
    if value is None:
        return NONE
    return f"{_three_digits(value)}{_NBSP}{unit}" if unit else _three_digits(value)


def share(value: float | None) -> str:
    """Return a share (0..1) in percent."""
    return NONE if value is None else f"{100 * value:.1f}{_NBSP}%"


def plural(count: int, noun: str) -> str:
    """Return ``count`` with ``noun``, which takes an s unless there is one."""
    return f"{count:,}{_NBSP}{noun}" + ("" if count == 1 else "s")


def moment(epoch_s: float | None) -> str | None:
    """Return a time of the local zone, to the second; None if it is not known or not a time."""
    if epoch_s is None:
        return None
    try:
        local = datetime.fromtimestamp(epoch_s, UTC).astimezone()
    except (OverflowError, ValueError, OSError):
        return None
    return f"{local:%Y-%m-%d %H:%M:%S} {local.tzname() or ''}".rstrip()


def setting(value: object) -> str:
    """Return a hyperparameter's value."""
    if isinstance(value, bool):
        return "true" if value else "false"
    number = as_number(value)
    if number is None:
        return as_text(value, 120) or NONE
    return f"{number:.4g}" if isinstance(value, float) else str(value)


def listing(parts: Sequence[str]) -> str:
    """Return ``parts`` as a sentence would name them."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else ""


def _three_digits(value: float) -> str:
    size = abs(value)
    if size >= 1e15 or 0 < size < 1e-3:
        return f"{value:.3g}"
    if value == int(value) or size >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 9.995 else f"{value:.2f}" if size >= 0.9995 else f"{value:.3g}"
