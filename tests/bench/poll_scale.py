"""`make bench`: what one poll costs with 100 and with 50,000 ended jobs behind it, 20 living ones each."""

from __future__ import annotations

import sys
import tempfile
import time
import tracemalloc
from collections.abc import Mapping, Sequence
from pathlib import Path

from orchestrator.hosts import Hosts, ThisMachine
from orchestrator.jobs import JobTracker
from orchestrator.ledger import Ledger
from orchestrator.plan import PlannedJob
from orchestrator.recipe.infrastructure import Polling
from orchestrator.rundir import RunDir
from orchestrator.schedulers import JobState
from orchestrator.transports import Answer, LocalTransport
from tests.builders import planned_service, slurm_scheduler

LIVING = 20
POLLS = 50


class Queue(LocalTransport):
    """A queue that lists the living jobs."""

    def __init__(self) -> None:
        self.lines = ""

    def run(
        self,
        argv: Sequence[str],
        timeout_s: float,
        stdin: bytes | None = None,
        cwd: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Answer:
        return Answer(tuple(argv), 0, self.lines, "")


def tracker_with(ended: int, folder: Path) -> JobTracker:
    """Return a tracker with ``ended`` ended jobs and some that live."""
    run, queue = RunDir(folder), Queue()
    run.make()
    polling = Polling.model_construct(scheduler_s=0.0, records_s=0.0, metrics_s=1.0, submits_per_s=10.0)
    hosts = Hosts([ThisMachine(slurm_scheduler(), queue, run)])
    tracker = JobTracker(run, Ledger(run.events), hosts, polling)
    template = vars(planned_service(run))
    for number in range(ended + LIVING):
        name = f"trial_{number}"
        planned = PlannedJob(**{**template, "name": name, "token": f"orch-x-{name}", "kind": "task"})
        job = tracker.adopt(planned, str(number), time.time())
        if number < ended:
            job.state = JobState.COMPLETED
            tracker._table.close(job)
        else:
            queue.lines += f"{number}|RUNNING|n1|None|{planned.token}\n"
    return tracker


def cost(ended: int) -> tuple[float, int]:
    """Return seconds per poll, and bytes that a poll allocates at its peak."""
    with tempfile.TemporaryDirectory() as folder:
        tracker = tracker_with(ended, Path(folder) / "run")
        tracker.poll()
        began = time.perf_counter()
        for _ in range(POLLS):
            tracker.poll()
            _ = tracker.current
            tracker.raise_if_dead()
            tracker.raise_if_stuck()
        seconds = (time.perf_counter() - began) / POLLS
        tracemalloc.start()
        tracker.poll()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return seconds, peak


def main() -> int:
    """Print the two costs and their ratios."""
    few, many = cost(100), cost(50_000)
    for ended, (seconds, peak) in ((100, few), (50_000, many)):
        print(
            f"{ended:6} ended, {LIVING} living: {seconds * 1000:6.2f} ms per poll, {peak / 1024:6.0f} KiB at the peak"
        )
    print(f"ratio: {many[0] / few[0]:.2f} in time, {many[1] / few[1]:.2f} in memory")
    return 0


if __name__ == "__main__":
    sys.exit(main())
