"""Deletion of folders: each is renamed first, so that nothing takes a half-deleted one for a whole one."""

from __future__ import annotations

import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from orchestrator.atomic import point_link
from orchestrator.errors import StorageError
from orchestrator.ledger import Ledger
from orchestrator.rundir import DELETING, LATEST, iter_runs

REMEDY = "Change its permissions, or ask whoever owns it; what is left goes with the next `orch.py clean`."
_LEFT_OVER = re.compile(re.escape(DELETING) + r"[0-9a-f]{8}-.+", re.DOTALL)


def doomed_name(name: str) -> str:
    """Return the name that a folder has while it is being deleted."""
    return f"{DELETING}{secrets.token_hex(4)}-{name}"


def is_doomed(name: str) -> bool:
    """Tell whether a folder of this name was being deleted."""
    return _LEFT_OVER.fullmatch(name) is not None


def is_real_folder(path: Path) -> bool:
    """Tell whether ``path`` is a folder and no link to one."""
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except OSError:
        return False


def real_folders(folder: Path) -> Iterator[Path]:
    """Yield the folders in ``folder`` that are no links, by name; none if it cannot be read or is a link itself."""
    if not is_real_folder(folder):
        return
    try:
        found = sorted(folder.iterdir())
    except OSError:
        return
    yield from (path for path in found if is_real_folder(path))


def delete_folder(folder: Path) -> None:
    """Rename ``folder`` and delete it with all that is in it; links in it go, what they lead to stays.

    Raises:
        StorageError: it could not be renamed, or not all of it could be deleted; the rest has the doomed name.
    """
    doomed = folder.with_name(doomed_name(folder.name))
    try:
        folder.rename(doomed)
    except OSError as error:
        raise StorageError(folder, error, REMEDY) from error
    finish_deletion(doomed)


def finish_deletion(doomed: Path) -> None:
    """Delete a folder that was renamed already.

    Raises:
        StorageError: see delete_folder.
    """
    try:
        parent = os.open(doomed.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            _remove_folder(parent, doomed.name)
        finally:
            os.close(parent)
    except OSError as error:
        raise StorageError(doomed, error, REMEDY) from error


def replace_folder(folder: Path, new: Path) -> None:
    """Rename the folder ``new`` to ``folder``; an older one goes, and whoever has its files open keeps them.

    At no time is half of either under that name.

    Raises:
        OSError: it could not be renamed.
        StorageError: it is in its place, but not all of the older one could be deleted.
    """
    doomed = folder.with_name(doomed_name(folder.name))
    if folder.exists():
        folder.rename(doomed)
    new.rename(folder)
    if doomed.exists():
        finish_deletion(doomed)


def _remove_folder(parent: int, name: str) -> None:
    """Delete the folder ``name`` in the open folder ``parent``; another process may be deleting it as well."""
    # Opened without following a link, and worked on by its descriptor: it cannot be exchanged half way.
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    try:
        try:
            folder = os.open(name, flags, dir_fd=parent)
        except PermissionError:
            os.chmod(name, 0o700, dir_fd=parent)
            folder = os.open(name, flags, dir_fd=parent)
    except FileNotFoundError:
        return
    try:
        if os.fstat(folder).st_mode & 0o700 != 0o700:
            os.fchmod(folder, 0o700)
        with os.scandir(folder) as items:
            found = [(item.name, item.is_dir(follow_symlinks=False)) for item in items]
        for inner, is_folder in found:
            if is_folder:
                _remove_folder(folder, inner)
            else:
                with suppress(FileNotFoundError):
                    os.unlink(inner, dir_fd=folder)
    finally:
        os.close(folder)
    with suppress(FileNotFoundError):
        os.rmdir(name, dir_fd=parent)


def mend_latest(output_dir: Path) -> None:
    """Point a ``latest`` that leads nowhere at the newest run that was started, or remove it if there is none.

    Raises:
        StorageError: it could not be changed.
    """
    link = output_dir / LATEST
    if not link.is_symlink() or link.exists():
        return
    started = [run for run in iter_runs(output_dir) if any(True for _ in Ledger(run.events).events("run_started"))]
    if started:
        point_link(link, started[-1].root.name)
        return
    try:
        link.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(link, error, REMEDY) from error
