"""When requests begin: schedules of open loops, and the ramp of a closed one. Pure; times in seconds.

A schedule is made whole, before the load is shared out, so that it does not depend on the number of processes. With the
same seed a longer schedule begins with the shorter one. Times are rounded to whole nanoseconds.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from client.errors import WorkloadError
from client.load.seeds import generator_for

Times = npt.NDArray[np.float64]
MAX_ARRIVALS = 50_000_000
_DECIMALS = 9


def constant_arrivals(rate_per_s: float, requests: int | None = None, duration_s: float | None = None) -> Times:
    """Return arrivals at even distances, the first at 0.

    Args:
        rate_per_s: Arrivals per second.
        requests: How many there are at most.
        duration_s: All are earlier than this. Of both limits the one that is met first holds.

    Raises:
        WorkloadError: no limit at all, or a figure that cannot be.
    """
    wanted = _wanted(rate_per_s, requests, duration_s)
    # One more than fits: whether the last is early enough is seen by its time.
    times: Times = np.round(np.arange(wanted) / rate_per_s, _DECIMALS)
    return times if duration_s is None else times[times < duration_s]


def poisson_arrivals(
    rate_per_s: float, seed: int, requests: int | None = None, duration_s: float | None = None
) -> Times:
    """Return the arrivals of a Poisson process; see ``gamma_arrivals``."""
    return gamma_arrivals(rate_per_s, 1.0, seed, requests, duration_s)


def gamma_arrivals(
    rate_per_s: float, shape: float, seed: int, requests: int | None = None, duration_s: float | None = None
) -> Times:
    """Return arrivals whose distances, that from 0 to the first included, are gamma distributed.

    ``shape`` is the ``--burstiness`` of ``vllm bench serve``: 1 is a Poisson process, less comes in bursts, more is
    more even; the coefficient of variation of the distances is ``shape ** -0.5``. The rate is the one expected, not
    the one that these arrivals happen to have.

    Args:
        rate_per_s: Arrivals per second, on average.
        shape: Greater than 0.
        seed: Not negative.
        requests: How many there are at most.
        duration_s: All are earlier than this. Of both limits the one that is met first holds.

    Raises:
        WorkloadError: no limit at all, or a figure that cannot be.
    """
    if not (math.isfinite(shape) and shape > 0):
        raise WorkloadError(f"burstiness = {shape:g}: it is a number greater than 0 (1 is a Poisson process)")
    wanted = _wanted(rate_per_s, requests, duration_s)
    generator = generator_for(seed, "arrivals")
    gaps = generator.gamma(shape, 1.0 / (rate_per_s * shape), wanted)
    times = np.cumsum(gaps)
    while duration_s is not None and (requests is None or len(times) < requests) and times[-1] < duration_s:
        _check_count(2 * len(gaps))
        gaps = np.concatenate([gaps, generator.gamma(shape, 1.0 / (rate_per_s * shape), len(gaps))])
        times = np.cumsum(gaps)
    rounded: Times = np.round(times[:requests], _DECIMALS)
    return rounded if duration_s is None else rounded[rounded < duration_s]


def ramp_starts(clients: int, ramp_s: float) -> Times:
    """Return when each client of a closed loop begins: evenly spread over ``ramp_s``, the first at 0.

    Raises:
        WorkloadError: no client, or a ramp that cannot be.
    """
    if clients < 1:
        raise WorkloadError(f"concurrency = {clients}: at least 1")
    if not (math.isfinite(ramp_s) and ramp_s >= 0):
        raise WorkloadError(f"ramp = {ramp_s:g} s: it is a number of seconds, 0 for none")
    starts: Times = np.round(np.arange(clients) * (ramp_s / clients), _DECIMALS)
    return starts


def _wanted(rate_per_s: float, requests: int | None, duration_s: float | None) -> int:
    """Check the figures, and return how many arrivals to draw at first."""
    if not (math.isfinite(rate_per_s) and rate_per_s > 0):
        raise WorkloadError(f"rate = {rate_per_s:g} requests/s: it is a number greater than 0")
    if requests is None and duration_s is None:
        raise WorkloadError("an open loop needs an end: give a number of requests, a duration, or both")
    if requests is not None and requests < 1:
        raise WorkloadError(f"requests = {requests}: at least 1")
    if duration_s is not None and not (math.isfinite(duration_s) and duration_s > 0):
        raise WorkloadError(f"duration = {duration_s:g} s: it is a number of seconds greater than 0")
    fitting = math.inf if duration_s is None else rate_per_s * duration_s + 2
    wanted = min(fitting, math.inf if requests is None else requests)
    _check_count(wanted)
    return math.ceil(wanted)


def _check_count(count: float) -> None:
    if count > MAX_ARRIVALS:
        raise WorkloadError(f"the schedule would have {count:.3g} arrivals; at most {MAX_ARRIVALS:,} can be made")
