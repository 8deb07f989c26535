"""Service level objectives of a request: ``ttft_ms<=200,itl_ms<=20``."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Literal, get_args

import msgspec
import numpy as np

from client.errors import WorkloadError
from client.load.columns import Columns, Flags

SloMetric = Literal["ttft_ms", "itl_ms", "tpot_ms", "e2e_ms"]
SLO_METRICS: tuple[SloMetric, ...] = get_args(SloMetric)
_TERM = re.compile(r"\s*(\w+)\s*(<=)\s*([0-9.eE+-]+)\s*")


class SloError(WorkloadError):
    """A service level objective cannot be read."""


class Slo(msgspec.Struct, frozen=True):
    """A request is good if its ``metric`` is at most ``limit_ms`` milliseconds."""

    metric: SloMetric
    limit_ms: float

    def __str__(self) -> str:
        return f"{self.metric}<={self.limit_ms:g}"


def parse_slos(text: str) -> tuple[Slo, ...]:
    """Return the objectives in ``text``, all of which a request has to meet.

    Raises:
        SloError: a term is not ``METRIC<=MILLISECONDS``, or a metric comes twice.
    """
    slos: dict[str, Slo] = {}
    for term in text.split(","):
        match = _TERM.fullmatch(term)
        if match is None or match[1] not in SLO_METRICS:
            raise SloError(
                f"SLO {term.strip()!r} is not METRIC<=MILLISECONDS, as in 'ttft_ms<=200,itl_ms<=20'. "
                f"Metrics: {', '.join(SLO_METRICS)}"
            )
        if match[1] in slos:
            raise SloError(f"SLO {text!r} has {match[1]} twice; keep the smaller limit")
        slos[match[1]] = Slo(match[1], _limit_ms(match[3], term))
    return tuple(slos.values())


def meets(columns: Columns, slos: Sequence[Slo]) -> Flags:
    """Return which requests succeeded and met all of ``slos``.

    ``ttft_ms`` and ``e2e_ms`` count from the intended time in an open loop; ``itl_ms`` is the request's mean. A stream
    of a single arrival has no time between tokens, and meets every limit on it.
    """
    values_s = {
        "ttft_ms": lambda: columns.first_s - columns.start_s,
        "e2e_ms": lambda: columns.eof_s - columns.start_s,
        "itl_ms": lambda: np.nan_to_num(columns.itl_s, nan=0.0),
        "tpot_ms": lambda: np.nan_to_num(columns.tpot_s, nan=0.0),
    }
    good = columns.is_success.copy()
    for slo in slos:
        good &= values_s[slo.metric]() * 1000 <= slo.limit_ms
    return good


def _limit_ms(number: str, term: str) -> float:
    try:
        limit_ms = float(number)
    except ValueError as error:
        raise SloError(f"SLO {term.strip()!r}: {number!r} is no number of milliseconds") from error
    if not (math.isfinite(limit_ms) and limit_ms > 0):
        raise SloError(f"SLO {term.strip()!r}: the limit must be above 0 ms")
    return limit_ms
