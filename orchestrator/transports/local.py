"""This machine: commands are child processes that a Ctrl-C on the terminal does not reach."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from typing import BinaryIO

from orchestrator.errors import RemoteFileError
from orchestrator.transports.base import (
    DEFAULT_TRANSFER,
    NO_STARTS,
    RECORD_LIMIT_BYTES,
    Address,
    Answer,
    Fault,
    FileChunk,
    FileContent,
    Transfer,
    TransferOptions,
    absolute,
    checked_command,
    decoded_text,
    scrubbed_environment,
)
from orchestrator.transports.copying import copy, remedy_for

_ABSENT = (FileNotFoundError, NotADirectoryError)


class LocalTransport:
    """Runs argv on this machine. Forwards are the addresses themselves."""

    def __init__(self) -> None:
        self.while_copying: Callable[[], None] = lambda: None

    @property
    def host(self) -> str:
        return "this machine"

    def open(self, interactive: bool = False) -> None:
        """Do nothing: this machine is always there."""

    def close(self) -> None:
        """Do nothing."""

    def run(
        self,
        argv: Sequence[str],
        timeout_s: float,
        stdin: bytes | None = None,
        cwd: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Answer:
        """Return the answer of ``argv``; a missing program answers 127 as a shell would.

        The command is a session of its own, so that Ctrl-C never ends a submission half way.
        """
        words = checked_command(argv, environment)
        try:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**scrubbed_environment(os.environ), **(environment or {})},
                cwd=None if cwd is None else Path.home() / cwd,
                start_new_session=True,
            )
        except OSError as error:
            return Answer(words, 127, "", f"{error.filename or words[0]}: {error.strerror}")
        with process:
            fault = None
            try:
                stdout, stderr = process.communicate(stdin, timeout=timeout_s)
            except BaseException as error:
                # With all its children: a wrapper's sbatch must not submit after it was looked for.
                os.killpg(process.pid, signal.SIGKILL)
                if not isinstance(error, subprocess.TimeoutExpired):
                    raise
                stdout, stderr = process.communicate()
                fault = Fault.TIMED_OUT
        returncode = None if fault else process.returncode
        return Answer(words, returncode, stdout.decode(errors="replace"), stderr.decode(errors="replace"), fault)

    def push(self, local: Path, remote: str, options: TransferOptions = DEFAULT_TRANSFER) -> Transfer:
        return self._copy(local, Path.home() / remote, options)

    def pull(self, remote: str, local: Path, options: TransferOptions = DEFAULT_TRANSFER) -> Transfer:
        return self._copy(Path.home() / remote, local, options)

    def _copy(self, source: Path, target: Path, options: TransferOptions) -> Transfer:
        if absolute(source) == absolute(target):
            return Transfer((), 0, "copy")
        return copy(absolute(source), absolute(target), options, self.host, self.while_copying)

    def read_many(
        self,
        paths: Sequence[str],
        limit_bytes: int = RECORD_LIMIT_BYTES,
        timeout_s: float = 30.0,
        starts: Mapping[str, int] = NO_STARTS,
    ) -> dict[str, FileContent]:
        return {path: _read(Path.home() / path, limit_bytes, starts.get(path)) for path in paths}

    def read_text(self, path: str, limit_bytes: int = RECORD_LIMIT_BYTES, timeout_s: float = 30.0) -> str | None:
        return decoded_text(self.host, path, _read(Path.home() / path, limit_bytes))

    def read_from(self, path: str, offset: int, limit_bytes: int, timeout_s: float = 30.0) -> FileChunk | None:
        try:
            with _open_regular(Path.home() / path) as file:
                size = os.fstat(file.fileno()).st_size
                file.seek(offset)
                data = file.read(limit_bytes)
                # It may have grown since it was looked at.
                end = offset + len(data)
                return FileChunk(data, end, max(size, end) if data else size)
        except _ABSENT:
            return None
        except OSError as error:
            raise RemoteFileError(self.host, path, error.strerror or str(error)) from error

    def write(self, path: str, data: bytes, mode: int = 0o600, timeout_s: float = 60.0) -> None:
        target = Path.home() / path
        temporary = target.with_name(f".{token_hex(6)}.tmp")
        try:
            if target.is_dir():
                raise RemoteFileError(self.host, path, "is a directory")
            try:
                with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.chmod(mode)
                temporary.replace(target)
            finally:
                with suppress(FileNotFoundError, NotADirectoryError):
                    temporary.unlink()
        except OSError as error:
            raise RemoteFileError(self.host, path, str(error), remedy_for(str(error))) from error

    def forward(self, host: str, port: int) -> Address:
        return Address(host, port)

    def unforward(self, host: str, port: int) -> None:
        """Do nothing."""

    def reverse(self, host: str, port: int) -> Address:
        return Address(host, port)

    def unreverse(self, host: str, port: int) -> None:
        """Do nothing."""


def _open_regular(path: Path) -> BinaryIO:
    """Open a file for reading.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    # A pipe in place of a record must not be waited for.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file")
    return os.fdopen(descriptor, "rb")


def _read(path: Path, limit_bytes: int, start: int | None = None) -> FileContent:
    try:
        with _open_regular(path) as file:
            if start is not None:
                file.seek(start)
                return FileContent(file.read(limit_bytes))
            data = file.read(limit_bytes + 1)
    except _ABSENT:
        return FileContent()
    except OSError as error:
        return FileContent(problem=error.strerror or str(error))
    return too_large(limit_bytes) if len(data) > limit_bytes else FileContent(data)


def too_large(limit_bytes: int) -> FileContent:
    """Return what is said of a file above the limit."""
    return FileContent(problem=f"larger than {limit_bytes} bytes")
