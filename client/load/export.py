"""A measurement's files: ``requests.parquet``, ``requests.jsonl``, ``summary.json`` and ``points.csv``.

The Parquet file holds everything that the engine saw, so that figures can be computed anew, with other objectives or
another window.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from client.errors import StorageError
from client.load.driver import FINISH_REASONS
from client.load.figures import Figures
from client.load.repeats import Estimate
from client.load.rows import ROW, WARMUP
from client.load.run import Measurement
from client.load.saturation import Capacity, Knee, Point
from client.load.spec import ERROR_CLASSES
from client.load.worker import WorkerReport

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 1
_META = b"orch.measurement"
_PLACES = ("gap_start", "gap_count")
_DIGITS = 6
_TIMES = (
    "intended_s", "sent_s", "eof_s", "first_byte_s", "first_reasoning_s", "first_content_s", "last_token_s",
)  # fmt: skip


class _Meta(msgspec.Struct):
    started_at: float
    start_s: float
    was_cancelled: bool
    workers: tuple[WorkerReport, ...]
    notes: tuple[dict[str, Any], ...]
    format: int = FORMAT


class Summary(Figures, frozen=True, kw_only=True):
    """``summary.json``: the figures of a load, and whether they hold.

    Attributes:
        format: Of this file; it changes when a field changes its meaning.
        about: What was measured, as the caller knows it: URL, model, load; no secrets.
        started_at: In seconds since the epoch.
        client_adds_ms: To the median TTFT, according to the self-check; None without one.
        repeats: Each metric over repeats of the load, of which the figures are those of one.
        points, knee, capacity: Of a sweep.
    """

    format: int = FORMAT
    about: dict[str, Any]
    started_at: float
    valid: bool
    invalid_reasons: tuple[str, ...]
    client_adds_ms: float | None = None
    repeats: dict[str, Estimate] = msgspec.field(default_factory=dict)
    points: tuple[Point, ...] = ()
    knee: Knee | None = None
    capacity: Capacity | None = None


def summarise(
    figures: Figures, started_at: float, reasons: Sequence[str], about: dict[str, Any], **more: Any
) -> Summary:
    """Return the summary of ``figures``; ``more`` are further attributes of Summary."""
    fields = {name: getattr(figures, name) for name in Figures.__struct_fields__}
    return Summary(
        **fields, about=about, started_at=started_at, valid=not reasons, invalid_reasons=tuple(reasons), **more
    )


def encode_summary(summary: Summary) -> bytes:
    """Return ``summary`` as JSON."""
    return msgspec.json.format(msgspec.json.encode(summary), indent=2) + b"\n"


def read_summary(path: Path) -> Summary:
    """Return the summary in ``path``.

    Raises:
        StorageError: it cannot be read, or is none.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Summary)
    except (OSError, msgspec.DecodeError) as error:
        raise StorageError(f"cannot read {path}: {error}") from error


def summary_schema() -> dict[str, Any]:
    """Return the JSON schema of ``summary.json``."""
    return msgspec.json.schema(Summary)


def write_parquet(measurement: Measurement, path: Path) -> None:
    """Write ``measurement`` to ``path``, one row a request with its gaps, readable by its owner only.

    Raises:
        StorageError: it cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = measurement.rows
    columns = {name: np.ascontiguousarray(rows[name]) for name in ROW.names or () if name not in _PLACES}
    ends = np.concatenate([[0], np.cumsum(rows["gap_count"], dtype=np.int64)])
    place = np.repeat(rows["gap_start"] - ends[:-1], rows["gap_count"]) + np.arange(ends[-1])
    gaps = pa.LargeListArray.from_arrays(pa.array(ends), pa.array(measurement.gaps[place]))
    meta = _Meta(
        measurement.started_at, measurement.start_s, measurement.was_cancelled, measurement.workers, measurement.notes
    )
    table = pa.table({**columns, "gaps_s": gaps}).replace_schema_metadata({_META: msgspec.json.encode(meta)})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_private(path, sink.getvalue().to_pybytes())


def read_parquet(path: Path) -> Measurement:
    """Return the measurement in ``path``.

    Raises:
        StorageError: it cannot be read, or was not written by write_parquet.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        meta = msgspec.json.decode((table.schema.metadata or {})[_META], type=_Meta)
        rows, gaps = _rows_of(table)
        return Measurement(rows, gaps, meta.notes, meta.started_at, meta.start_s, meta.workers, meta.was_cancelled)
    except (OSError, KeyError, pa.ArrowException, msgspec.DecodeError) as error:
        raise StorageError(f"cannot read {path} as a measurement: {error}") from error


def _rows_of(table: pa.Table) -> tuple[np.ndarray[Any, np.dtype[np.void]], np.ndarray[Any, np.dtype[np.float64]]]:
    rows = np.empty(table.num_rows, dtype=ROW)
    for name in ROW.names or ():
        if name not in _PLACES:
            rows[name] = table[name].to_numpy()
    gaps = table["gaps_s"].combine_chunks()
    lengths = gaps.value_lengths().to_numpy(zero_copy_only=False)
    rows["gap_count"] = lengths
    rows["gap_start"] = np.cumsum(lengths) - lengths
    return rows, gaps.flatten().to_numpy(zero_copy_only=False)


def iter_records(measurement: Measurement) -> Iterator[dict[str, Any]]:
    """Yield each request, the warm-up included, with times in seconds since the common start."""
    notes = {note["index"]: note for note in measurement.notes if note.get("phase") != WARMUP}
    for values in measurement.rows:
        row = dict(zip(ROW.names or (), values.item(), strict=True))
        yield _record(row, measurement, {} if row["phase"] == WARMUP else notes.get(row["index"], {}))


def _record(row: dict[str, Any], measurement: Measurement, note: dict[str, Any]) -> dict[str, Any]:
    times = {f"{name.removesuffix('_s')}_at_s": _told(row[name]) for name in _TIMES}
    firsts = [at_s for at_s in (times["first_reasoning_at_s"], times["first_content_at_s"]) if at_s is not None]
    gaps = measurement.gaps[row["gap_start"] : row["gap_start"] + row["gap_count"]]
    record = {
        "client_id": row["client"] if row["client"] >= 0 else None,
        "index": row["index"],
        **times,
        "first_token_at_s": min(firsts, default=None),
        "prompt_tokens": row["prompt_tokens"] if row["prompt_tokens"] >= 0 else None,
        "completion_tokens": row["completion_tokens"],
        "tokens_source": "usage" if row["usage_tokens"] >= 0 else "chunks" if row["chunks"] else None,
        "chunks": row["chunks"],
        "chunk_gaps_s": np.round(gaps, _DIGITS).tolist(),
        "finish_reason": FINISH_REASONS[row["finish"]] or None,
        "http_status": row["status"] or None,
        "error_class": ERROR_CLASSES[row["error"]] if row["error"] >= 0 else None,
        "error": note.get("error"),
        "text_length": row["text_length"],
        "loop_lag_s": _told(row["loop_lag_s"]),
        "warmup": row["phase"] == WARMUP,
    }
    if "text" in note:
        record |= {"text": note["text"], "reasoning": note.get("reasoning", "")}
    return record


def _told(seconds: float) -> float | None:
    return round(seconds, _DIGITS) if seconds == seconds else None


def write_jsonl(measurement: Measurement, path: Path) -> None:
    """Write each request as a line of JSON to ``path``, readable by its owner only.

    Raises:
        StorageError: it cannot be written.
    """
    encoder = msgspec.json.Encoder()
    write_private(path, b"".join(encoder.encode(record) + b"\n" for record in iter_records(measurement)))


def points_csv(points: Sequence[Point]) -> str:
    """Return ``points`` as CSV with a header; what is not there is empty."""
    latencies = ("ttft_ms", "itl_ms", "e2e_ms")
    figures = ("mean", "p50", "p90", "p95", "p99", "p999")
    plain = ("kind", "load", "requests_per_s", "output_tokens_per_s", "failed_share", "goodput_per_s", "good_share",
             "is_good", "is_valid")  # fmt: skip
    rates = ("requests_per_s", "output_tokens_per_s")
    header = [*plain, *(f"{rate}_{end}" for rate in rates for end in ("low", "high"))]
    header += [f"{latency.removesuffix('_ms')}_{figure}_ms" for latency in latencies for figure in figures]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    for point in points:
        row = [getattr(point, name) for name in plain]
        row += [end for rate in rates for end in point.intervals.get(rate, (None, None))]
        row += [getattr(getattr(point, latency), figure) for latency in latencies for figure in figures]
        writer.writerow(["" if value is None else value for value in row])
    return out.getvalue()


def write_private(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data`` at once, mode 0600.

    Raises:
        StorageError: it cannot be written; what was there before still is.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StorageError(f"cannot write {path}: {error.strerror}") from error
