"""A benchmark's files, in a folder of its own: ``request.json``, those of the load engine, ``summary.json`` at last."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from client.errors import StorageError
from client.load.export import write_private


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


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of ``path`` in the order in which they were sent.

    Raises:
        StorageError: it cannot be read.
    """
    try:
        with path.open("rb") as lines:
            for line in lines:
                yield json.loads(line)
    except (OSError, ValueError) as error:
        raise StorageError(f"cannot read {path}: {error}") from error


def write_private_json(path: Path, document: object) -> None:
    """Replace ``path`` by ``document`` at once, mode 0600.

    Raises:
        StorageError: it cannot be written; what was there before still is.
    """
    write_private(path, msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")


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
