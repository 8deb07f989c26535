"""What stages may do with metrics; monitoring/ implements it, and a run without monitoring uses NoMetrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Sample:
    """One gauge value.

    Attributes:
        name: Metric name with its unit, such as ``tokens_per_second``.
        value: The value.
        help: What it is, in words.
        labels: Labels besides those of the group.
    """

    name: str
    value: float
    help: str
    labels: Mapping[str, str] = field(default_factory=dict)


class MetricsSink(Protocol):
    """Where metrics go that have no one to scrape them."""

    def push(self, group: Mapping[str, str], samples: Sequence[Sample]) -> None:
        """Replace the samples of ``group`` (grouping key: ``job`` and more). Failures are logged, never raised."""
        ...

    def settle(self) -> dict[str, Any]:
        """Wait until Prometheus has surely seen the last push of every group; return what it holds of this run.

        The result has ``seen`` (bool), ``why`` (text or None) and ``series`` (Prometheus' range answers).
        """
        ...

    def clear(self) -> None:
        """Delete every pushed group of this run by its full grouping key."""
        ...


class NoMetrics:
    """A run without monitoring."""

    def push(self, group: Mapping[str, str], samples: Sequence[Sample]) -> None:
        """Drop the samples: nobody asked for them."""

    def settle(self) -> dict[str, Any]:
        """Return that there was nothing to see."""
        return {"seen": False, "why": "the run has no monitoring", "series": []}

    def clear(self) -> None:
        """Nothing was pushed."""
