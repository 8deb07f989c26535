"""What a model's folder has to hold: each file's size and SHA-256."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.atomic import read_json, write_json
from orchestrator.models.meter import Meter
from orchestrator.models.threads import in_threads

MARK = ".orch-complete"
"""The manifest of a folder, inside it: written last, so a folder with it is whole, or was."""
SCHEMA_VERSION = 1
CHUNK_BYTES = 8 << 20


@dataclass(frozen=True)
class FileEntry:
    """One file, by its path below the folder."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """All files of one model.

    Attributes:
        model: As a recipe names it.
        files: By path.
        commit: The revision's own name at the hub; empty for other sources.
        source: What a folder of the store was made of: a directory, a GGUF file, package:NAME; empty if unknown.
        source_sha256: Of the GGUF file; empty for other sources.
        made_at: When all of it had been checked, in seconds since the epoch.
    """

    model: str
    files: tuple[FileEntry, ...]
    commit: str = ""
    source: str = ""
    source_sha256: str = ""
    made_at: float = field(default_factory=time.time)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files)

    def write(self, path: Path) -> None:
        """Put it into a file.

        Raises:
            StorageError: it could not be written.
        """
        write_json(path, {"schema_version": SCHEMA_VERSION, **asdict(self)})


def read_manifest(path: Path) -> Manifest | None:
    """Return the manifest in a file, or None if there is none that can be read."""
    document: Any = read_json(path)
    try:
        files = tuple(FileEntry(**entry) for entry in document["files"])
        facts = {name: document.get(name, "") for name in ("source", "source_sha256")}
        return Manifest(document["model"], files, document["commit"], made_at=document["made_at"], **facts)
    except (KeyError, TypeError):
        return None


def make_manifest(model: str, folder: Path, meter: Meter) -> Manifest:
    """Return the manifest of what is in ``folder`` now, hidden files and folders left out.

    Raises:
        OSError: a file cannot be read.
    """
    paths = _files(folder)
    hashes = hash_files(paths, f"{model}: checksums", meter)
    entries = [
        FileEntry(path.relative_to(folder).as_posix(), path.stat().st_size, sha256)
        for path, sha256 in zip(paths, hashes, strict=True)
    ]
    return Manifest(model, tuple(entries))


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not is_hidden(path.relative_to(folder)))


def is_hidden(path: Path) -> bool:
    """Return whether a relative path or a folder on it begins with a dot."""
    return any(part.startswith(".") for part in path.parts)


def size_faults(folder: Path, manifest: Manifest) -> list[str]:
    """Return what is missing or has another size, in words; fast, as nothing is read."""
    return [fault for entry in manifest.files if (fault := _size_fault(folder, entry))]


def faults(folder: Path, manifest: Manifest, meter: Meter) -> list[str]:
    """Return what is missing, differs or is too much in ``folder``, in words; all of it is read.

    A snapshot of a hub may hold more: other tools fetch what orch leaves out.

    Raises:
        OSError: a file cannot be read.
    """
    found = size_faults(folder, manifest)
    there = [entry for entry in manifest.files if not _size_fault(folder, entry)]
    hashes = hash_files([folder / entry.path for entry in there], f"{manifest.model}: checks", meter)
    found += [
        f"{entry.path}: its checksum is wrong"
        for entry, sha256 in zip(there, hashes, strict=True)
        if sha256 != entry.sha256
    ]
    if not manifest.commit:
        there_now = {path.relative_to(folder).as_posix() for path in _files(folder)}
        found += [f"{path}: not in the manifest" for path in there_now - {entry.path for entry in manifest.files}]
    return sorted(found)


def _size_fault(folder: Path, entry: FileEntry) -> str:
    try:
        size = (folder / entry.path).stat().st_size
    except OSError:
        return f"{entry.path}: missing"
    return "" if size == entry.size else f"{entry.path}: {size} bytes, not {entry.size}"


def hash_files(paths: Sequence[Path], what: str, meter: Meter) -> list[str]:
    """Return the SHA-256 of each file, in hexadecimal; several are read at once.

    Raises:
        OSError: a file cannot be read.
    """
    with meter(what, sum(path.stat().st_size for path in paths)) as note:
        return in_threads(_sha256, paths, note)


def _sha256(path: Path, step: Callable[[int], None]) -> str:
    return digest(path, "sha256", b"", step)


def digest(path: Path, algorithm: str, prefix: bytes, step: Callable[[int], None]) -> str:
    """Return the hash of ``prefix`` and a file's content, in hexadecimal; ``step`` is told of each chunk.

    Raises:
        OSError: it cannot be read.
    """
    found = hashlib.new(algorithm, prefix, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            found.update(chunk)
            step(len(chunk))
    return found.hexdigest()
