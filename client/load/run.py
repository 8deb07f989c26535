"""One measurement: worker processes started, kept in step, watched and collected."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from client.errors import WorkerDiedError
from client.load.rows import ROW, read_counts, read_rows
from client.load.spec import Plan
from client.load.worker import WorkerReport

PROJECT = Path(__file__).resolve().parents[2]
# Long enough for "go" to reach every worker before the common start.
START_DELAY_S = 0.03
_POLL_S = 0.1
_CANCEL_GRACE_S = 5.0
_TIMES = (
    "intended_s", "sent_s", "first_byte_s", "first_reasoning_s", "first_content_s", "last_token_s", "eof_s",
)  # fmt: skip


@dataclass(frozen=True)
class Progress:
    """How far a measurement is; the warm-up does not count."""

    finished: int
    failed: int
    tokens: int


@dataclass(frozen=True)
class Measurement:
    """Everything that was seen, in columns.

    Attributes:
        rows: Of dtype ROW, ordered by index; times in seconds since the common start.
        gaps: Gaps between arrivals of text in seconds; rows say where theirs are.
        notes: What is said of single requests: errors, and texts where they were asked for.
        started_at: The common start in seconds since the epoch.
        start_s: How long it took until the workers stood ready, the warm-up left out, in seconds.
        workers: What each worker has seen of itself; fewer than there were if it was cancelled.
    """

    rows: npt.NDArray[np.void]
    gaps: npt.NDArray[np.float64]
    notes: tuple[dict[str, Any], ...]
    started_at: float
    start_s: float
    workers: tuple[WorkerReport, ...]
    was_cancelled: bool = False


@dataclass
class _Worker:
    """The parent's end of one worker."""

    process: subprocess.Popen[bytes]
    plan: Plan
    shard: int
    buffer: bytes = b""
    is_ready: bool = False
    is_warm: bool = False
    report: WorkerReport | None = None

    @property
    def hears_from(self) -> int:
        """The file descriptor of what it says."""
        return self.process.stdout.fileno()  # type: ignore[union-attr]

    def tell(self, text: str) -> None:
        """Send a line; a worker that is gone shows as such on the next reading."""
        with contextlib.suppress(OSError):
            os.write(self.process.stdin.fileno(), text.encode() + b"\n")  # type: ignore[union-attr]

    def hear(self) -> bool:
        """Take what it says; return False once it is gone."""
        data = os.read(self.hears_from, 65536)
        *lines, self.buffer = (self.buffer + data).split(b"\n")
        for line in lines:
            word, _, rest = line.partition(b" ")
            if word == b"ready":
                self.is_ready = True
            elif word == b"warm":
                self.is_warm = True
            elif word == b"done":
                self.report = msgspec.json.decode(rest, type=WorkerReport)
        return bool(data)


def measure(
    plans: Sequence[Plan],
    folder: Path,
    is_cancelled: Callable[[], bool] = lambda: False,
    tell: Callable[[Progress], None] = lambda _: None,
    on_start: Callable[[float, float], None] = lambda _at, _zero_s: None,
) -> Measurement:
    """Put the load of ``plans`` on, one worker process each, and return what was seen.

    Args:
        plans: Their files lie in ``folder``.
        folder: For the workers' files.
        is_cancelled: Asked now and then; requests under way then leave no record.
        tell: Told now and then how far it is.
        on_start: Told the common start, in seconds since the epoch and of the monotonic clock.

    Raises:
        WorkerDiedError: a worker ended before its load did; carries its last words.
    """
    began_s = time.monotonic()
    workers: list[_Worker] = []
    try:
        for shard, plan in enumerate(plans):
            workers.append(_start(plan, shard, folder))
        return _Measuring(workers, is_cancelled, tell, on_start, began_s).run()
    finally:
        for worker in workers:
            _end(worker)


def _start(plan: Plan, shard: int, folder: Path) -> _Worker:
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    with (folder / f"worker{shard}.err").open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "client.load.worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment,
        )  # fmt: skip
    assert process.stdin is not None  # noqa: S101 - a pipe was asked for
    with contextlib.suppress(BrokenPipeError):  # it is found dead on the next reading
        process.stdin.write(msgspec.json.encode(plan) + b"\n")
        process.stdin.flush()
    return _Worker(process, plan, shard)


def _end(worker: _Worker) -> None:
    """End a worker: by its closed pipe, or else by KILL."""
    for pipe in (worker.process.stdin, worker.process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    try:
        worker.process.wait(2.0)
    except subprocess.TimeoutExpired:
        worker.process.kill()
        worker.process.wait()


class _Measuring:
    def __init__(
        self,
        workers: list[_Worker],
        is_cancelled: Callable[[], bool],
        tell: Callable[[Progress], None],
        on_start: Callable[[float, float], None],
        began_s: float,
    ) -> None:
        self._workers, self._is_cancelled, self._tell, self._on_start = workers, is_cancelled, tell, on_start
        self._began_s = began_s
        self._zero_s = self._started_at = self._start_s = 0.0

    def run(self) -> Measurement:
        left = {worker.hears_from: worker for worker in self._workers}
        deadline: float | None = None
        while left and (deadline is None or time.monotonic() < deadline):
            if deadline is None and self._is_cancelled():
                deadline = time.monotonic() + _CANCEL_GRACE_S
                for worker in self._workers:
                    worker.tell("cancel")
            for pipe in select.select(list(left), [], [], _POLL_S)[0]:
                worker = left[pipe]
                is_there = worker.hear()
                if worker.report is not None:
                    del left[pipe]
                elif not is_there:
                    if deadline is None:
                        raise WorkerDiedError(worker.shard, worker.process.wait(), _last_words(worker))
                    del left[pipe]
            if not self._start_s and all(worker.is_ready for worker in self._workers):
                self._start_s = time.monotonic() - self._began_s
            if not self._zero_s and all(worker.is_warm for worker in self._workers):
                self._go()
            self._tell(self._progress())
        return self._collect(was_cancelled=deadline is not None)

    def _go(self) -> None:
        self._zero_s = time.monotonic() + START_DELAY_S
        self._started_at = time.time() + START_DELAY_S
        for worker in self._workers:
            worker.tell(f"go {self._zero_s!r}")
        self._on_start(self._started_at, self._zero_s)

    def _progress(self) -> Progress:
        counts = [read_counts(Path(worker.plan.rows)) for worker in self._workers]
        return Progress(
            sum(count.finished for count in counts),
            sum(count.failed for count in counts),
            sum(count.tokens for count in counts),
        )

    def _collect(self, was_cancelled: bool) -> Measurement:
        shards, gaps, offset = [], [], 0
        for worker in self._workers:
            rows, own_gaps = read_rows(Path(worker.plan.rows), Path(worker.plan.gaps))
            rows["gap_start"] += offset
            offset += len(own_gaps)
            shards.append(rows)
            gaps.append(own_gaps)
        rows = np.concatenate(shards) if shards else np.empty(0, dtype=ROW)
        for name in _TIMES:
            rows[name] -= self._zero_s
        rows = rows[np.argsort(rows["index"], kind="stable")]
        notes = tuple(note for worker in self._workers for note in _read_notes(Path(worker.plan.texts)))
        reports = tuple(worker.report for worker in self._workers if worker.report is not None)
        return Measurement(
            rows, np.concatenate(gaps) if gaps else np.empty(0), notes, self._started_at, self._start_s, reports,
            was_cancelled,
        )  # fmt: skip


def _read_notes(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    for line in path.read_bytes().splitlines():
        with contextlib.suppress(msgspec.DecodeError):  # the last line of a killed worker
            yield msgspec.json.decode(line)


def _last_words(worker: _Worker) -> str:
    errors = Path(worker.plan.rows).with_name(f"worker{worker.shard}.err")
    lines = errors.read_text(errors="replace").strip().splitlines() if errors.exists() else []
    return lines[-1] if lines else ""


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Give a private folder for workers' files, and remove it afterwards."""
    with tempfile.TemporaryDirectory(prefix="orch-load-") as name:
        yield Path(name)
