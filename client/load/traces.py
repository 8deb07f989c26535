"""Recorded arrivals, replayed: when each request came, and how long it was where the trace says so."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from client.errors import WorkloadError
from client.load.arrivals import Times
from client.load.records import Row, read_records

# Mooncake: milliseconds; Azure's LLM inference traces: date and time; BurstGPT: seconds.
_NS_PER_UNIT = {"timestamp": 1e6, "timestamp_s": 1e9, "Timestamp": 1e9}
_CLOCK = "TIMESTAMP"
_INPUT = ("input_length", "ContextTokens", "Request tokens")
_OUTPUT = ("output_length", "GeneratedTokens", "Response tokens")
_DATE_TIME = re.compile(r"(\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)?")
_ALLOWED = (
    "Allowed: JSON Lines with 'timestamp' (ms, as Mooncake's) or 'timestamp_s', or CSV with TIMESTAMP (date and time, "
    "as Azure's), Timestamp (s, as BurstGPT's), timestamp or timestamp_s."
)


@dataclass(frozen=True)
class Trace:
    """Requests in the order of their arrival; all columns are of one length.

    Attributes:
        times_s: Seconds from the first arrival, ascending.
        input_tokens, output_tokens: None where the trace does not say.
        hash_ids: The blocks of each prompt: a block of the same id has the same content. None likewise.
        left_out: Entries without input or output tokens: requests that had failed when the trace was taken.
    """

    times_s: Times
    input_tokens: tuple[int, ...] | None
    output_tokens: tuple[int, ...] | None
    hash_ids: tuple[tuple[int, ...], ...] | None
    left_out: int

    def __len__(self) -> int:
        return len(self.times_s)


@dataclass(frozen=True)
class _Entry:
    at_ns: int
    input_tokens: int | None
    output_tokens: int | None
    hash_ids: tuple[int, ...] | None


def read_trace(path: Path, speed: float = 1.0, requests: int | None = None, duration_s: float | None = None) -> Trace:
    """Read a trace; entries are put in the order of their times.

    Args:
        path: A file as Mooncake's (JSON Lines), Azure's or BurstGPT's (CSV), or with their columns.
        speed: How much faster than recorded it is replayed: 2 doubles the rate.
        requests: How many of its first requests are taken at most.
        duration_s: Only requests earlier than this are taken, counted after the change of speed.

    Raises:
        WorkloadError: the file cannot be read, has a line that is no entry, or no entry at all.
    """
    if not (math.isfinite(speed) and speed > 0):
        raise WorkloadError(f"speed = {speed:g}: it is a number greater than 0 (1 replays a trace as recorded)")
    if (requests is not None and requests < 1) or (duration_s is not None and not duration_s > 0):
        raise WorkloadError(f"requests = {requests}, duration = {duration_s} s: nothing of the trace would be sent")
    found = list(_entries(path))
    kept = [entry for entry in found if entry.input_tokens != 0 and entry.output_tokens != 0]
    if not kept:
        raise WorkloadError(f"{path}: has no request" + (" that did not fail" if found else ""))
    left_out = len(found) - len(kept)
    kept.sort(key=lambda entry: entry.at_ns)
    times_s = np.round(np.array([entry.at_ns - kept[0].at_ns for entry in kept]) / (speed * 1e9), 9)
    count = len(kept) if duration_s is None else int(np.searchsorted(times_s, duration_s))
    count = count if requests is None else min(count, requests)
    kept = kept[:count]
    return Trace(
        times_s[:count],
        _column(path, [entry.input_tokens for entry in kept], _INPUT),
        _column(path, [entry.output_tokens for entry in kept], _OUTPUT),
        _column(path, [entry.hash_ids for entry in kept], ("hash_ids",)),
        left_out,
    )


def _entries(path: Path) -> Iterator[_Entry]:
    for where, row in read_records(path):
        yield _Entry(
            _time_ns(row, where), _length(row, _INPUT, where), _length(row, _OUTPUT, where), _hash_ids(row, where)
        )


def _time_ns(row: Row, where: str) -> int:
    if _CLOCK in row:
        return _clock_ns(str(row[_CLOCK]), where)
    for name, unit_ns in _NS_PER_UNIT.items():
        if name in row:
            value = _number(row[name])
            if value is None or value < 0:
                raise WorkloadError(f"{where}: {name} = {row[name]!r} is no time")
            return round(value * unit_ns)
    raise WorkloadError(f"{where}: has no time; its fields are {_names(row)}.\n{_ALLOWED}")


def _clock_ns(text: str, where: str) -> int:
    found = _DATE_TIME.fullmatch(text.strip())
    if found is None:
        raise WorkloadError(f"{where}: {_CLOCK} = {text!r} is no date and time such as 2023-11-16 18:15:46.6805900")
    seconds, fraction, zone = found.groups()
    try:
        moment = datetime.fromisoformat(seconds + (zone or "+00:00")).astimezone(UTC)
    except ValueError as error:
        raise WorkloadError(f"{where}: {_CLOCK} = {text!r}: {error}") from error
    return int(moment.timestamp()) * 10**9 + int((fraction or "0").ljust(9, "0"))


def _length(row: Row, names: tuple[str, ...], where: str) -> int | None:
    for name in names:
        if name in row:
            value = _number(row[name])
            if value is None or value < 0 or value != int(value):
                raise WorkloadError(f"{where}: {name} = {row[name]!r} is no number of tokens")
            return int(value)
    return None


def _hash_ids(row: Row, where: str) -> tuple[int, ...] | None:
    ids = row.get("hash_ids")
    if ids is None:
        return None
    if not isinstance(ids, list) or not all(type(number) is int and number >= 0 for number in ids):
        raise WorkloadError(f"{where}: hash_ids is no list of whole numbers from 0 on")
    return tuple(ids)


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _column(path: Path, values: list[Any], names: tuple[str, ...]) -> tuple[Any, ...] | None:
    """Return a column that every entry has, or None for one that no entry has."""
    missing = values.count(None)
    if 0 < missing < len(values):
        raise WorkloadError(f"{path}: {missing} of {len(values)} entries lack {' / '.join(names)}")
    return None if missing else tuple(values)


def _names(row: Mapping[str, object]) -> str:
    return ", ".join(sorted(map(str, row))) or "none"
