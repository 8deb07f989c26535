"""Files of records, row by row: JSON Lines, one JSON array, CSV, Parquet, the text ones also as .gz."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import msgspec

from client.errors import WorkloadError
from client.load.optional import import_optional

Row = dict[str, Any]
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".parquet", ".jsonl.gz", ".ndjson.gz", ".json.gz", ".csv.gz")
_SHOWN_CHARS = 60


def read_records(path: Path) -> Iterator[tuple[str, Row]]:
    """Yield each record of ``path`` with the words that say where it is.

    A file of JSON is read as one array where it begins with ``[``, else as one object per line; empty lines are no
    records. Values of a CSV file are texts.

    Raises:
        WorkloadError: the file cannot be read, or has a record that is none; says which.
    """
    name = path.name.lower()
    if not name.endswith(SUFFIXES):
        raise WorkloadError(f"{path}: cannot tell what kind of file this is.\nAllowed: {', '.join(SUFFIXES)}.")
    try:
        if name.endswith(".parquet"):
            yield from _parquet(path)
            return
        data = gzip.decompress(path.read_bytes()) if name.endswith(".gz") else path.read_bytes()
    except (OSError, EOFError) as error:
        raise WorkloadError(f"{path}: cannot be read: {error}") from error
    data = data.removeprefix(b"\xef\xbb\xbf")
    if ".csv" in name:
        yield from _csv(path, data)
    elif data.lstrip()[:1] == b"[":
        yield from _array(path, data)
    else:
        yield from _lines(path, data)


def _lines(path: Path, data: bytes) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(io.BytesIO(data), 1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        try:
            row = msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise WorkloadError(f"{where}: not JSON: {error}: {_shown(line)}") from error
        yield where, _as_row(row, where)


def _array(path: Path, data: bytes) -> Iterator[tuple[str, Row]]:
    try:
        rows = msgspec.json.decode(data, type=list[Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise WorkloadError(f"{path}: not a JSON array: {error}") from error
    for number, row in enumerate(rows, 1):
        where = f"{path}: entry {number}"
        yield where, _as_row(row, where)


def _csv(path: Path, data: bytes) -> Iterator[tuple[str, Row]]:
    try:
        reader = csv.DictReader(io.StringIO(data.decode(), newline=""), strict=True)
        for row in reader:
            where = f"{path}: line {reader.line_num}"
            if None in row or None in row.values():
                raise WorkloadError(f"{where}: has not as many values as the first line has names")
            yield where, cast(Row, row)
    except (csv.Error, UnicodeDecodeError) as error:
        raise WorkloadError(f"{path}: not CSV in UTF-8: {error}") from error


def _parquet(path: Path) -> Iterator[tuple[str, Row]]:
    parquet = import_optional("pyarrow.parquet", f"to read {path}")
    arrow = import_optional("pyarrow", f"to read {path}")
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}: row {number}", row
    except arrow.ArrowException as error:
        raise WorkloadError(f"{path}: not a Parquet file: {error}") from error


def _as_row(row: object, where: str) -> Row:
    if not isinstance(row, dict):
        raise WorkloadError(f"{where}: is no JSON object: {_shown(msgspec.json.encode(row))}")
    return row


def _shown(data: bytes) -> str:
    text = data.decode("utf-8", "replace").strip()
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 1] + "…"
