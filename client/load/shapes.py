"""Load shapes, and how their requests are dealt out to worker processes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from client.load.arrivals import ramp_starts
from client.load.spec import Conversation, Plan, Sampling, Server

# One event loop carries this many streams; beyond that another process helps if there is a CPU for it.
CLIENTS_PER_PROCESS = 256
REQUESTS_PER_S_AND_PROCESS = 4000.0
MAX_PROCESSES = 256


@dataclass(frozen=True)
class ClosedLoop:
    """Clients that each send the next request when the one before it has ended.

    At least one of the limits must be given, or the load never ends.

    Attributes:
        requests: Of all clients together.
        ramp_s: Over how many seconds the clients begin, evenly.
    """

    clients: int
    requests: int | None = None
    requests_per_client: int | None = None
    duration_s: float | None = None
    ramp_s: float = 0.0

    @property
    def expected(self) -> int | None:
        """How many requests are sent if none is cut off by the duration; None where only that ends them."""
        if self.requests is not None:
            return self.requests
        return None if self.requests_per_client is None else self.clients * self.requests_per_client


@dataclass(frozen=True)
class OpenLoop:
    """Requests that are sent at times fixed in advance, whatever becomes of the ones before.

    Attributes:
        arrivals_s: When each is sent, in seconds from the start, ascending.
    """

    arrivals_s: tuple[float, ...]

    @property
    def expected(self) -> int:
        """How many requests are sent."""
        return len(self.arrivals_s)

    @property
    def rate_per_s(self) -> float:
        """Requests per second that are asked for."""
        return len(self.arrivals_s) / self.arrivals_s[-1] if self.arrivals_s and self.arrivals_s[-1] > 0 else 0.0


Shape = ClosedLoop | OpenLoop


@dataclass(frozen=True)
class How:
    """What is the same for all requests of a load.

    Attributes:
        warmup: Requests that are sent before the measurement, in all.
        timeout_s: How long one request may take.
        keeps_text: Whether generated texts are kept.
    """

    warmup: int = 0
    timeout_s: float = 120.0
    keeps_text: bool = False


def choose_processes(shape: Shape, configured: int | None = None) -> int:
    """Return how many worker processes carry ``shape``: as configured, else by its size within this job's CPUs."""
    if isinstance(shape, ClosedLoop):
        most, wanted = shape.clients, -(-shape.clients // CLIENTS_PER_PROCESS)
    else:
        most, wanted = len(shape.arrivals_s), 1 + int(shape.rate_per_s / REQUESTS_PER_S_AND_PROCESS)
    if configured is not None:
        return max(1, min(configured, most, MAX_PROCESSES))
    return max(1, min(wanted, len(os.sched_getaffinity(0)), MAX_PROCESSES))


def deal_out(
    server: Server,
    bodies: Sequence[bytes],
    shape: Shape,
    how: How,
    processes: int,
    folder: Path,
    talks: tuple[Sampling, tuple[Conversation, ...]] | None = None,
) -> list[Plan]:
    """Return the plans of ``processes`` workers; request ``i`` of all is the same whatever their number.

    Args:
        server: Whom the load is put on.
        bodies: Encoded requests; where there are more requests than these they begin again.
        shape: When they are sent.
        how: See How.
        processes: How many workers there are.
        folder: For the workers' files.
        talks: Conversations of a closed loop in the place of ``bodies``, with how their tokens are chosen.
    """
    plans = []
    for shard in range(processes):
        common = {
            "server": server, "rows": str(folder / f"rows{shard}"), "gaps": str(folder / f"gaps{shard}"),
            "texts": str(folder / f"texts{shard}"), "first_index": shard, "index_step": processes,
            "warmup": _share(how.warmup, shard, processes), "timeout_s": how.timeout_s, "keeps_text": how.keeps_text,
        }  # fmt: skip
        if isinstance(shape, OpenLoop):
            arrivals = shape.arrivals_s[shard::processes]
            own = _bodies(bodies, shard, processes, len(arrivals))
            plans.append(Plan(bodies=own, arrivals_s=arrivals, **common))  # type: ignore[arg-type]
            continue
        clients = tuple(range(shard, shape.clients, processes))
        requests = None if shape.requests is None else _share(shape.requests, shard, processes)
        starts = tuple(float(at_s) for at_s in ramp_starts(shape.clients, shape.ramp_s)[list(clients)])
        if talks is not None:
            common |= {"sampling": talks[0], "conversations": talks[1][shard::processes]}
        plans.append(
            Plan(
                bodies=_bodies(bodies, shard, processes, requests),
                clients=clients,
                starts_s=starts,
                requests_per_client=shape.requests_per_client,
                requests=requests,
                duration_s=shape.duration_s,
                **common,  # type: ignore[arg-type]
            )
        )
    return plans


def _share(total: int, shard: int, shards: int) -> int:
    return total // shards + (shard < total % shards)


def _bodies(bodies: Sequence[bytes], shard: int, processes: int, count: int | None) -> tuple[bytes, ...]:
    """Return what a worker sends: every so many-th request, as many as there can be before it begins again."""
    if len(bodies) == 1:
        return (bodies[0],)
    # After len(bodies) rounds of its own every worker is back where it began.
    needed = len(bodies) if count is None else min(count, len(bodies))
    return tuple(bodies[(shard + number * processes) % len(bodies)] for number in range(max(1, needed)))
