"""The seam of the load engine: a spec in, records out. Whatever replaces the engine keeps this signature."""

from __future__ import annotations

import contextlib
import multiprocessing
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing import connection, process

from client.engine.spec import LoadSpec, RequestRecord
from client.engine.worker import ControlMessage, WorkerMessage, worker_main
from client.errors import WorkerDiedError

_POLL_S = 0.1
_CANCEL_GRACE_S = 5.0
# Long enough for "go" to reach every worker before the common start.
_START_DELAY_S = 0.02
_TIMES = ("intended_at_s", "sent_at_s", "eof_at_s", "first_byte_at_s", "first_token_at_s", "last_token_at_s")


def run_load(
    spec: LoadSpec,
    on_record: Callable[[RequestRecord], None],
    cancel: threading.Event,
    on_start: Callable[[float], None] | None = None,
) -> list[RequestRecord]:
    """Put the load of ``spec`` on its server and return the records of all finished requests, as they
    finished.

    ``on_record`` is called in this thread for each record as it comes in; an exception from it ends the load
    and is raised. ``on_start`` gets the wall clock, in seconds since the epoch, of the records' time zero.
    Setting ``cancel`` ends the load early; requests then in flight leave no record.

    Raises:
        WorkerDiedError: a worker process ended before its clients did.
    """
    load = _Load(spec, on_record, on_start)
    try:
        load.start()
        load.run(cancel)
    finally:
        load.close()
    return load.records


class _Load:
    def __init__(
        self,
        spec: LoadSpec,
        on_record: Callable[[RequestRecord], None],
        on_start: Callable[[float], None] | None,
    ) -> None:
        self._spec = spec
        self._on_record = on_record
        self._on_start = on_start
        self.records: list[RequestRecord] = []
        self._warmups: list[RequestRecord] = []
        self._workers: list[_WorkerHandle] = []
        self._cold = 0
        self._zero_at_s: float | None = None

    def start(self) -> None:
        count = max(1, min(self._spec.processes, self._spec.n_clients))
        self._cold = count
        for shard in range(count):
            self._workers.append(_WorkerHandle(shard, self._spec, range(shard, self._spec.n_clients, count)))

    def run(self, cancel: threading.Event) -> None:
        open_workers = {worker.connection: worker for worker in self._workers}
        deadline_s: float | None = None
        while open_workers and (deadline_s is None or time.monotonic() < deadline_s):
            if cancel.is_set() and deadline_s is None:
                deadline_s = time.monotonic() + _CANCEL_GRACE_S
                self._tell_all(("cancel", 0.0))
            for ready in connection.wait(list(open_workers), timeout=_POLL_S):
                worker = next(worker for worker in self._workers if worker.connection is ready)
                message = worker.receive()
                if message is None:
                    if not cancel.is_set():
                        raise WorkerDiedError(worker.shard, worker.exit_code())
                    del open_workers[worker.connection]
                elif message[0] == "done":
                    del open_workers[worker.connection]
                else:
                    self._take(message)

    def close(self) -> None:
        for worker in self._workers:
            worker.close()

    def _take(self, message: WorkerMessage) -> None:
        kind, records = message
        for record in records:
            if self._zero_at_s is None:
                self._warmups.append(record)
            else:
                self._emit(record, self._zero_at_s)
        if kind == "warm":
            self._cold -= 1
            if self._cold == 0:
                self._go()

    def _go(self) -> None:
        self._zero_at_s = time.monotonic() + _START_DELAY_S
        started_at = time.time() + _START_DELAY_S
        self._tell_all(("go", self._zero_at_s))
        if self._on_start is not None:
            self._on_start(started_at)
        for record in self._warmups:
            self._emit(record, self._zero_at_s)

    def _emit(self, record: RequestRecord, zero_at_s: float) -> None:
        rebased = rebase(record, zero_at_s)
        self.records.append(rebased)
        self._on_record(rebased)

    def _tell_all(self, message: ControlMessage) -> None:
        for worker in self._workers:
            worker.tell(message)


class _WorkerHandle:
    """The parent's end of one worker."""

    def __init__(self, shard: int, spec: LoadSpec, client_ids: Sequence[int]) -> None:
        context = multiprocessing.get_context("spawn")
        self.shard = shard
        self.connection, far_end = context.Pipe()
        # The spec, token included, travels through spawn's pipe, not on argv.
        self._process: process.BaseProcess = context.Process(
            target=worker_main, args=(far_end, spec, client_ids), name=f"orch-load-{shard}", daemon=True
        )
        try:
            self._process.start()
        finally:
            far_end.close()

    def tell(self, message: ControlMessage) -> None:
        # A worker that is gone shows as such on the next receive.
        with contextlib.suppress(OSError):
            self.connection.send(message)

    def receive(self) -> WorkerMessage | None:
        """Return the worker's next message, or None if it is gone."""
        try:
            message: WorkerMessage = self.connection.recv()
        except (EOFError, OSError):
            return None
        return message

    def exit_code(self) -> int | None:
        self._process.join(1.0)
        return self._process.exitcode

    def close(self) -> None:
        """End the worker: by its closed pipe, or else by KILL."""
        self.connection.close()
        self._process.join(2.0)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()


def rebase(record: RequestRecord, zero_at_s: float) -> RequestRecord:
    """Return ``record`` with its times relative to ``zero_at_s`` of the same clock."""
    times = {name: getattr(record, name) for name in _TIMES}
    return replace(record, **{name: at - zero_at_s for name, at in times.items() if at is not None})
