"""Measurements with known truths, made without a server."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from client.load.rows import MEASURED, ROW
from client.load.run import Measurement
from client.load.spec import ERROR_CLASSES, ErrorClass
from client.load.worker import WorkerReport

Array = npt.NDArray[Any]
QUIET = WorkerReport(cpu_s=1.0, lasted_s=10.0, opened=4, resent=0, lag_mean_s=1e-4, lag_max_s=1e-3)


def measurement(
    sent_s: Array,
    ttft_s: Array | float,
    gaps_s: Array,
    late_s: Array | float = 0.0,
    client: Array | int = -1,
    tail_s: float = 0.001,
    **columns: Any,
) -> Measurement:
    """Return a measurement of requests with ``gaps_s`` (requests, gaps) between pieces of one token each.

    ``late_s`` is how long after the intended time each was sent; ``columns`` replace columns of the rows.
    """
    count, gaps = gaps_s.shape
    rows = np.zeros(count, dtype=ROW)
    rows["index"], rows["client"], rows["phase"] = np.arange(count), client, MEASURED
    rows["sent_s"], rows["intended_s"] = sent_s, sent_s - late_s
    rows["first_byte_s"] = rows["first_content_s"] = rows["sent_s"] + ttft_s
    rows["first_reasoning_s"] = np.nan
    rows["last_token_s"] = rows["first_content_s"] + gaps_s.sum(axis=1)
    rows["eof_s"] = rows["last_token_s"] + tail_s
    rows["gap_start"], rows["gap_count"] = np.arange(count) * gaps, gaps
    rows["chunks"] = rows["completion_tokens"] = rows["usage_tokens"] = gaps + 1
    rows["prompt_tokens"], rows["status"], rows["error"] = 10, 200, -1
    for name, values in columns.items():
        rows[name] = values
    return Measurement(rows, gaps_s.ravel(), (), 1.7e9, 0.2, (QUIET,))


def failed(made: Measurement, places: Array | list[int], error_class: ErrorClass) -> Measurement:
    """Return ``made`` with the requests at ``places`` failed before any text."""
    rows = made.rows.copy()
    rows["error"][places] = ERROR_CLASSES.index(error_class)
    for name in ("first_content_s", "last_token_s"):
        rows[name][places] = np.nan
    for name in ("gap_count", "chunks", "completion_tokens"):
        rows[name][places] = 0
    return Measurement(rows, made.gaps, made.notes, made.started_at, made.start_s, made.workers)


def open_loop(
    count: int, rate: float = 100.0, seed: int = 0, tokens: int = 16, ttft_s: float = 0.05, itl_s: float = 0.005
) -> Measurement:
    """Return a Poisson load on a server with gamma-distributed latencies of these means."""
    random = np.random.default_rng(seed)
    sent_s = np.cumsum(random.exponential(1 / rate, count))
    first_s = ttft_s * (0.5 + random.gamma(2.0, 0.25, count))
    return measurement(sent_s, first_s, itl_s * random.gamma(4.0, 0.25, (count, tokens - 1)))


def closed_loop(clients: int, each: int, seed: int = 0, ttft_s: float = 0.05, itl_s: float = 0.005) -> Measurement:
    """Return ``clients`` that send ``each`` requests one right after the other, of eight tokens."""
    random = np.random.default_rng(seed)
    first_s = ttft_s * (0.5 + random.gamma(2.0, 0.25, (clients, each)))
    gaps_s = itl_s * random.gamma(4.0, 0.25, (clients, each, 7))
    lasted_s = first_s + gaps_s.sum(axis=2) + 0.001
    sent_s = np.cumsum(lasted_s + 1e-6, axis=1) - lasted_s
    ids = np.repeat(np.arange(clients), each)
    return measurement(sent_s.ravel(), first_s.ravel(), gaps_s.reshape(-1, 7), client=ids)
