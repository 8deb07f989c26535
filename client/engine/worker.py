"""A worker process of the load engine: some of the clients, all in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import queue
import resource
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Literal

import aiohttp

from client.engine.http_request import PreparedRequest, open_session, prepare, send_request
from client.engine.spec import LoadSpec, RequestRecord

# To the parent: what it is, and the records it carries. From the parent: ("go", start) or ("cancel", 0.0).
WorkerMessage = tuple[Literal["warm", "records", "done"], list[RequestRecord]]
ControlMessage = tuple[Literal["go", "cancel"], float]

_LAG_PERIOD_S = 0.02
_FLUSH_PERIOD_S = 0.05


def worker_main(connection: Connection, spec: LoadSpec, client_ids: Sequence[int]) -> None:
    """Run the clients of ``client_ids`` and send their records, with absolute monotonic times, to
    ``connection``.

    A closed connection means that the parent is gone: the worker ends.
    """
    # Both reach the whole process group; the parent decides and tells the workers, by its closed pipe at the latest.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # Collections stop the world in the middle of a measurement: fewer of them, and over fewer objects.
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
    asyncio.run(_work(connection, spec, client_ids))


async def _work(connection: Connection, spec: LoadSpec, client_ids: Sequence[int]) -> None:
    await _Worker(connection, spec, client_ids).run()


class _Worker:
    def __init__(self, connection: Connection, spec: LoadSpec, client_ids: Sequence[int]) -> None:
        self._connection = connection
        self._spec = spec
        self._client_ids = client_ids
        self._request: PreparedRequest = prepare(spec.request)
        self._outbox = _Outbox(connection)
        self._lag = _LoopLag()
        self._start_at_s: asyncio.Future[float] = asyncio.Future()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        drive = asyncio.create_task(self._drive())
        loop.add_reader(self._connection.fileno(), self._obey, drive)
        with contextlib.suppress(asyncio.CancelledError):
            await drive
        loop.remove_reader(self._connection.fileno())
        # An exception skips this, so that the parent sees a closed pipe without "done": a worker that died.
        await asyncio.to_thread(self._outbox.close)

    def _obey(self, drive: asyncio.Task[None]) -> None:
        try:
            message: ControlMessage = self._connection.recv()
        except (EOFError, OSError):
            message = ("cancel", 0.0)
            asyncio.get_running_loop().remove_reader(self._connection.fileno())
        if message[0] == "cancel":
            drive.cancel()
        elif not self._start_at_s.done():
            self._start_at_s.set_result(message[1])

    async def _drive(self) -> None:
        lag = asyncio.create_task(self._lag.watch())
        try:
            async with open_session(self._spec.request) as session:
                async with asyncio.TaskGroup() as clients:
                    for client_id in self._client_ids:
                        clients.create_task(self._warm_up(session, client_id))
                self._outbox.put("warm")
                start_at_s = await self._start_at_s
                await asyncio.sleep(start_at_s - time.monotonic())
                async with asyncio.TaskGroup() as clients:
                    for client_id in self._client_ids:
                        clients.create_task(self._measure(session, client_id, start_at_s))
        finally:
            lag.cancel()

    async def _warm_up(self, session: aiohttp.ClientSession, client_id: int) -> None:
        share, rest = divmod(self._spec.warmup_requests, self._spec.n_clients)
        for index in range(share + (client_id < rest)):
            reply = await send_request(session, self._request, client_id=client_id, index=index)
            self._outbox.put("records", replace(reply.record, warmup=True))

    async def _measure(self, session: aiohttp.ClientSession, client_id: int, start_at_s: float) -> None:
        intended_at_s = start_at_s
        for index in range(self._spec.n_requests_per_client):
            lag_before = self._lag.snapshot()
            reply = await send_request(
                session, self._request, client_id=client_id, index=index, intended_at_s=intended_at_s
            )
            self._outbox.put(
                "records",
                replace(
                    reply.record,
                    loop_lag_s=self._lag.mean_since_s(lag_before),
                    text=reply.text if self._spec.keep_text else None,
                ),
            )
            intended_at_s = reply.record.eof_at_s


class _LoopLag:
    """How late this event loop runs its timers."""

    def __init__(self) -> None:
        self._samples = 0
        self._total_s = 0.0
        self._latest_s = 0.0

    async def watch(self) -> None:
        while True:
            due_at_s = time.monotonic() + _LAG_PERIOD_S
            await asyncio.sleep(_LAG_PERIOD_S)
            self._latest_s = max(0.0, time.monotonic() - due_at_s)
            self._samples += 1
            self._total_s += self._latest_s

    def snapshot(self) -> tuple[int, float]:
        return self._samples, self._total_s

    def mean_since_s(self, before: tuple[int, float]) -> float:
        samples = self._samples - before[0]
        return (self._total_s - before[1]) / samples if samples else self._latest_s


class _Outbox:
    """Sends to the parent from a thread of its own: a full pipe must not stop the event loop."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._queue: queue.SimpleQueue[tuple[str, RequestRecord | None]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._send_all, name="outbox", daemon=True)
        self._thread.start()

    def put(self, kind: Literal["warm", "records"], record: RequestRecord | None = None) -> None:
        self._queue.put((kind, record))

    def close(self) -> None:
        self._queue.put(("done", None))
        self._thread.join()

    def _send_all(self) -> None:
        # The parent may be gone, and then nobody waits for these.
        with contextlib.suppress(OSError):
            while not self._send_pending():
                time.sleep(_FLUSH_PERIOD_S)

    def _send_pending(self) -> bool:
        """Send what has gathered, in order; return whether it was the last."""
        records: list[RequestRecord] = []
        item: tuple[str, RequestRecord | None] | None = self._queue.get()
        while item is not None:
            kind, record = item
            if record is not None:
                records.append(record)
            else:
                self._connection.send(("records", records))
                self._connection.send((kind, []))
                records = []
                if kind == "done":
                    return True
            item = self._next()
        if records:
            self._connection.send(("records", records))
        return False

    def _next(self) -> tuple[str, RequestRecord | None] | None:
        try:
            return self._queue.get_nowait()
        except queue.Empty:
            return None
