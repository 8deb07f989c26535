"""Trees of files on this machine: what is in them, what a pattern excludes, and copies that are whole or not there."""

from __future__ import annotations

import filecmp
import logging
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from secrets import token_hex

from orchestrator.atomic import make_private_dir
from orchestrator.errors import TransferError
from orchestrator.transports.base import Transfer, TransferOptions

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TreeEntry:
    """A file, folder or link in a tree.

    Attributes:
        path: Below the top of the tree.
        mode: As stat(2) gives it, type included.
        n_bytes: Size of a file.
    """

    path: str
    mode: int
    n_bytes: int


def is_excluded(path: str, is_folder: bool, excludes: Sequence[str]) -> bool:
    """Tell whether one of rsync's patterns (rsync(1), PATTERN MATCHING RULES) excludes ``path`` itself."""
    parts = path.split("/")
    for pattern in excludes:
        if pattern.endswith("/") and not is_folder:
            continue
        wanted = pattern.strip("/").split("/")
        found = parts if pattern.startswith("/") else parts[-len(wanted) :]
        if len(found) == len(wanted) and all(map(fnmatchcase, found, wanted)):
            return True
    return False


def walk(top: Path, excludes: Sequence[str], below: str = "") -> Iterator[TreeEntry]:
    """Yield what is in ``top``, folders before what is in them, in alphabetical order.

    Raises:
        OSError: a folder cannot be read.
    """
    with os.scandir(top / below) as items:
        found = sorted(items, key=lambda item: item.name)
    for item in found:
        path = f"{below}/{item.name}" if below else item.name
        status = item.stat(follow_symlinks=False)
        is_folder = stat.S_ISDIR(status.st_mode)
        if is_excluded(path, is_folder, excludes):
            continue
        yield TreeEntry(path, status.st_mode, status.st_size)
        if is_folder:
            yield from walk(top, excludes, path)


def leads_out(path: str, target: str) -> bool:
    """Tell whether a link at ``path`` in a tree points out of the tree."""
    if target.startswith("/"):
        return True
    return os.path.normpath(f"{os.path.dirname(path)}/{target}".lstrip("/")).split("/")[0] == ".."  # noqa: PTH120


def copy(source: Path, target: Path, options: TransferOptions, host: str, tick: Callable[[], None]) -> Transfer:
    """Copy a file or a tree on this machine, and call ``tick`` after each MiB; see Transport.push.

    Raises:
        TransferError: anything could not be read or written.
    """
    try:
        if source.is_dir():
            return _copy_tree(source, target, options, tick)
        if target.is_dir():
            raise TransferError(host, f"cannot copy {source}: {target} is a directory")
        status = source.stat()
        entry = TreeEntry(source.name, status.st_mode, status.st_size)
        is_new = _copy_file(source, target, options, tick)
        return Transfer((entry.path,) if is_new else (), entry.n_bytes if is_new else 0, "copy")
    except OSError as error:
        raise TransferError(host, f"cannot copy {source} to {target}: {error}", remedy_for(str(error))) from error


def _copy_tree(source: Path, target: Path, options: TransferOptions, tick: Callable[[], None]) -> Transfer:
    entries, folders = [], []
    for entry in walk(source, options.excludes):
        to = target / entry.path
        if stat.S_ISDIR(entry.mode):
            folders.append(entry)
            if not options.is_dry_run:
                make_private_dir(to)
        elif stat.S_ISLNK(entry.mode):
            _copy_link(source, entry, to, options)
        elif not stat.S_ISREG(entry.mode):
            log.warning("%s is no regular file and is not copied", source / entry.path)
        elif _copy_file(source / entry.path, to, options, tick):
            entries.append(entry)
    if not options.is_dry_run:
        make_private_dir(target)
        target.chmod(stat.S_IMODE(source.stat().st_mode))
        # Afterwards, as a folder may be read-only.
        for folder in reversed(folders):
            (target / folder.path).chmod(stat.S_IMODE(folder.mode))
    return Transfer(tuple(entry.path for entry in entries), sum(entry.n_bytes for entry in entries), "copy")


def _copy_link(top: Path, entry: TreeEntry, to: Path, options: TransferOptions) -> None:
    points_to = os.readlink(top / entry.path)  # noqa: PTH115 — Path.readlink changes `./x`
    if leads_out(entry.path, points_to):
        log.warning("%s leads out of the tree to %s and is not copied", top / entry.path, points_to)
        return
    if options.is_dry_run:
        return
    temporary = to.with_name(f".{token_hex(6)}.tmp")
    temporary.symlink_to(points_to)
    temporary.replace(to)


def _copy_file(source: Path, target: Path, options: TransferOptions, tick: Callable[[], None]) -> bool:
    if _is_same(source, target, options.is_checksummed):
        return False
    if options.is_dry_run:
        return True
    make_private_dir(target.parent)
    temporary = target.with_name(f".{target.name[:200]}.{token_hex(4)}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as writer, source.open("rb") as reader:
            while block := reader.read(1 << 20):
                writer.write(block)
                tick()
            writer.flush()
            os.fsync(writer.fileno())
        shutil.copystat(source, temporary)
        temporary.replace(target)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
    return True


def _is_same(source: Path, target: Path, is_checksummed: bool) -> bool:
    try:
        there = target.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    here = source.stat()
    looks_same = stat.S_ISREG(there.st_mode) and (here.st_size, here.st_mode) == (there.st_size, there.st_mode)
    if not looks_same:
        return False
    if is_checksummed:
        return filecmp.cmp(source, target, shallow=False)
    return int(here.st_mtime) == int(there.st_mtime)


_REMEDIES = {
    "No space left": "Free some space there.",
    "quota exceeded": "Free some of your quota there.",
    "File too large": "The file is larger than what may be written there (ulimit -f).",
    "Permission denied": "Look at the permissions of the path and of the folders above it.",
    "No such file": "Look at the spelling of the path.",
    "essage too long": "A start-up file of the login shell over there (.bashrc, .cshrc) prints text, which sftp "
    "cannot bear. Make it silent for shells that are not interactive.",
}


def remedy_for(said: str) -> str:
    """Return what to do about a failed copy, or an empty string."""
    return next((remedy for words, remedy in _REMEDIES.items() if words in said), "")
