"""What a transport is: the way to the machine where the scheduler's commands and the run's files are."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, Protocol

from orchestrator.errors import RemoteFileError

RECORD_LIMIT_BYTES = 1 << 20
TRANSFER_TIMEOUT_S = 3600.0
NO_STARTS: Mapping[str, int] = MappingProxyType({})
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)

# A job submitted from inside a job inherits its variables, and SBATCH_* would override the script's directives.
# What says how to reach the controller or the server stays.
_SCRUBBED_PREFIXES = (
    "SLURM_",
    "ORCH_STEP_",
    "SLURMD_",
    "SBATCH_",
    "SQUEUE_",
    "SCANCEL_",
    "SINFO_",
    "PBS_",
    "PMI_",
    "ORCH_JOB_ID",
    "ORCH_END_TIME",
    "ORCH_OWN_JOB",
)
_KEPT = frozenset({"SLURM_CONF", "SLURM_JWT", "PBS_CONF_FILE", "PBS_EXEC", "PBS_SERVER", "PBS_DEFAULT"})


class Fault(StrEnum):
    """Why a command has no exit code."""

    TIMED_OUT = "timed out"
    """It ran too long and was ended, with all processes of its group."""
    NOT_SENT = "not sent"
    """There was no connection. It certainly did not run and never will."""
    CUT_OFF = "cut off"
    """The connection was lost after it was sent: it may have run, may be running, and ends within its time limit."""


@dataclass(frozen=True)
class Answer:
    """What a command answered.

    Attributes:
        returncode: Exit code, or None if it was ended because it did not answer in time, or could not be asked. A
            command that was killed by a signal has -N on this machine and 128 + N over SSH.
        stdout: Its output; bytes that are not UTF-8 are replaced.
        stderr: The same; the transport's own words if there was no connection.
        fault: Why there is no exit code; None if there is one.
    """

    argv: tuple[str, ...]
    returncode: int | None
    stdout: str
    stderr: str
    fault: Fault | None = None


class Address(NamedTuple):
    """Where a service is reached from this machine."""

    host: str
    port: int


@dataclass(frozen=True)
class FileContent:
    """One file of many.

    Attributes:
        data: What is in it; None if it is not there or cannot be used.
        problem: Why it cannot be used (too large, no permission, no regular file); None for a missing file.
    """

    data: bytes | None = None
    problem: str | None = None


@dataclass(frozen=True)
class FileChunk:
    """A part of a growing file.

    Attributes:
        data: The bytes from the offset asked for; empty if there are no more yet.
        next_offset: Where to go on.
        size: Size of the whole file in bytes; less than the offset asked for means that it was cut or replaced.
    """

    data: bytes
    next_offset: int
    size: int


@dataclass(frozen=True)
class TransferOptions:
    """How files are copied.

    Attributes:
        excludes: rsync's patterns without `**`: a name (`*.pyc`), or a path from the top of the tree (`/output`);
            a final slash means folders only.
        bandwidth_limit_kib_per_s: Upper limit in KiB/s; None for none.
        is_compressed: Compress on the way. It helps text and raw data on a slow line, not models, images or archives;
            sftp and copies on this machine do not compress.
        is_dry_run: Only list what would be copied.
        is_checksummed: Compare files by content. Otherwise same size and time count as same, which is quicker for
            large models. What is transferred is verified by rsync in either case.
        timeout_s: Longest duration of the whole copy, in seconds.
        stall_timeout_s: Longest pause without any progress, in seconds.
    """

    excludes: tuple[str, ...] = ()
    bandwidth_limit_kib_per_s: int | None = None
    is_compressed: bool = False
    is_dry_run: bool = False
    is_checksummed: bool = True
    timeout_s: float = TRANSFER_TIMEOUT_S
    stall_timeout_s: int = 120

    def __post_init__(self) -> None:
        for pattern in self.excludes:
            # rsync reads `!` and a leading `+ ` or `- ` as rules (rsync(1), FILTER RULES).
            if not pattern.strip("/") or "**" in pattern or pattern == "!" or pattern.startswith(("+ ", "- ")):
                raise ValueError(f"{pattern!r} is no pattern of file names; `**` is not supported")


DEFAULT_TRANSFER = TransferOptions()


@dataclass(frozen=True)
class Transfer:
    """What was copied, or would be in a dry run.

    Attributes:
        files: Paths below the top of the tree, or the name of the single file, in the order of the copy.
        n_bytes: Their size.
        method: `rsync`, `sftp` or `copy`.
    """

    files: tuple[str, ...]
    n_bytes: int
    method: str


class Transport(Protocol):
    """The way to one machine.

    `run` never raises for trouble on the way: it answers without an exit code, as a query that a tracker repeats.
    All others raise TransportError or one of its kinds. Paths over there are absolute, or relative to the home
    directory; `~` and wildcards mean themselves.
    """

    while_copying: Callable[[], None]
    """Called again and again, at least every second, while push or pull lasts; what it raises ends the copy."""

    @property
    def host(self) -> str:
        """The machine's name for people."""

    def open(self, interactive: bool = False) -> None:
        """Connect; nothing happens if there is a connection.

        Args:
            interactive: May ask for passwords and second factors on the terminal.

        Raises:
            NoConnectionError: it cannot be reached.
            HostKeyError: its host key is unknown or changed.
            AuthenticationError: it wants more than can be given without asking; names the command to type.
        """

    def close(self) -> None:
        """Undo the forwards, and end the connection if it was made here."""

    def run(
        self,
        argv: Sequence[str],
        timeout_s: float,
        stdin: bytes | None = None,
        cwd: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Answer:
        """Return the answer of ``argv``; a missing program or working directory answers 127 as a shell would.

        Args:
            argv: Program and arguments; each arrives unchanged.
            timeout_s: After this many seconds the command's process group is killed.
            stdin: What it reads; nothing if None.
            cwd: Working directory.
            environment: Variables on top of those of the machine. They are never part of any argv.

        Raises:
            ValueError: a word with a NUL byte, an empty argv, a program with `=`, or a name that no variable can have.
        """

    def push(self, local: Path, remote: str, options: TransferOptions = DEFAULT_TRANSFER) -> Transfer:
        """Copy a file or a folder there; ``remote`` is the copy's own path, and missing folders above it are made.

        Each file is replaced atomically; permissions and times are kept; nothing is deleted. Symbolic links are
        copied as links, those that lead out of the tree are left out with a log line.

        Raises:
            TransferError: with the words of both ends.
        """

    def pull(self, remote: str, local: Path, options: TransferOptions = DEFAULT_TRANSFER) -> Transfer:
        """Copy a file or a folder here; see push."""

    def read_many(
        self,
        paths: Sequence[str],
        limit_bytes: int = RECORD_LIMIT_BYTES,
        timeout_s: float = 30.0,
        starts: Mapping[str, int] = NO_STARTS,
    ) -> dict[str, FileContent]:
        """Return small files, and parts of growing ones, by path; all with one command.

        Args:
            paths: Their paths.
            limit_bytes: Larger ones are a problem of their own and are not read.
            timeout_s: For all of them, in seconds.
            starts: Growing files among them, and from which byte on each is read. Of these ``limit_bytes`` bytes are
                returned at most, none if the file ends before; what a look costs depends on them alone.
        """

    def read_text(self, path: str, limit_bytes: int = RECORD_LIMIT_BYTES, timeout_s: float = 30.0) -> str | None:
        """Return a small UTF-8 file, or None if it is not there.

        Raises:
            RemoteFileError: it is too large, no UTF-8 text, no regular file, or may not be read.
        """

    def read_from(self, path: str, offset: int, limit_bytes: int, timeout_s: float = 30.0) -> FileChunk | None:
        """Return at most ``limit_bytes`` bytes of a growing file from ``offset``, or None if it is not there."""

    def write(self, path: str, data: bytes, mode: int = 0o600, timeout_s: float = 60.0) -> None:
        """Replace a file atomically; its folder must be there.

        Raises:
            RemoteFileError: no space, no permission, no such folder; what was there before is kept.
        """

    def forward(self, host: str, port: int) -> Address:
        """Return where ``host:port``, as that machine sees it, is reached from here; the same answer every time."""

    def unforward(self, host: str, port: int) -> None:
        """End a forward; nothing happens if there is none."""

    def reverse(self, host: str, port: int) -> Address:
        """Return where ``host:port``, as this machine sees it, is reached from that machine."""

    def unreverse(self, host: str, port: int) -> None:
        """End a reverse forward; nothing happens if there is none."""


def scrubbed_environment(env: Mapping[str, str]) -> dict[str, str]:
    """Return ``env`` without the variables of a surrounding batch job."""
    return {name: value for name, value in env.items() if name in _KEPT or not name.startswith(_SCRUBBED_PREFIXES)}


def checked_command(argv: Sequence[str], environment: Mapping[str, str] | None) -> tuple[str, ...]:
    """Return ``argv`` as a tuple.

    Raises:
        ValueError: no shell or kernel can pass it on.
    """
    words = tuple(argv)
    if not words or not words[0] or ("=" in words[0] and "/" not in words[0]):
        raise ValueError(f"no program to run: {words!r}")
    for word in (*words, *(environment or {}).values()):
        if "\0" in word:
            raise ValueError("a NUL byte cannot be part of an argument or a variable")
    for name in environment or {}:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} cannot be the name of a variable")
    return words


def decoded_text(host: str, path: str, content: FileContent) -> str | None:
    """Return the text of a file that was read, or None if it is not there.

    Raises:
        RemoteFileError: it cannot be used.
    """
    if content.problem is not None:
        raise RemoteFileError(host, path, content.problem)
    try:
        return None if content.data is None else content.data.decode()
    except UnicodeDecodeError as error:
        raise RemoteFileError(host, path, f"no UTF-8 text: {error}") from error


def absolute(path: Path) -> Path:
    """Return ``path`` made absolute, so that no program takes it for an option or another machine's path."""
    return Path(os.path.abspath(path))  # noqa: PTH100 — Path.absolute keeps `..`, and resolve follows links
