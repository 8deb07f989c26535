"""Whether there is room for a model: free space, and quotas where a program tells them."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from orchestrator.atomic import make_private_dir
from orchestrator.errors import StorageError
from orchestrator.models.lock import REMEDY
from orchestrator.sitecheck.machine import SPACE, parse_quotas
from orchestrator.space.wording import size_text
from orchestrator.transports import LocalTransport

ASK_S = 60.0


def check_room(folder: Path, needed: int, what: str) -> None:
    """Look whether ``needed`` bytes can be written into ``folder``, which is made if it is not there.

    Args:
        folder: Where.
        needed: How much, in bytes.
        what: That needs it, as a sentence begins: ``org/model needs``.

    Raises:
        StorageError: space or a quota is short; names both sizes.
    """
    try:
        make_private_dir(folder)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise StorageError(folder, error, REMEDY) from error
    except StorageError as error:
        raise StorageError(error.path, error.error, REMEDY) from error
    words = f"{what} {size_text(needed)}, and {size_text(free)} are free"
    if free < needed:
        raise StorageError(folder, OSError(errno.ENOSPC, words), REMEDY)
    answer = LocalTransport().run(["sh", "-c", SPACE, "sh", str(folder)], ASK_S)
    tight = [quota for quota in parse_quotas(answer.stdout.splitlines()) if quota.left_bytes < needed]
    if tight:
        raise StorageError(folder, OSError(errno.EDQUOT, f"{words}, but {'; '.join(map(str, tight))}"), REMEDY)
