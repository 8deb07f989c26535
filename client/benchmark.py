"""One benchmark: its state, its thread, its files."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from client.bodies import BenchmarkBody
from client.errors import ClientServiceError, StorageError
from client.exposition import ServiceMetrics
from client.load.bench import Bench, Outcome, Tell, write_files
from client.load.points import Points
from client.load.run import Progress
from client.results import BenchmarkFiles, write_private_json
from client.summary import as_document, build_summary

State = Literal["queued", "running", "done", "failed", "cancelled"]
logger = logging.getLogger(__name__)


class LoadEngine(Protocol):
    """What ``client.load.bench.run_bench`` is, and what may replace it."""

    def __call__(
        self,
        bench: Bench,
        tell: Tell,
        is_cancelled: Callable[[], bool],
        on_start: Callable[[float], None],
        points: Points | None,
    ) -> Outcome:
        """See ``client.load.bench.run_bench``."""


class Benchmark:
    """A benchmark of this process. ``queued`` lasts until the workers stand ready and the warm-up is over.

    ``earlier`` are the folders of those that it continues.
    """

    def __init__(
        self,
        benchmark_id: str,
        body: BenchmarkBody,
        bench: Bench,
        files: BenchmarkFiles,
        metrics: ServiceMetrics,
        earlier: Sequence[Path] = (),
    ) -> None:
        self.id = benchmark_id
        self.fingerprint = body.fingerprint()
        self._body = body
        self._bench = bench
        self._files = files
        self._metrics = metrics
        self._points = Points(files.folder, tuple(earlier))
        self._lock = threading.Lock()
        self._cancel = threading.Event()
        self._ended = threading.Event()
        self._state: State = "queued"
        self._error: str | None = None
        self._is_storage_error = False
        self._summary: dict[str, Any] | None = None
        self._started_at: float | None = None
        self._zero_at_s = 0.0
        self._doing = ""
        self._before = self._now = Progress(0, 0, 0)

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
            rate = self._now.tokens / elapsed_s if elapsed_s > 0 else 0.0
            if self._summary is not None:
                rate = self._summary["output_tokens_per_s"]
            finished = self._before.finished + self._now.finished
            return {
                "id": self.id,
                "state": self._state,
                "started_at": self._started_at,
                "progress": {
                    "doing": self._doing,
                    "finished": finished,
                    "total": self._bench.total,
                    "failed": self._before.failed + self._now.failed,
                    "tokens_per_s": rate,
                },
                "error": self._error,
                "result": self._summary,
            }

    def _run(self, engine: LoadEngine) -> None:
        logger.info("benchmark %s: %s %s", self.id, self._bench.kind, ", ".join(f"{x:g}" for x in self._bench.loads))
        self._metrics.benchmark_running(True)
        try:
            self._conclude(engine(self._bench, self._take, self._cancel.is_set, self._begin, self._points))
        except ClientServiceError as error:
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
        """Take the start of one of its measurements."""
        with self._lock:
            self._state = "running"
            self._started_at = self._started_at or started_at
            self._zero_at_s = time.monotonic()
        self._metrics.benchmark_in_flight(int(max(self._bench.loads)) if self._bench.kind == "concurrency" else 1)

    def _take(self, doing: str, progress: Progress | None) -> None:
        with self._lock:
            self._doing = doing
            if progress is None or self._state == "queued":
                return
            if progress.finished < self._now.finished:  # the next measurement
                before, now = self._before, self._now
                self._before = Progress(before.finished + now.finished, before.failed + now.failed, 0)
                self._now = Progress(0, 0, 0)
            new_tokens = progress.tokens - self._now.tokens
            self._now = progress
        self._metrics.count_tokens("benchmark", new_tokens)

    def _conclude(self, outcome: Outcome) -> None:
        summary = build_summary(self.id, self._body, self._bench, outcome)
        document = as_document(summary)
        write_files(outcome, self._files.folder)
        write_private_json(self._files.summary, document)
        for told in outcome.told:
            self._metrics.count_all("benchmark", told.analysis.figures)
        if summary.state == "done":
            self._metrics.benchmark_finished(summary)
        with self._lock:
            self._summary = document
            self._state = summary.state

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
