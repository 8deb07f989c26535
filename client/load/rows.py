"""Records of requests in columns: written row by row by workers into mapped files, read as NumPy arrays.

A worker that is killed loses nothing of what it had written.
"""

from __future__ import annotations

import mmap
import os
import struct
from array import array
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

# Times are seconds of one monotonic clock, NaN where something did not happen. ``gap_start`` and ``gap_count`` are the
# place of the request's arrivals in the file of gaps. ``error`` is an index of ERROR_CLASSES, -1 for success.
ROW = np.dtype(
    [
        ("index", "<i8"), ("client", "<i4"), ("phase", "<i4"),
        ("intended_s", "<f8"), ("sent_s", "<f8"), ("first_byte_s", "<f8"), ("first_reasoning_s", "<f8"),
        ("first_content_s", "<f8"), ("last_token_s", "<f8"), ("eof_s", "<f8"), ("loop_lag_s", "<f8"),
        ("gap_start", "<i8"), ("gap_count", "<i4"), ("chunks", "<i4"),
        ("prompt_tokens", "<i4"), ("completion_tokens", "<i4"), ("usage_tokens", "<i4"), ("text_length", "<i4"),
        ("status", "<i2"), ("error", "<i2"), ("finish", "<i4"),
    ]
)  # fmt: skip
_PACK = struct.Struct("<qii8dqiiiiiihhi")
WARMUP, MEASURED = 0, 1
_GROW_ROWS = 4096
_HEADER = 64
_COUNT = struct.Struct("<qqqq")
assert _PACK.size == ROW.itemsize  # noqa: S101 - the two descriptions of a row are one


class Counts(NamedTuple):
    """What the header of a file of rows says; ``rows`` are with the warm-up, the others without."""

    rows: int = 0
    finished: int = 0
    failed: int = 0
    tokens: int = 0


class RowWriter:
    """Appends rows to a mapped file; its header has their Counts."""

    def __init__(self, rows: Path, gaps: Path) -> None:
        """Make both files.

        Raises:
            OSError: they could not be made, or there is no room for them.
        """
        self._file = rows.open("w+b")
        try:
            self._reserve(_GROW_ROWS)
        except OSError:
            self._file.close()
            raise
        self._map = mmap.mmap(self._file.fileno(), 0)
        self._gaps = gaps.open("wb", buffering=1 << 20)
        self._gap_count = 0
        self._rows = self._finished = self._failed = self._tokens = 0
        self._room = _GROW_ROWS

    def add(
        self, values: tuple[int | float, ...], gaps: array[float], has_failed: bool, tokens: int, phase: int
    ) -> None:
        """Append one request.

        Args:
            values: The fields of ROW up to ``loop_lag_s``, then those after ``gap_count``.
            gaps: Seconds between arrivals of text, after the first.
            has_failed: Whether it is counted as failed.
            tokens: Its output tokens, for the progress.
            phase: WARMUP or MEASURED.
        """
        if self._rows == self._room:
            self._room += max(_GROW_ROWS, self._room)
            self._map.resize(self._reserve(self._room))
        count = len(gaps)
        row = (*values[:11], self._gap_count, count, *values[11:])
        _PACK.pack_into(self._map, _HEADER + self._rows * ROW.itemsize, *row)
        if count:
            self._gaps.write(gaps.tobytes())
            self._gap_count += count
        self._rows += 1
        if phase == MEASURED:
            self._finished += 1
            self._failed += has_failed
            self._tokens += tokens
        _COUNT.pack_into(self._map, 0, self._rows, self._finished, self._failed, self._tokens)

    def _reserve(self, rows: int) -> int:
        """Give the file room on the disk, and return its size: a mapped page without room would kill the process."""
        size = _HEADER + rows * ROW.itemsize
        os.posix_fallocate(self._file.fileno(), 0, size)
        return size

    def flush(self) -> None:
        """Let others see the gaps of what was added."""
        self._gaps.flush()

    def close(self) -> None:
        """Cut the file to what was written."""
        self._gaps.close()
        self._map.close()
        self._file.truncate(_HEADER + self._rows * ROW.itemsize)
        self._file.close()

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_counts(rows: Path) -> Counts:
    """Return what a worker has written so far."""
    try:
        with rows.open("rb") as file:
            header = file.read(_COUNT.size)
    except FileNotFoundError:
        return Counts()
    return Counts(*_COUNT.unpack(header)) if len(header) == _COUNT.size else Counts()


def read_rows(rows: Path, gaps: Path) -> tuple[npt.NDArray[np.void], npt.NDArray[np.float64]]:
    """Return a worker's rows and gaps; a worker that was killed has written fewer rows than its file has room for."""
    count = read_counts(rows).rows
    found = np.fromfile(rows, dtype=ROW, count=count, offset=_HEADER) if count else np.empty(0, dtype=ROW)
    seen = np.fromfile(gaps, dtype="<f8") if gaps.exists() else np.empty(0)
    # The last gaps of a killed worker may still have been in its buffer.
    found["gap_count"][found["gap_start"] + found["gap_count"] > len(seen)] = 0
    return found, seen
