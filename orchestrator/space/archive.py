"""One run as one file: a tar with SHA-256 sums, read back before anybody relies on it."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import secrets
import shutil
import stat
import subprocess
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, cast

from orchestrator.errors import OrchError, StorageError, UserError
from orchestrator.rundir import RunDir
from orchestrator.space.removal import is_doomed

MANIFEST = "MANIFEST.sha256"
ENDINGS = (".tar.zst", ".tar.gz")
REMEDY = "Free some space or quota there, or name another place with --output."
_BLOCK = 1 << 20


class ArchiveError(OrchError):
    """An archive could not be made, or is not what was put into it; nothing was deleted."""


@dataclass(frozen=True)
class Archived:
    """An archive that was read back.

    Attributes:
        path: The file.
        n_files: Regular files in it, the manifest left out.
        n_bytes: Their size together.
        size: Of the archive itself, in bytes.
        left_out: What is not in it, below the run: secrets, and what is neither file, folder nor link.
    """

    path: Path
    n_files: int
    n_bytes: int
    size: int
    left_out: tuple[str, ...]


@dataclass
class _Contents:
    sums: dict[str, str] = field(default_factory=dict)
    n_bytes: int = 0
    left_out: list[str] = field(default_factory=list)


def default_path(run: RunDir) -> Path:
    """Return where a run's archive goes if nobody says: archives/ beside the run; zstd where it is installed."""
    ending = ENDINGS[0] if shutil.which("zstd") else ENDINGS[1]
    return run.root.parent / "archives" / f"{run.root.name}{ending}"


def check_target(run: RunDir, target: Path) -> None:
    """Look whether an archive can be made at ``target``.

    Raises:
        UserError: another ending, no zstd here, something is there already, or it lies in the run itself.
    """
    if not target.name.endswith(ENDINGS):
        raise UserError(f"--output = {target}: what kind of archive?\nAllowed endings: {', '.join(ENDINGS)}.")
    if target.name.endswith(ENDINGS[0]) and shutil.which("zstd") is None:
        raise UserError(f"--output = {target}: zstd is not installed here.\nInstall it, or use the ending .tar.gz.")
    if os.path.lexists(target):
        raise UserError(f"--output = {target}: it is there already.\nName another file, or move that one.")
    if run.root.resolve() in target.resolve().parents:
        raise UserError(f"--output = {target} lies in the run itself.\nName a file outside of it.")


def make_archive(run: RunDir, target: Path, without_checkpoints: bool) -> Archived:
    """Write ``run`` into ``target`` and read it back; the file has its name only when it is whole and right.

    Raises:
        StorageError: it cannot be written.
        ArchiveError: the run cannot be read, or what is read back is something else.
    """
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        contents = _write(run, partial, _ending(target), without_checkpoints)
        _verify(partial, _ending(target), run.root.name, contents.sums)
        size = partial.stat().st_size
        partial.rename(target)
    except OSError as error:
        raise StorageError(target, error, REMEDY) from error
    finally:
        partial.unlink(missing_ok=True)
    return Archived(target, len(contents.sums), contents.n_bytes, size, tuple(contents.left_out))


def _ending(target: Path) -> str:
    return next(ending for ending in ENDINGS if target.name.endswith(ending))


def _write(run: RunDir, partial: Path, ending: str, without_checkpoints: bool) -> _Contents:
    contents = _Contents()
    with os.fdopen(os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        with _compressed(file, ending, partial) as stream, tarfile.open(fileobj=stream, mode="w|") as tar:
            for path in _walk(run.root, _is_left_out(without_checkpoints)):
                _add(tar, run.root, path, contents)
            _add_manifest(tar, run.root.name, contents.sums)
        file.flush()
        os.fsync(file.fileno())
    return contents


def _is_left_out(without_checkpoints: bool) -> Callable[[tuple[str, ...]], bool]:
    def is_left_out(parts: tuple[str, ...]) -> bool:
        is_checkpoint = parts == ("checkpoints",) or (len(parts) == 3 and parts[0::2] == ("trials", "checkpoints"))
        return parts in {("secrets",), (MANIFEST,)} or is_doomed(parts[-1]) or (without_checkpoints and is_checkpoint)

    return is_left_out


def _walk(root: Path, is_left_out: Callable[[tuple[str, ...]], bool], below: tuple[str, ...] = ()) -> Iterator[Path]:
    """Yield a run's files, folders and links, folders before what is in them; links are not followed.

    Raises:
        ArchiveError: a folder cannot be read.
    """
    folder = root.joinpath(*below)
    yield folder
    try:
        found = sorted(folder.iterdir())
    except OSError as error:
        raise ArchiveError(f"{folder} cannot be read: {error.strerror}\nNo archive was made.") from error
    for path in found:
        parts = (*below, path.name)
        if is_left_out(parts):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _walk(root, is_left_out, parts)
        else:
            yield path


def _add(tar: tarfile.TarFile, root: Path, path: Path, contents: _Contents) -> None:
    name = str(Path(root.name) / path.relative_to(root))
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        if stat.S_ISDIR(status.st_mode) or stat.S_ISLNK(status.st_mode):
            tar.add(path, name, recursive=False)
        else:
            contents.left_out.append(str(path.relative_to(root)))
        return
    try:
        # O_NOFOLLOW and a look at what was opened: it may have been exchanged for a link or a pipe meanwhile.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise ArchiveError(f"{path} cannot be read: {error.strerror}\nNo archive was made.") from error
    with os.fdopen(descriptor, "rb") as file:
        reader = _Summing(file, path)
        # Not gettarinfo's own look: a hard link would become a link to a file that may be left out.
        info = tarfile.TarInfo(name)
        opened = os.fstat(descriptor)
        info.size, info.mode, info.mtime = opened.st_size, stat.S_IMODE(opened.st_mode), opened.st_mtime
        tar.addfile(info, cast("IO[bytes]", reader))
    contents.sums[name] = reader.digest.hexdigest()
    contents.n_bytes += info.size


class _Summing:
    """A file whose SHA-256 is taken as it is read."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self._file, self._path = file, path
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        try:
            data = self._file.read(size)
        except OSError as error:
            raise ArchiveError(f"{self._path} cannot be read: {error.strerror}\nNo archive was made.") from error
        if size > 0 and len(data) < size:
            raise ArchiveError(f"{self._path} became shorter while it was read.\nNo archive was made.")
        self.digest.update(data)
        return data


def _add_manifest(tar: tarfile.TarFile, folder: str, sums: dict[str, str]) -> None:
    text = "".join(_manifest_line(name, digest) for name, digest in sums.items())
    data = os.fsencode(text)
    info = tarfile.TarInfo(f"{folder}/{MANIFEST}")
    info.size, info.mode = len(data), 0o600
    tar.addfile(info, io.BytesIO(data))


def _manifest_line(name: str, digest: str) -> str:
    """Return a line for `sha256sum -c`; GNU coreutils, "md5sum invocation", has the escapes."""
    escaped = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    return f"{chr(92) if escaped != name else ''}{digest}  {escaped}\n"


@contextmanager
def _compressed(file: IO[bytes], ending: str, partial: Path) -> Iterator[IO[bytes]]:
    """Give a stream whose bytes arrive compressed in ``file``."""
    if ending == ENDINGS[1]:
        with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=6) as packed:
            yield cast("IO[bytes]", packed)
        return
    with _zstd(["-q", "-T0", "-c"], stdin=subprocess.PIPE, stdout=file) as process:
        assert process.stdin is not None  # noqa: S101 — it was asked for
        try:
            yield process.stdin
            process.stdin.close()
        except BrokenPipeError:
            with suppress(BrokenPipeError):  # zstd has ended, and says why
                process.stdin.close()
        _check_zstd(process, partial)


def _zstd(words: list[str], stdin: int | IO[bytes], stdout: int | IO[bytes]) -> subprocess.Popen[bytes]:
    # SIGXFSZ stays ignored, as Python has it: a file that may not grow is then an error that zstd tells of.
    return subprocess.Popen(["zstd", *words], stdin=stdin, stdout=stdout, stderr=subprocess.PIPE, restore_signals=False)


def _check_zstd(process: subprocess.Popen[bytes], partial: Path) -> None:
    assert process.stderr is not None  # noqa: S101 — it was asked for
    said = process.stderr.read().decode(errors="replace").strip()
    if process.wait() != 0:
        raise ArchiveError(f"cannot write {partial}: zstd: {said or process.returncode}\n{REMEDY}")


def _verify(partial: Path, ending: str, folder: str, sums: dict[str, str]) -> None:
    """Read an archive back.

    Raises:
        ArchiveError: it holds anything else than what was put into it.
    """
    found: dict[str, str] = {}
    manifest = b""
    try:
        with partial.open("rb") as file, _unpacked(file, ending, partial) as stream:
            with tarfile.open(fileobj=stream, mode="r|") as tar:
                for member in tar:
                    reader = tar.extractfile(member) if member.isreg() else None
                    if reader is None:
                        continue
                    if member.name == f"{folder}/{MANIFEST}":
                        manifest = reader.read()
                    else:
                        found[member.name] = _digest(reader)
            while stream.read(_BLOCK):
                continue
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ArchiveError(f"the archive cannot be read back: {error}\nIt was removed.") from error
    listed = os.fsencode("".join(_manifest_line(name, digest) for name, digest in sums.items()))
    if found != sums or manifest != listed:
        wrong = sorted(set(found.items()) ^ set(sums.items()))
        raise ArchiveError(f"the archive is not what was put into it: {wrong[0][0] if wrong else MANIFEST}")


def _digest(reader: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while block := reader.read(_BLOCK):
        digest.update(block)
    return digest.hexdigest()


@contextmanager
def _unpacked(file: IO[bytes], ending: str, partial: Path) -> Iterator[IO[bytes]]:
    if ending == ENDINGS[1]:
        with gzip.GzipFile(fileobj=file, mode="rb") as unpacked:
            yield cast("IO[bytes]", unpacked)
        return
    with _zstd(["-q", "-d", "-c"], stdin=file, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None  # noqa: S101 — it was asked for
        yield process.stdout
        _check_zstd(process, partial)
