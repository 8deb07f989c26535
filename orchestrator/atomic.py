"""Private files that are either whole or not there."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from pathlib import Path
from typing import Any

from orchestrator.errors import StorageError


def make_private_dir(path: Path) -> Path:
    """Make ``path`` and the missing folders above it, each 0700 whatever the umask; return it.

    Raises:
        StorageError: it could not be made.
    """
    try:
        if not path.is_dir():
            make_private_dir(path.parent)
            try:
                path.mkdir(mode=0o700)
            except FileExistsError:
                # Made meanwhile by somebody else; or a file, which stays as it is.
                if not path.is_dir():
                    raise
            else:
                path.chmod(0o700)
    except OSError as error:
        raise StorageError(path, error) from error
    return path


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` by ``text`` atomically, 0600; see write_bytes."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_bytes(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data`` atomically, 0600.

    Raises:
        StorageError: no space, no quota, no permission; what was there before is kept.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(0o600)
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
            raise
    except OSError as error:
        raise StorageError(path, error) from error


def write_json(path: Path, value: Any) -> None:
    """Replace ``path`` by ``value`` as indented JSON, atomically, 0600; see write_text."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any | None:
    """Return the parsed content of ``path``, or None if it is not there (yet) or is not whole JSON.

    Writers replace files atomically, so a broken one is a foreign or damaged file and counts as absent.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def append_line(path: Path, text: str) -> None:
    """Append one line to ``path`` (made 0600) and bring it to the disk; a torn last line gets an end of its own.

    Raises:
        StorageError: it could not be written.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "rb+") as file:
            size = file.seek(0, os.SEEK_END)
            if size == 0:
                os.fchmod(descriptor, 0o600)
            is_torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            file.write((("\n" if is_torn else "") + text + "\n").encode(errors="backslashreplace"))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise StorageError(path, error) from error


def point_link(link: Path, target: str) -> None:
    """Make ``link`` a symbolic link to ``target``, replacing an older link atomically.

    Raises:
        StorageError: it could not be made.
    """
    temporary = link.with_name(f".{link.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.symlink_to(target)
        try:
            temporary.replace(link)
        except OSError:
            temporary.unlink()
            raise
    except OSError as error:
        raise StorageError(link, error) from error
