"""All benchmarks of the service: one at a time, each under an id, found again after a restart."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from client.benchmark import Benchmark, LoadEngine
from client.bodies import BenchmarkBody
from client.errors import BenchmarkBusyError, BenchmarkConflictError
from client.exposition import ServiceMetrics
from client.load.bench import Bench, run_bench
from client.results import BenchmarkFiles, read_json, read_records
from client.summary import result_entry

logger = logging.getLogger(__name__)
_CLOSE_GRACE_S = 8.0
_ENDED_STATES = {"done", "failed", "cancelled"}


class Benchmarks:
    """Starts, finds and cancels benchmarks. What ran in an earlier process is read from its files."""

    def __init__(self, output_dir: Path, metrics: ServiceMetrics, engine: LoadEngine = run_bench) -> None:
        self._output_dir = output_dir
        self._metrics = metrics
        self._engine = engine
        self._lock = threading.Lock()
        self._live: dict[str, Benchmark] = {}

    def existing(self, body: BenchmarkBody) -> str | None:
        """Return the id in ``body`` if that very benchmark exists, else None.

        Raises:
            BenchmarkConflictError: the id is taken by a benchmark with another body.
            StorageError: its files cannot be read.
        """
        if body.id is None:
            return None
        live = self._live.get(body.id)
        if live is not None:
            fingerprint = live.fingerprint
        else:
            files = BenchmarkFiles(self._output_dir, body.id)
            if not files.folder.exists():
                return None
            fingerprint = (read_json(files.request) or {}).get("fingerprint", "")
        if fingerprint != body.fingerprint():
            raise BenchmarkConflictError(body.id)
        return body.id

    def start(self, body: BenchmarkBody, make_bench: Callable[[], Bench]) -> tuple[str, bool]:
        """Return the id of the benchmark that ``body`` asks for, and whether it was started now.

        ``make_bench`` is called only if it is to be started.

        Raises:
            BenchmarkBusyError: another one is running.
            BenchmarkConflictError: see ``existing``.
            StorageError: its folder cannot be made.
        """
        with self._lock:
            known = self.existing(body)
            if known is not None:
                return known, False
            running = self.running()
            if running is not None:
                raise BenchmarkBusyError(running.id)
            earlier = [folder for one in body.continues if (folder := self._folder_to_continue(one, body)) is not None]
            bench = make_bench()
            benchmark_id = body.id or f"b-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(3)}"
            files = BenchmarkFiles(self._output_dir, benchmark_id)
            files.create({"fingerprint": body.fingerprint(), "body": body.to_json()})
            body = replace(body, id=benchmark_id)
            benchmark = Benchmark(benchmark_id, body, bench, files, self._metrics, earlier)
            self._live[benchmark_id] = benchmark
            benchmark.start(self._engine)
            return benchmark_id, True

    def _folder_to_continue(self, benchmark_id: str, body: BenchmarkBody) -> Path | None:
        files = BenchmarkFiles(self._output_dir, benchmark_id)
        known = (read_json(files.request) or {}).get("fingerprint")
        if known == body.fingerprint():
            return files.folder
        what = "there is none" if known is None else "it had another body"
        logger.warning("benchmark %s is not continued: %s", benchmark_id, what)
        return None

    def live(self, benchmark_id: str) -> Benchmark | None:
        """Return the benchmark if this process started it."""
        return self._live.get(benchmark_id)

    def running(self) -> Benchmark | None:
        """Return the benchmark that has not ended, if there is one."""
        return next((one for one in tuple(self._live.values()) if not one.has_ended), None)

    def status(self, benchmark_id: str, *, with_results: bool = False) -> dict[str, Any] | None:
        """Return state, progress and result of a benchmark, or None if there is none of this id.

        Raises:
            StorageError: its files cannot be read.
        """
        live = self._live.get(benchmark_id)
        status = live.status() if live is not None else self._recorded(benchmark_id)
        if status is not None and with_results and status["result"] is not None:
            status["result"] = {
                **status["result"],
                "results": self._results(benchmark_id, status["result"]["model"]),
            }
        return status

    def close(self) -> None:
        """Cancel what is running and wait a little for its end."""
        running = self.running()
        if running is not None:
            running.cancel()
            running.wait(_CLOSE_GRACE_S)

    def _results(self, benchmark_id: str, model: str) -> list[dict[str, Any]]:
        files = BenchmarkFiles(self._output_dir, benchmark_id)
        return [result_entry(record, model) for record in read_records(files.records) if not record["warmup"]]

    def _recorded(self, benchmark_id: str) -> dict[str, Any] | None:
        files = BenchmarkFiles(self._output_dir, benchmark_id)
        if not files.folder.is_dir():
            return None
        summary = read_json(files.summary) or {
            "state": "failed",
            "error": "the service ended before this benchmark did",
        }
        state = summary["state"] if summary.get("state") in _ENDED_STATES else "failed"
        has_figures = "output_tokens_per_s" in summary
        asked = (read_json(files.request) or {}).get("body", {})
        expected = asked.get("n_clients", 0) * asked.get("n_requests_per_client", 0)
        return {
            "id": benchmark_id,
            "state": state,
            "started_at": summary.get("started_at"),
            "progress": {
                "doing": "",
                "finished": summary.get("total", 0),
                "total": summary.get("total", expected),
                "failed": summary.get("failed", 0),
                "tokens_per_s": summary.get("output_tokens_per_s", 0.0),
            },
            "error": summary.get("error"),
            "result": summary if has_figures else None,
        }
