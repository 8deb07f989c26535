"""Conversion of a GGUF file into the model store: by one process at a time, whole or not at all."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO

from orchestrator.errors import ProgramMissingError, StorageError, UserError
from orchestrator.models.convert_gguf import EXIT_CANNOT_WRITE
from orchestrator.models.lock import REMEDY
from orchestrator.models.manifest import MARK, Manifest, hash_files, make_manifest
from orchestrator.models.meter import Meter
from orchestrator.models.room import check_room
from orchestrator.space.removal import replace_folder

CONVERTER = Path(__file__).with_name("convert_gguf.py")
# A weight of four bits becomes one of 16.
SPACE_PER_GGUF_BYTE = 4
log = logging.getLogger(__name__)


def convert(wanted: Manifest, gguf: Path, target: Path, python: str, lock: IO[str], meter: Meter) -> Manifest:
    """Make ``target`` of ``gguf`` with the interpreter ``python``; return ``wanted`` with its files.

    The caller holds ``lock``. Whatever ends it early, a signal's exception included, ends the converter too and leaves
    nothing behind.

    Raises:
        UserError: it cannot be read or converted.
        StorageError: there is no room for it, or the cache cannot be written.
    """
    partial = target.with_name(f".{target.name}.partial")
    try:
        if partial.exists():  # of a converter that was killed
            shutil.rmtree(partial)
        check_room(target.parent, gguf.stat().st_size * SPACE_PER_GGUF_BYTE, "the converted model needs up to")
        # The converter inherits the lock: should it outlive this process, nobody converts beside it.
        _run_converter([python, str(CONVERTER), str(gguf), str(partial)], target, lock.fileno())
        made = make_manifest(wanted.model, partial, meter)
        manifest = replace(made, source=wanted.source, source_sha256=wanted.source_sha256)
        manifest.write(partial / MARK)
        replace_folder(target, partial)
    except OSError as error:
        raise StorageError(target, error, REMEDY) from error
    finally:
        _discard(partial)
    return manifest


def sha256_of(gguf: Path, meter: Meter) -> str:
    """Return the SHA-256 of a GGUF file, in hexadecimal.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return hash_files([gguf], f"{gguf.name}: checksum", meter)[0]
    except OSError as error:
        raise UserError(f"the model's file {gguf} cannot be read: {error.strerror}") from error


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
