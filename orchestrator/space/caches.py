"""What may go of the cache: models and containers that no run has used lately, and what a killed converter left."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from orchestrator.errors import StorageError
from orchestrator.history import is_orchestrated
from orchestrator.rundir import RunDir, iter_runs
from orchestrator.space.removal import REMEDY, delete_folder, finish_deletion, is_doomed, is_real_folder, real_folders
from orchestrator.space.selection import Item
from orchestrator.space.usage import measure
from orchestrator.space.verdict import last_activity
from orchestrator.space.wording import age_text
from orchestrator.transports import LocalTransport

DEFAULT_UNUSED_S = 30 * 86400.0
SHELVES = ("models", "containers", "hub")
# Of a hub cache, its own folders (locks, blobs that repositories share) are left to huggingface_hub.
_HUB, _REPO_PREFIX = "hub", "models--"
_WHOLE = ("ollama_models",)
BUSY = "a converter is at work on it"


class CachesHere:
    """The cache of this machine, as what could be deleted."""

    def __init__(self, cache: Path, output_dir: Path, unused_s: float) -> None:
        """Prepare; nothing is looked at yet.

        Args:
            cache: The cache.
            output_dir: Folder of the runs that use it.
            unused_s: What was used within this many seconds stays.
        """
        self._cache, self._output_dir, self._unused_s = cache.absolute(), output_dir, unused_s

    def look(self) -> list[Item]:
        """Return what would go and what stays; nothing is changed.

        Raises:
            TransportError: sizes cannot be measured.
        """
        tree = measure(LocalTransport(), str(self._cache))
        recent, items = self._recent(), []
        for path in self._entries():
            name = str(path.relative_to(self._cache))
            what = "leftover" if is_leftover(path.name) else "cache"
            age_s = time.time() - last_used(path)
            why = self._why_left(path, age_s, recent) if what == "cache" else ""
            items.append(Item(what, name, tree.sizes.get(name, 0), age_s, why_left=why or why_locked(path)))
        return items

    def _entries(self) -> Iterator[Path]:
        for shelf in SHELVES:
            for path in real_folders(self._cache / shelf):
                if shelf != _HUB or path.name.startswith(_REPO_PREFIX) or is_doomed(path.name):
                    yield path
        yield from (path for path in real_folders(self._cache) if path.name in _WHOLE or is_doomed(path.name))

    def _recent(self) -> list[RunDir]:
        """Return the runs that are under way, or were active lately."""
        oldest = time.time() - self._unused_s
        return [run for run in iter_runs(self._output_dir) if is_orchestrated(run) or last_activity(run) > oldest]

    def _why_left(self, path: Path, age_s: float, recent: Sequence[RunDir]) -> str:
        if path.lstat().st_uid != os.getuid():
            return "it belongs to another user"
        for run in recent:
            if mentions(run, path.name):
                return f"{run.root.name} uses it"
        return f"it was used {age_text(max(age_s, 0))} ago" if age_s < self._unused_s else ""

    def delete(self, item: Item) -> str:
        """Delete what ``item`` names, if it may still go; return why it stays, or an empty string.

        Raises:
            StorageError: not all of it could be deleted.
        """
        path = self._cache / item.name
        with sole_user(path) as is_ours:
            if not is_ours:
                return BUSY
            if is_doomed(path.name):
                finish_deletion(path)
                return ""
            if not is_real_folder(path):
                return "it is not there any more"
            why = "" if is_leftover(path.name) else self._why_left(path, time.time() - last_used(path), self._recent())
            if not why:
                delete_folder(path)
        return why

    def finish(self) -> None:
        """Do nothing: no link leads here."""


def is_leftover(name: str) -> bool:
    """Tell whether a folder of the cache was never finished, or is being deleted (orchestrator/models/lock.py)."""
    return is_doomed(name) or (name.startswith(".") and name.endswith(".partial"))


def last_used(path: Path) -> float:
    """Return when a file in ``path`` was last read or written, in seconds since the epoch, as the system keeps it."""
    try:
        newest = path.lstat().st_mtime
        for folder, _, files in os.walk(path):
            for name in files:
                status = os.lstat(Path(folder) / name)
                if stat.S_ISREG(status.st_mode):
                    newest = max(newest, status.st_mtime, status.st_atime)
    except OSError:
        return time.time()  # somebody is changing it
    return newest


def mentions(run: RunDir, name: str) -> bool:
    """Tell whether a run's recipe or scripts name something in the cache; what cannot be read counts as naming it.

    A repository of a hub cache is named there as its model is.
    """
    if name.startswith(_REPO_PREFIX):
        name = name.removeprefix(_REPO_PREFIX).replace("--", "/", 1)
    spellings = [re.escape(spelling.encode()) for spelling in (name, json.dumps(name)[1:-1])]
    pattern = re.compile(rb"(?<!\w)(" + b"|".join(spellings) + rb")(?!\w)")
    try:
        paths = [run.recipe, *run.script("x").parent.iterdir()]
        texts = (path.read_bytes() for path in paths if path.is_file())
        return any(map(pattern.search, texts))
    except OSError:
        return True


def lock_path(path: Path) -> Path:
    """Return the lock of whoever makes ``path``, by the convention of orchestrator/models/lock.py."""
    name = path.name
    if name.startswith(".") and name.endswith(".partial"):
        name = name[1:].removesuffix(".partial")
    elif is_doomed(name):
        name = name.split("-", 2)[2]
    return path.with_name(f".{name}.lock")


def why_locked(path: Path) -> str:
    """Return whether a converter holds the lock now, in words, or an empty string; makes no file."""
    try:
        descriptor = os.open(lock_path(path), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"its lock cannot be looked at: {error.strerror}"
    try:
        return "" if _is_free(descriptor) else BUSY
    finally:
        os.close(descriptor)


@contextmanager
def sole_user(path: Path) -> Iterator[bool]:
    """Hold the lock on ``path`` in the cache; give whether it is held.

    Raises:
        StorageError: it cannot be made.
    """
    lock = lock_path(path)
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageError(lock, error, REMEDY) from error
    try:
        yield _is_free(descriptor)
    finally:
        # The file stays: whoever waits for the lock waits for this very file.
        os.close(descriptor)


def _is_free(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in {errno.EWOULDBLOCK, errno.EACCES, errno.ENOLCK, errno.ENOTSUP}:
            return False
        raise
    return True
