"""Copies by rsync, over a connection that is there already."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import NoConnectionError, TransferError
from orchestrator.transports.base import Transfer, TransferOptions
from orchestrator.transports.copying import log, remedy_for

TICK_S = 1.0
PARTIAL_DIR = ".orch-partial"
_CLEAN_SHELL = Path(__file__).with_name("clean_shell.py")
_UNSAFE_LINK = b"ignoring unsafe symlink"
# rsync(1), EXIT VALUES: error in socket I/O, in the protocol data stream, a time-out; 255 is ssh's own.
_CONNECTION_CODES = frozenset({10, 30, 35, 255})


@dataclass(frozen=True)
class Rsync:
    """rsync between this machine and another.

    Attributes:
        host: The other machine for people.
        ssh_argv: ssh with all its words, host included.
        shell_words: The remote shell, such as `sh -c`.
        tick: Called every second while a copy lasts.
    """

    host: str
    ssh_argv: tuple[str, ...]
    shell_words: str
    tick: Callable[[], None]

    def push(self, local: Path, remote: str, options: TransferOptions) -> Transfer:
        """Copy ``local`` to ``remote``, both without or both with a final slash.

        Raises:
            TransferError: with the words of both ends.
            NoConnectionError: the connection was lost.
        """
        slash = "/" if local.is_dir() else ""
        return self._copy([f"{local}{slash}", f"remote:{_plain(remote)}{slash}"], options)

    def pull(self, remote: str, local: Path, is_folder: bool, options: TransferOptions) -> Transfer:
        """Copy ``remote`` to ``local``; see push."""
        slash = "/" if is_folder else ""
        return self._copy([f"remote:{_plain(remote)}{slash}", f"{local}{slash}"], options)

    def argv(self, ends: Sequence[str], options: TransferOptions) -> list[str]:
        """Return rsync's words. ``--protect-args`` keeps paths away from the remote shell."""
        shell = " ".join(_shell_word(word) for word in (sys.executable, "-I", "-S", str(_CLEAN_SHELL)))
        argv = [
            "rsync",
            "-rlptv",
            "--protect-args",
            "--safe-links",
            "--8-bit-output",
            "--out-format=@%i %l %n",
            "-e",
            shell,
        ]
        argv += [f"--partial-dir={PARTIAL_DIR}", f"--timeout={options.stall_timeout_s}"]
        argv += ["--checksum"] if options.is_checksummed else []
        argv += ["--compress"] if options.is_compressed else []
        argv += ["--dry-run"] if options.is_dry_run else []
        argv += [f"--exclude={pattern}" for pattern in options.excludes]
        if options.bandwidth_limit_kib_per_s is not None:
            argv.append(f"--bwlimit={options.bandwidth_limit_kib_per_s}")
        return [*argv, "--", *ends]

    def _copy(self, ends: Sequence[str], options: TransferOptions) -> Transfer:
        settings = json.dumps({"ssh": self.ssh_argv, "shell": self.shell_words})
        process = subprocess.Popen(
            self.argv(ends, options),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "ORCH_CLEAN_SHELL": settings, "LC_ALL": "C.UTF-8"},
            start_new_session=True,
        )
        stdout, stderr = wait_or_end(process, options.timeout_s, self.tick)
        said = stderr.decode(errors="replace").strip()
        if process.returncode < 0:
            raise TransferError(
                self.host, f"the copy was ended after {options.timeout_s:g} s: {' -> '.join(ends)}\n{said}"
            )
        if process.returncode != 0:
            what = f"rsync ended with exit code {process.returncode}: {' -> '.join(ends)}\n{said[-4000:]}"
            if process.returncode in _CONNECTION_CODES and not remedy_for(said):
                raise NoConnectionError(self.host, what, "What was copied so far is kept; the next copy goes on there.")
            raise TransferError(self.host, what, remedy_for(said))
        return _parsed(stdout)


def wait_or_end(
    process: subprocess.Popen[bytes], timeout_s: float, tick: Callable[[], None], stdin: bytes | None = None
) -> tuple[bytes, bytes]:
    """Return both streams; after ``timeout_s`` seconds the process group is killed and the exit code negative.

    Args:
        process: A session of its own.
        timeout_s: Its longest duration.
        tick: Called every second meanwhile; what it raises ends the process.
        stdin: What it reads.
    """
    deadline = time.monotonic() + timeout_s
    with process:
        try:
            while True:
                left_s = deadline - time.monotonic()
                try:
                    return process.communicate(stdin, timeout=min(TICK_S, max(0.0, left_s)))
                except subprocess.TimeoutExpired:
                    if left_s <= 0:
                        raise
                stdin = None  # communicate() has kept it
                tick()
        except BaseException as error:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            return process.communicate()


def _parsed(stdout: bytes) -> Transfer:
    files, n_bytes = [], 0
    for line in stdout.split(b"\n"):
        # rsync(1), --itemize-changes: `<` sent or `>` received, then `f` for a file.
        if line.startswith((b"@<f", b"@>f")):
            _, size, name = line.split(b" ", 2)
            files.append(os.fsdecode(name))
            n_bytes += int(size)
        elif line.startswith(_UNSAFE_LINK):
            log.warning("rsync: %s: it leads out of the tree and is not copied", os.fsdecode(line))
    return Transfer(tuple(files), n_bytes, "rsync")


def _plain(remote: str) -> str:
    # With a slash in front of any dash or tilde, it is a path and nothing else.
    return remote.rstrip("/") if remote.startswith("/") and remote != "/" else f"./{remote}".rstrip("/")


def _shell_word(word: str) -> str:
    # rsync(1), --rsh: words in quotes, in which the quote itself is doubled.
    return "'" + word.replace("'", "''") + "'"
