"""A machine reached over OpenSSH. One login serves: everything goes over its master connection (master.py)."""

from __future__ import annotations

import logging
import math
import posixpath
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from secrets import token_hex
from types import TracebackType
from typing import Self

from orchestrator.atomic import make_private_dir
from orchestrator.errors import (
    AuthenticationError,
    HostKeyError,
    NoConnectionError,
    RemoteFileError,
    TransferError,
    TransportError,
)
from orchestrator.transports import remote_files
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
)
from orchestrator.transports.copying import remedy_for
from orchestrator.transports.forwards import Forwards
from orchestrator.transports.master import Master
from orchestrator.transports.remote_command import RemoteCommand, login_noise_problem
from orchestrator.transports.rsync import Rsync
from orchestrator.transports.session import SessionEnd, Waits, run_session
from orchestrator.transports.sftp import LIMITS, Sftp
from orchestrator.transports.ssh_spec import SshSpec

__all__ = ["SshSpec", "SshTransport"]

log = logging.getLogger(__name__)
# What will not mend itself is not tried again and again: failed logins lock accounts.
_REFUSED_PAUSE_S = 300.0
_PREPARE_TIMEOUT_S = 30.0


class SshTransport:
    """Runs argv on another machine; may be used from several threads."""

    def __init__(self, spec: SshSpec) -> None:
        """Prepare; nothing is connected before it is needed.

        Raises:
            TransportError: there is no private place for the control socket.
        """
        self.spec = spec
        self.while_copying: Callable[[], None] = lambda: None
        self._master = Master(spec)
        self._forwards = Forwards(spec.label, self._master)
        self._lock = threading.RLock()
        self._was_connected = False
        self._seen_master: tuple[int, int] | None = None
        self._failure: TransportError | None = None
        self._next_attempt = 0.0
        self._pause_s = spec.retry_first_s

    @property
    def host(self) -> str:
        return self.spec.label

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def open(self, interactive: bool = False) -> None:
        with self._lock:
            if interactive:
                self._next_attempt = 0.0
            self._connect(interactive)

    def close(self) -> None:
        """Undo the forwards, and end the master if this object started it; a user's own stays."""
        with self._lock:
            self._forwards.close()
            self._master.stop()
            self._was_connected = False

    def _connect(self, interactive: bool = False) -> None:
        """Make sure of a master.

        Raises:
            TransportError: as Transport.open says. Within the pause after a failed attempt, that attempt's error.
        """
        with self._lock:
            if not self._master.is_alive():
                self._start_master(interactive)
            self._failure, self._pause_s = None, self.spec.retry_first_s
            self._next_attempt = 0.0
            # Another process may have made the new connection.
            now = self._master.identity()
            if now != self._seen_master:
                self._forwards.forget_connection()
                self._seen_master = now
            self._forwards.restore()

    def _start_master(self, interactive: bool) -> None:
        left_s = self._next_attempt - time.monotonic()
        if self._failure is not None and left_s > 0:
            raise self._failure.with_traceback(None)
        if self._was_connected:
            log.info("%s: the connection was lost; connecting again", self.host)
        try:
            self._master.start(interactive)
        except TransportError as error:
            is_lasting = isinstance(error, AuthenticationError | HostKeyError)
            pause_s = _REFUSED_PAUSE_S if is_lasting else self._pause_s
            self._pause_s = min(self._pause_s * 2, self.spec.retry_longest_s)
            self._failure, self._next_attempt = error, time.monotonic() + pause_s
            raise
        if self._was_connected:
            log.info("%s: connected again", self.host)
        self._was_connected = True

    def run(
        self,
        argv: Sequence[str],
        timeout_s: float,
        stdin: bytes | None = None,
        cwd: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Answer:
        """Return the answer of ``argv``.

        The time limit holds over there, in whole seconds: `timeout` kills the command's process group when it is up,
        whether or not the connection still lives. Only processes that left the group (setsid) go on.
        """
        words = checked_command(argv, environment)
        try:
            end = self._exchange(words, timeout_s, stdin, cwd, environment)
        except TransportError as error:
            return Answer(words, None, "", str(error), Fault.NOT_SENT)
        outcome = end.outcome
        stdout, stderr = (stream.decode(errors="replace") for stream in (outcome.stdout, outcome.stderr))
        fault = self._fault(end)
        if fault in {Fault.NOT_SENT, Fault.CUT_OFF}:
            return Answer(words, None, stdout if outcome.said_hello else "", self._explained(end, stderr), fault)
        return Answer(words, outcome.returncode, stdout, stderr, fault)

    def _exchange(
        self,
        argv: tuple[str, ...],
        timeout_s: float,
        stdin: bytes | None = None,
        cwd: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> SessionEnd:
        self._connect()
        command = RemoteCommand(
            argv, timeout_s, self.spec.slack_s / 2, cwd, environment or {}, has_stdin=stdin is not None
        )
        waits = Waits(self.spec.connect_timeout_s, max(1, math.ceil(timeout_s)) + self.spec.slack_s)
        line = command.login_line(self.spec.reads_profile)
        return run_session(self._ssh_argv(), command, line, stdin or b"", waits)

    def _ssh_argv(self) -> list[str]:
        return [*self._master.client_argv(), "--", self.spec.host]

    @staticmethod
    def _fault(end: SessionEnd) -> Fault | None:
        outcome = end.outcome
        if not end.was_sent or outcome.was_too_late or outcome.problem:
            return Fault.NOT_SENT
        if not outcome.is_complete:
            return Fault.CUT_OFF
        return Fault.TIMED_OUT if outcome.returncode is None else None

    def _explained(self, end: SessionEnd, stderr: str) -> str:
        outcome = end.outcome
        if outcome.problem:
            return f"{self.host}: {outcome.problem}"
        if outcome.was_too_late:
            return f"{self.host}: the connection was too slow; the command was not started"
        if end.was_sent:
            return f"{self.host}: the connection was lost while the command ran\n{stderr}".rstrip()
        if end.ssh_code is None:
            return f"{self.host}: no connection: no answer within {self.spec.connect_timeout_s:g} s"
        if end.ssh_code == 255:
            return f"{self.host}: no connection\n{stderr}".rstrip()
        return f"{self.host}: {login_noise_problem(outcome, ('sh', '-c'))}"

    def _ask(self, argv: Sequence[str], timeout_s: float, stdin: bytes | None = None, key: str = "") -> SessionEnd:
        """Return the whole answer of one of our own commands.

        Raises:
            NoConnectionError: there is none.
        """
        end = self._exchange(tuple(argv), timeout_s, stdin, None, {"orch_boundary": key} if key else None)
        if end.outcome.returncode is None:
            fault = self._fault(end)
            what = f"no answer within {timeout_s:g} s" if fault == Fault.TIMED_OUT else ""
            stderr = end.outcome.stderr.decode(errors="replace")
            raise NoConnectionError(self.host, what or self._explained(end, stderr).removeprefix(f"{self.host}: "))
        return end

    def read_many(
        self,
        paths: Sequence[str],
        limit_bytes: int = RECORD_LIMIT_BYTES,
        timeout_s: float = 30.0,
        starts: Mapping[str, int] = NO_STARTS,
    ) -> dict[str, FileContent]:
        if not paths:
            return {}
        key = token_hex(16)
        paths = list(dict.fromkeys(paths))
        end = self._ask(remote_files.read_argv(paths, limit_bytes, starts), timeout_s, key=key)
        contents = remote_files.parse_read(end.outcome.stdout, key, paths, limit_bytes, starts)
        if end.outcome.returncode != 0 or len(contents) != len(paths):
            raise TransportError(self.host, f"cannot read files: {end.outcome.stderr.decode(errors='replace').strip()}")
        return contents

    def read_text(self, path: str, limit_bytes: int = RECORD_LIMIT_BYTES, timeout_s: float = 30.0) -> str | None:
        return decoded_text(self.host, path, self.read_many([path], limit_bytes, timeout_s)[path])

    def read_from(self, path: str, offset: int, limit_bytes: int, timeout_s: float = 30.0) -> FileChunk | None:
        outcome = self._ask(remote_files.tail_argv(path, offset, limit_bytes), timeout_s).outcome
        if outcome.returncode == remote_files.ABSENT:
            return None
        if outcome.returncode != 0:
            raise self._file_error(path, outcome.stderr)
        return remote_files.parse_tail(outcome.stdout, offset)

    def write(self, path: str, data: bytes, mode: int = 0o600, timeout_s: float = 60.0) -> None:
        outcome = self._ask(remote_files.write_argv(path, len(data), mode), timeout_s, stdin=data).outcome
        if outcome.returncode != 0:
            raise self._file_error(path, outcome.stderr)

    def _file_error(self, path: str, stderr: bytes) -> RemoteFileError:
        said = stderr.decode(errors="replace").strip()
        return RemoteFileError(self.host, path, said, remedy_for(said))

    def push(self, local: Path, remote: str, options: TransferOptions = DEFAULT_TRANSFER) -> Transfer:
        source = absolute(local)
        if not source.exists():
            raise TransferError(
                self.host, f"cannot copy {source}: No such file or directory", remedy_for("No such file")
            )
        kind, has_rsync = self._look(remote)
        if kind == "folder" and not source.is_dir():
            raise TransferError(self.host, f"cannot copy {source}: {remote} is a directory there")
        parent = remote if source.is_dir() else posixpath.dirname(remote)
        if not options.is_dry_run and parent:
            self._make_folder(parent)
        if has_rsync:
            return self._rsync().push(source, remote, options)
        return self._sftp(options).push(source, remote, options)

    def pull(self, remote: str, local: Path, options: TransferOptions = DEFAULT_TRANSFER) -> Transfer:
        target = absolute(local)
        kind, has_rsync = self._look(remote)
        if kind == "absent":
            raise TransferError(
                self.host, f"cannot copy {remote}: No such file or directory", remedy_for("No such file")
            )
        if kind == "file" and target.is_dir():
            raise TransferError(self.host, f"cannot copy {remote}: {target} is a directory here")
        if not options.is_dry_run:
            make_private_dir(target if kind == "folder" else target.parent)
        if has_rsync:
            return self._rsync().pull(remote, target, kind == "folder", options)
        return self._sftp(options).pull(remote, target, kind == "folder", options)

    def _look(self, remote: str) -> tuple[str, bool]:
        """Return what ``remote`` is (absent, file, folder), and whether both ends have rsync."""
        outcome = self._ask(remote_files.look_argv(remote), _PREPARE_TIMEOUT_S).outcome
        kind, rsync = outcome.stdout.decode().split()
        missing = [self.host] if rsync != "rsync" else []
        missing += ["this machine"] if shutil.which("rsync") is None else []
        if missing:
            log.warning("rsync is not installed on %s: copying by sftp instead; %s", " and ".join(missing), LIMITS)
        return kind, not missing

    def _make_folder(self, path: str) -> None:
        argv = ["sh", "-c", 'umask 077; mkdir -p -- "$1"', "sh", path]
        outcome = self._ask(argv, _PREPARE_TIMEOUT_S).outcome
        if outcome.returncode != 0:
            said = outcome.stderr.decode(errors="replace").strip()
            raise TransferError(self.host, f"cannot make {path}: {said}", remedy_for(said))

    def _rsync(self) -> Rsync:
        shell = "sh -l -c" if self.spec.reads_profile else "sh -c"
        return Rsync(self.host, tuple(self._ssh_argv()), shell, self.while_copying)

    def _sftp(self, options: TransferOptions) -> Sftp:
        words = ["-F", "/dev/null", "-o", f"ControlPath={self._master.path}", "-o", "ControlMaster=no"]
        words += ["-o", "ProxyCommand=false", "-o", "BatchMode=yes", "--", self.spec.host]
        return Sftp(self.host, tuple(words), lambda argv: self.run(argv, options.timeout_s), self.while_copying)

    def forward(self, host: str, port: int) -> Address:
        with self._lock:
            self._connect()
            return self._forwards.local(host, port)

    def unforward(self, host: str, port: int) -> None:
        with self._lock:
            self._forwards.end_local(host, port)

    def reverse(self, host: str, port: int) -> Address:
        with self._lock:
            self._connect()
            return self._forwards.remote(host, port)

    def unreverse(self, host: str, port: int) -> None:
        with self._lock:
            self._forwards.end_remote(host, port)
