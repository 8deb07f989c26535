"""One maker of an image at a time: a lock while the process lives, and a lease where the file system has no locks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.atomic import make_private_dir
from orchestrator.containers.sif import ImageError
from orchestrator.errors import LeaseLostError, RunBusyError, StorageError
from orchestrator.lease import Lease, living_owner

POLL_S = 0.5
REMEDY = "Free some space or quota there, or name another folder in container.dir or the site file's cache_dir."


@contextmanager
def sole_maker(folder: Path, tell: Callable[[str], None]) -> Iterator[Lease]:
    """Wait until nobody else makes ``folder``, and give the lease on it; a signal's exception ends the wait.

    Raises:
        StorageError: there can be no lock.
        ImageError: another one has taken over.
    """
    path = _lease_path(folder)
    lease = Lease(path)
    try:
        make_private_dir(folder.parent)
        if not _is_taken(lease):
            tell(f"waiting: {maker_words(folder) or 'somebody'} is making {folder.name}")
            while not _is_taken(lease):
                time.sleep(POLL_S)
        yield lease
    except LeaseLostError as error:
        what = (
            f"{maker_words(folder)} has taken over the making of {folder.name}, as this process was silent for too long"
        )
        raise ImageError(what) from error
    except StorageError as error:
        raise StorageError(error.path, error.error, REMEDY) from error
    finally:
        lease.give_back()


def maker_words(folder: Path) -> str:
    """Return who makes ``folder`` now, or an empty string."""
    owner = living_owner(_lease_path(folder))
    return "" if owner is None else f"process {owner.pid} on {owner.host}"


def _lease_path(folder: Path) -> Path:
    # Its lock is the one that space.caches.lock_path looks at.
    return folder.with_name(f".{folder.name}.lease")


def _is_taken(lease: Lease) -> bool:
    try:
        lease.take()
    except RunBusyError:
        return False
    return True
