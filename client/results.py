"""A benchmark's files, in a folder of its own: ``request.json``, ``requests.jsonl``, ``summary.json``."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from client.engine.spec import RequestRecord
from client.errors import StorageError


class BenchmarkFiles:
    """Every path of one benchmark. Folders are 0700 and files 0600."""

    def __init__(self, output_dir: Path, benchmark_id: str) -> None:
        self.folder = output_dir / benchmark_id
        self.request = self.folder / "request.json"
        self.records = self.folder / "requests.jsonl"
        self.summary = self.folder / "summary.json"

    def create(self, request: object) -> None:
        """Make the folder and ``request.json`` in it; a folder without one would block its id for ever.

        Raises:
            StorageError: it is there already, or cannot be made.
        """
        try:
            for parent in reversed(self.folder.parents):
                parent.mkdir(mode=0o700, exist_ok=True)
            self.folder.mkdir(mode=0o700)
        except OSError as error:
            raise StorageError(f"cannot make {self.folder}: {error.strerror}") from error
        try:
            write_private_json(self.request, request)
        except StorageError:
            self.folder.rmdir()
            raise


class RecordLog:
    """Appends records to a new file, one line each, unbuffered: what has finished is on disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1

    def __enter__(self) -> Self:
        try:
            self._descriptor = open_private(self._path, os.O_APPEND | os.O_EXCL)
        except OSError as error:
            raise StorageError(f"cannot make {self._path}: {error.strerror}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    def append(self, record: RequestRecord) -> None:
        """Write one record.

        Raises:
            StorageError: the disk is full, the quota is used up, ….
        """
        try:
            _write_all(self._descriptor, encode_record(record) + b"\n")
        except OSError as error:
            raise StorageError(f"cannot write {self._path}: {error.strerror}") from error


def encode_record(record: RequestRecord) -> bytes:
    """Return ``record`` as one line of JSON, times to the microsecond, without text that was not kept."""
    fields = asdict(record)
    fields["chunk_gaps_s"] = [round(gap, 6) for gap in record.chunk_gaps_s]
    for name, value in fields.items():
        if isinstance(value, float):
            fields[name] = round(value, 6)
    if record.text is None:
        del fields["text"]
    return json.dumps(fields, separators=(",", ":")).encode()


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of ``path`` in the order in which they finished; a torn last line is left out.

    Raises:
        StorageError: it cannot be read.
    """
    try:
        with path.open("rb") as lines:
            for line in lines:
                if line.endswith(b"\n"):
                    yield json.loads(line)
    except (OSError, ValueError) as error:
        raise StorageError(f"cannot read {path}: {error}") from error


def write_private_json(path: Path, document: object) -> None:
    """Replace ``path`` by ``document`` atomically, mode 0600.

    Raises:
        StorageError: it cannot be written; what was there before still is.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        descriptor = open_private(temporary, os.O_TRUNC)
        try:
            _write_all(descriptor, json.dumps(document, indent=2).encode() + b"\n")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StorageError(f"cannot write {path}: {error.strerror}") from error


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the object in ``path``, or None if there is no such file.

    Raises:
        StorageError: it is there and cannot be read.
    """
    try:
        document = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise StorageError(f"cannot read {path}: {error}") from error
    if not isinstance(document, dict):
        raise StorageError(f"cannot read {path}: not a JSON object")
    return document


def open_private(path: Path, flags: int) -> int:
    """Return a descriptor for writing to ``path``, which only its owner may read; symbolic links are not
    followed.
    """
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | flags, 0o600)


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
