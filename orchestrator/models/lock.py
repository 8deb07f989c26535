"""One maker of a model at a time, from whatever process; the others wait, and say for whom."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from orchestrator.atomic import make_private_dir
from orchestrator.environment.hold import holder_record, holder_words
from orchestrator.errors import StorageError
from orchestrator.lease import Owner

POLL_S = 0.5
REMEDY = "Free some space or quota there, or name another folder in the site file's cache_dir."


@contextmanager
def sole_maker(target: Path, tell: Callable[[str], None]) -> Iterator[IO[str]]:
    """Hold the lock on making ``target``, and give its open file; a signal's exception ends the wait.

    Raises:
        StorageError: the lock cannot be taken, whoever else has it.
    """
    path = target.with_name(f".{target.name}.lock")
    try:
        make_private_dir(path.parent)
        lock = path.open("a+")
    except StorageError as error:
        raise StorageError(error.path, error.error, REMEDY) from error
    except OSError as error:
        raise StorageError(path, error, REMEDY) from error
    with lock:
        if not _is_locked(lock, path):
            lock.seek(0)
            tell(f"waiting for {holder_words(lock.read())}, who is making {target}")
            while not _is_locked(lock, path):
                time.sleep(POLL_S)
        try:
            lock.seek(0)
            lock.truncate()
            lock.write(holder_record(Owner.of_this_process()))
            lock.flush()
        except OSError as error:
            raise StorageError(path, error, REMEDY) from error
        yield lock


def _is_locked(lock: IO[str], path: Path) -> bool:
    """Try to take the lock; return whether it is ours now."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise StorageError(path, error, REMEDY) from error
    return True
