"""Rows in mapped files: whole, growing, read while they are written, and on a full disk."""

from __future__ import annotations

import resource
from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest

from client.load.rows import MEASURED, WARMUP, Counts, RowWriter, read_counts, read_rows


def values(index: int) -> tuple[int | float, ...]:
    """Return the fields of a row."""
    times = tuple(index + number / 10 for number in range(8))
    return (index, 3, MEASURED, *times, 2, 7, 5, 5, 20, 200, -1, 1)


def files(folder: Path) -> tuple[Path, Path]:
    return folder / "rows", folder / "gaps"


def test_rows_are_read_as_they_were_written_however_many_there_are(tmp_path: Path) -> None:
    rows, gaps = files(tmp_path)
    with RowWriter(rows, gaps) as writer:
        for index in range(10_000):
            writer.add(values(index), array("d", [index, 0.5]), False, 5, MEASURED)
    found, seen = read_rows(rows, gaps)
    assert found["index"].tolist() == list(range(10_000))
    assert (found["usage_tokens"] == 5).all()
    assert seen[found["gap_start"][9999] : found["gap_start"][9999] + 2].tolist() == [9999, 0.5]


def test_counts_are_seen_while_rows_are_written_and_leave_the_warm_up_out(tmp_path: Path) -> None:
    rows, gaps = files(tmp_path)
    assert read_counts(rows) == Counts()
    with RowWriter(rows, gaps) as writer:
        writer.add(values(0), array("d"), True, 5, WARMUP)
        writer.add(values(1), array("d"), True, 0, MEASURED)
        writer.add(values(2), array("d"), False, 5, MEASURED)
        assert read_counts(rows) == Counts(rows=3, finished=2, failed=1, tokens=5)


def test_rows_of_a_killed_worker_whose_gaps_were_in_its_buffer_have_none(tmp_path: Path) -> None:
    rows, gaps = files(tmp_path)
    writer = RowWriter(rows, gaps)
    writer.add(values(0), array("d", [0.1]), False, 1, MEASURED)
    found, seen = read_rows(rows, gaps)
    assert (len(found), found["gap_count"].tolist(), len(seen)) == (1, [0], 0)
    writer.close()


@pytest.fixture
def small_files() -> Iterator[None]:
    """Let no file of this process grow beyond 64 KiB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_disk_without_room_is_an_error_and_kills_nobody(tmp_path: Path, small_files: None) -> None:
    with pytest.raises(OSError, match="too large"):
        RowWriter(*files(tmp_path))
