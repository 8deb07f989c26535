"""One benchmark: its state, its thread, its files."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal, Protocol

from client.bodies import BenchmarkBody
from client.engine.spec import LoadSpec, RequestRecord
from client.errors import StorageError, WorkerDiedError
from client.exposition import ServiceMetrics
from client.results import BenchmarkFiles, RecordLog, write_private_json
from client.summary import build_summary

State = Literal["queued", "running", "done", "failed", "cancelled"]
logger = logging.getLogger(__name__)


class LoadEngine(Protocol):
    """What ``client.engine.run.run_load`` is, and what may replace it."""

    def __call__(
        self,
        spec: LoadSpec,
        on_record: Callable[[RequestRecord], None],
        cancel: threading.Event,
        on_start: Callable[[float], None] | None = None,
    ) -> list[RequestRecord]:
        """See ``client.engine.run.run_load``."""


class Benchmark:
    """A benchmark of this process. ``queued`` lasts until the workers stand ready and the warm-up is over."""

    def __init__(
        self,
        benchmark_id: str,
        body: BenchmarkBody,
        spec: LoadSpec,
        files: BenchmarkFiles,
        metrics: ServiceMetrics,
    ) -> None:
        self.id = benchmark_id
        self.fingerprint = body.fingerprint()
        self._body = body
        self._spec = spec
        self._files = files
        self._metrics = metrics
        self._lock = threading.Lock()
        self._cancel = threading.Event()
        self._ended = threading.Event()
        self._state: State = "queued"
        self._error: str | None = None
        self._is_storage_error = False
        self._summary: dict[str, Any] | None = None
        self._started_at: float | None = None
        self._zero_at_s = 0.0
        self._finished = 0
        self._failed = 0
        self._tokens = 0
        self._left = dict.fromkeys(range(body.n_clients), body.n_requests_per_client)

    def start(self, engine: LoadEngine) -> None:
        """Run it in a thread of its own."""
        threading.Thread(target=self._run, args=(engine,), name=f"benchmark-{self.id}", daemon=True).start()

    def cancel(self) -> None:
        """Ask it to end; requests in flight are dropped. No effect after its end."""
        self._cancel.set()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Return whether it ended, after at most ``timeout_s``."""
        return self._ended.wait(timeout_s)

    @property
    def has_ended(self) -> bool:
        """Return whether it is done, failed or cancelled."""
        return self._ended.is_set()

    @property
    def is_storage_error(self) -> bool:
        """Return whether it failed because a file could not be written."""
        return self._is_storage_error

    def status(self) -> dict[str, Any]:
        """Return state, progress, and the result or the error once there is one."""
        with self._lock:
            elapsed_s = time.monotonic() - self._zero_at_s if self._state == "running" else 0.0
            rate = self._tokens / elapsed_s if elapsed_s > 0 else 0.0
            if self._summary is not None:
                rate = self._summary["metrics"]["output_tokens_per_s"]
            return {
                "id": self.id,
                "state": self._state,
                "started_at": self._started_at,
                "progress": {
                    "finished": self._finished,
                    "total": self._body.total_requests,
                    "failed": self._failed,
                    "tokens_per_s": rate,
                },
                "error": self._error,
                "result": self._summary,
            }

    def _run(self, engine: LoadEngine) -> None:
        logger.info("benchmark %s: %d clients, %d requests", self.id, self._body.n_clients, self._body.total_requests)
        self._metrics.benchmark_running(True)
        try:
            with RecordLog(self._files.records) as log:
                records = engine(self._spec, lambda record: self._take(log, record), self._cancel, self._begin)
            self._conclude(records)
        except (StorageError, WorkerDiedError) as error:
            self._is_storage_error = isinstance(error, StorageError)
            self._fail(str(error))
        finally:
            # Whoever waits must be let go, also where a bug ended this thread.
            if self._state in {"queued", "running"}:
                self._fail("internal error; the traceback is in the service's log")
            self._metrics.benchmark_in_flight(0)
            self._metrics.benchmark_running(False)
            self._ended.set()
            logger.info("benchmark %s: %s", self.id, self._state)

    def _begin(self, started_at: float) -> None:
        with self._lock:
            self._state = "running"
            self._started_at = started_at
            self._zero_at_s = time.monotonic()
        self._metrics.benchmark_in_flight(self._body.n_clients)

    def _take(self, log: RecordLog, record: RequestRecord) -> None:
        log.append(record)
        self._metrics.count("benchmark", record.error_class)
        if record.warmup:
            return
        with self._lock:
            self._finished += 1
            self._failed += not record.is_success
            self._tokens += record.completion_tokens if record.is_success else 0
            self._left[record.client_id] -= 1
            if not self._left[record.client_id]:
                del self._left[record.client_id]
                self._metrics.benchmark_in_flight(len(self._left))

    def _conclude(self, records: list[RequestRecord]) -> None:
        expected = self._body.total_requests
        is_short = Counter(record.warmup for record in records)[False] < expected
        cancelled = self._cancel.is_set() and is_short
        summary = build_summary(
            self.id, self._body, self._spec, records, started_at=self._started_at, cancelled=cancelled
        )
        write_private_json(self._files.summary, summary)
        if not cancelled:
            self._metrics.benchmark_finished(summary)
        with self._lock:
            self._summary = summary
            self._state = "cancelled" if cancelled else "done"

    def _fail(self, message: str) -> None:
        with self._lock:
            self._state = "failed"
            self._error = message
        logger.error("benchmark %s failed: %s", self.id, message)
        document = {"id": self.id, "state": "failed", "error": message, "request": self._body.to_json()}
        try:
            write_private_json(self._files.summary, document)
        except StorageError as error:
            logger.error("benchmark %s: its failure could not be recorded either: %s", self.id, error)
