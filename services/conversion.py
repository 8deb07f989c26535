"""Conversion of a packaged GGUF file into the model cache: by one run at a time, whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from orchestrator.atomic import make_private_dir
from orchestrator.errors import ProgramMissingError, StorageError, UserError
from services.convert_gguf import EXIT_CANNOT_WRITE

CONVERTER = Path(__file__).with_name("convert_gguf.py")
DONE_MARK = ".orch-complete"
LOCK_POLL_S = 0.5
# A weight of four bits becomes one of 16.
SPACE_PER_GGUF_BYTE = 4
REMEDY = "Free some space or quota there, or name another folder in the site file's cache_dir."
log = logging.getLogger(__name__)


def is_complete(folder: Path) -> bool:
    """Return whether ``folder`` holds a model that was converted to its end."""
    return (folder / DONE_MARK).is_file()


@contextmanager
def sole_converter(target: Path, tell: Callable[[str], None]) -> Iterator[IO[str]]:
    """Hold the lock on the conversion of ``target``, and give its open file; a signal's exception ends the wait.

    Raises:
        StorageError: the lock cannot be taken, whoever else converts.
    """
    path = target.with_name(f".{target.name}.lock")
    try:
        make_private_dir(path.parent)
        lock = path.open("w")
    except StorageError as error:
        raise StorageError(error.path, error.error, REMEDY) from error
    except OSError as error:
        raise StorageError(path, error, REMEDY) from error
    with lock:
        if not _is_locked(lock, path):
            tell(f"waiting for another run that converts the model {target.name}")
            while not _is_locked(lock, path):
                time.sleep(LOCK_POLL_S)
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


def convert(gguf: Path, target: Path, python: str, lock: IO[str]) -> None:
    """Make ``target`` of ``gguf`` with the interpreter ``python``, while ``lock`` is held.

    Whatever ends it early, a signal's exception included, ends the converter too and leaves nothing behind.

    Raises:
        UserError: it cannot be read or converted.
        StorageError: there is no room for it, or the cache cannot be written.
    """
    partial, needed = target.with_name(f".{target.name}.partial"), _space_for(gguf)
    try:
        if partial.exists():  # of a converter that was killed
            shutil.rmtree(partial)
        _check_space(target.parent, needed)
        # The converter inherits the lock: should it outlive this process, nobody converts beside it.
        _run_converter([python, str(CONVERTER), str(gguf), str(partial)], target, lock.fileno())
        if target.exists():
            shutil.rmtree(target)
        (partial / DONE_MARK).touch()
        partial.rename(target)
    except OSError as error:
        raise StorageError(target, error, REMEDY) from error
    finally:
        _discard(partial)


def _space_for(gguf: Path) -> int:
    """Return how many bytes the converted model takes at most."""
    try:
        return gguf.stat().st_size * SPACE_PER_GGUF_BYTE
    except OSError as error:
        raise UserError(f"the model's file {gguf} cannot be read: {error.strerror}") from error


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        what = f"the converted model needs up to {needed / 1e6:.0f} MB, and {free / 1e6:.0f} MB are free"
        raise OSError(errno.ENOSPC, what)


def _run_converter(argv: Sequence[str], target: Path, lock_fd: int) -> None:
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            # A Ctrl-C on the terminal is for orch alone, which ends the converter by its id.
            start_new_session=True,
            pass_fds=(lock_fd,),
        )
    except OSError as error:
        raise ProgramMissingError(f"the Python interpreter '{argv[0]}' cannot be run: {error}") from error
    with process:
        try:
            stdout, stderr = process.communicate()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):  # it ended by itself
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
    if process.returncode == EXIT_CANNOT_WRITE:
        raise OSError(*json.loads(stdout.splitlines()[-1]))
    if process.returncode != 0:
        by = f" (signal {-process.returncode})" if process.returncode < 0 else ""
        raise UserError(f"the model {target.name} could not be converted{by}:\n{stderr.strip()[-2000:]}")


def _discard(folder: Path) -> None:
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        return
    except OSError as error:
        log.warning("cannot remove %s: %s", folder, error)
