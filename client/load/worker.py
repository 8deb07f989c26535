"""A worker process of the load engine: ``python -m client.load.worker``.

It speaks with its parent in lines: a Plan in JSON on standard input, then ``go SECONDS`` (of the monotonic clock) or
``cancel``; on standard output ``ready``, ``warm``, then ``done`` with what it has seen of itself. A closed input means
that the parent is gone. Nothing is said while load is put on: the parent reads progress in the files of rows.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import signal
import sys
from time import monotonic

import msgspec
import uvloop

from client.load.driver import Driver
from client.load.spec import Plan


class WorkerReport(msgspec.Struct, frozen=True):
    """What a worker has seen of itself.

    Attributes:
        cpu_s: CPU time of the measurement, user and system, in seconds.
        lasted_s: Wall time of the measurement in seconds.
        opened: Connections opened, the warm-up's included.
        resent: Requests sent again because the server had closed an idle connection.
        lag_mean_s, lag_max_s: How late the event loop ran its timers.
    """

    cpu_s: float
    lasted_s: float
    opened: int
    resent: int
    lag_mean_s: float
    lag_max_s: float


def main() -> None:
    """Serve one parent, and end with it."""
    # Both reach the whole process group; the parent decides, by its closed pipe at the latest.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.umask(0o077)
    line = sys.stdin.buffer.readline()
    if not line:
        return
    plan = msgspec.json.decode(line, type=Plan)
    # A collection in the middle of a measurement stops everything; what a measurement makes has no cycles.
    gc.collect()
    gc.freeze()
    gc.disable()
    uvloop.run(_work(plan))


async def _work(plan: Plan) -> None:
    loop = asyncio.get_running_loop()
    driver = Driver(plan, loop)
    start: asyncio.Future[float] = loop.create_future()
    job = asyncio.create_task(_measure(driver, start))
    os.set_blocking(sys.stdin.fileno(), False)
    loop.add_reader(sys.stdin.fileno(), _obey, start, job, loop)
    try:
        await job
    except asyncio.CancelledError:
        pass
    finally:
        loop.remove_reader(sys.stdin.fileno())
        driver.close()


def _obey(start: asyncio.Future[float], job: asyncio.Task[None], loop: asyncio.AbstractEventLoop) -> None:
    line = sys.stdin.buffer.readline()
    word, _, argument = line.decode().partition(" ")
    if word == "go" and not start.done():
        start.set_result(float(argument))
    elif not line or word.strip() == "cancel":
        loop.remove_reader(sys.stdin.fileno())
        job.cancel()


async def _measure(driver: Driver, start: asyncio.Future[float]) -> None:
    await driver.prepare()
    _say("ready")
    await driver.warm_up()
    _say("warm")
    zero_s = await start
    before, began_s = resource.getrusage(resource.RUSAGE_SELF), monotonic()
    samples, total_s = driver.probe.samples, driver.probe.total_s
    driver.probe.worst_s = 0.0
    await driver.measure(zero_s)
    after, probe = resource.getrusage(resource.RUSAGE_SELF), driver.probe
    report = WorkerReport(
        cpu_s=after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        lasted_s=monotonic() - began_s,
        opened=driver.opened,
        resent=driver.resent,
        lag_mean_s=probe.mean_since(samples, total_s),
        lag_max_s=probe.worst_s,
    )
    driver.close()
    _say("done " + msgspec.json.encode(report).decode())


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
