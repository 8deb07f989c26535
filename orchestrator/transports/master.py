"""The master connection: one login, over which all commands, copies and forwards go (ssh(1), -M and -O)."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shlex
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from orchestrator.errors import NoConnectionError, TransportError
from orchestrator.transports.ssh_failures import connection_error
from orchestrator.transports.ssh_spec import SshSpec

# unix(7): sun_path has 108 bytes on Linux and 104 on the BSDs, one of them NUL. While it makes the socket, ssh appends
# a dot and 16 characters (mux.c, muxserver_listen).
SOCKET_LIMIT_BYTES = 103 - 17
_FOLDER_LIMIT_BYTES = 50
_CONTROL_TIMEOUT_S = 10.0
_MASTER_PID = re.compile(r"pid=(\d+)")


def socket_folder() -> Path:
    """Return the private folder of sockets, made if it is not there: $XDG_RUNTIME_DIR/orch, or /tmp/orch-UID.

    Raises:
        TransportError: it belongs to somebody else or others may enter it.
    """
    base = Path(os.environ.get("XDG_RUNTIME_DIR", ""))
    is_usable = base.is_absolute() and base.is_dir() and len(os.fsencode(base)) <= _FOLDER_LIMIT_BYTES
    # Not $TMPDIR, which is another one in every batch job.
    folder = base / "orch" if is_usable else Path("/tmp") / f"orch-{os.getuid()}"  # noqa: S108 — looked at below
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise TransportError(
            "this machine", f"{folder} is not a private folder of yours", "Remove it, or set XDG_RUNTIME_DIR."
        )
    return folder


def checked_socket_path(path: Path) -> Path:
    """Return ``path``.

    Raises:
        TransportError: it is too long for a Unix socket.
    """
    length = len(os.fsencode(path))
    if length > SOCKET_LIMIT_BYTES:
        raise TransportError(
            "this machine",
            f"{path}: {length} bytes are too many for a control socket (at most {SOCKET_LIMIT_BYTES})",
            "Set XDG_RUNTIME_DIR or control_path to something shorter.",
        )
    return path


class Master:
    """One master connection; several processes with the same specification share it."""

    def __init__(self, spec: SshSpec) -> None:
        """Work out the socket's path; nothing is started.

        Raises:
            TransportError: there is no private folder for the socket, or its path is too long.
        """
        self._spec = spec
        self._pid: int | None = None
        self._started: tuple[int, int] | None = None
        self.is_users_own = spec.control_path is not None
        # The key is everything that says where to connect to and how.
        key = hashlib.sha256("\0".join([spec.host, *spec.connection_argv()]).encode()).hexdigest()[:16]
        self.path = checked_socket_path(
            spec.control_path.expanduser() if spec.control_path is not None else socket_folder() / key
        )

    @property
    def is_ours(self) -> bool:
        """Whether this object started the one that is there now."""
        return self._started is not None and self._started == self.identity()

    def identity(self) -> tuple[int, int] | None:
        """Return what tells one master's socket from the next one's; None if there is none."""
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns

    def is_alive(self) -> bool:
        """Tell whether a master listens on the socket; whether its connection still works is not known."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(1.0)
            try:
                client.connect(str(self.path))
            except (FileNotFoundError, ConnectionRefusedError):
                return False
            except OSError as error:
                raise NoConnectionError(self._spec.label, f"control socket {self.path}: {error.strerror}") from error
        return True

    def client_argv(self) -> list[str]:
        """Return ssh's words for everything that goes over the master, without the host.

        Without the master it fails at once, rather than connect on its own: `false` is no connection. The user's
        configuration has done its part in the master; here its RemoteCommand or LocalForward would only disturb.
        """
        options = ["ControlMaster=no", "BatchMode=yes", "ProxyCommand=false", "LogLevel=ERROR", "RequestTTY=no"]
        return ["ssh", "-F", "/dev/null", "-S", str(self.path), "-x", "-a", *_as_options(options)]

    def login_argv(self, interactive: bool) -> list[str]:
        """Return the command that starts the master and goes into the background."""
        check = "accept-new" if self._spec.accept_new_host_key else "yes"
        options = [
            f"ControlPath={self.path}",
            f"ControlPersist={self._spec.persist_s}",
            f"BatchMode={'no' if interactive else 'yes'}",
            f"StrictHostKeyChecking={check}",
            f"ConnectTimeout={max(1, round(self._spec.connect_timeout_s))}",
            f"ServerAliveInterval={self._spec.keepalive_s}",
            f"ServerAliveCountMax={self._spec.keepalive_count}",
            # What a host alias may ask for besides, and no session of ours wants.
            *("ClearAllForwardings=yes", "ForwardAgent=no", "ForwardX11=no", "PermitLocalCommand=no"),
            *("RemoteCommand=none", "RequestTTY=no", "Tunnel=no", "ExitOnForwardFailure=no"),
        ]
        return ["ssh", "-f", "-N", "-M", *_as_options(options), *self._spec.connection_argv(), "--", self._spec.host]

    @property
    def login_command(self) -> str:
        """The command by which a user makes the connection by hand."""
        if self.is_users_own:
            return shlex.join(
                ["ssh", "-f", "-N", "-M", "-S", str(self.path), *self._spec.connection_argv(), "--", self._spec.host]
            )
        return shlex.join(self.login_argv(interactive=True))

    def start(self, interactive: bool) -> None:
        """Connect, unless there is a connection by now.

        Raises:
            TransportError: one of its kinds says why not.
        """
        if self.is_users_own:
            if not self.is_alive():
                raise NoConnectionError(
                    self._spec.label, f"no master connection at {self.path}", f"Start it:\n  {self.login_command}"
                )
            return
        with self._lock():
            if self.is_alive():
                return
            self._started = self._pid = None
            # Left by a master that was killed; ssh would connect without sharing the connection.
            self.path.unlink(missing_ok=True)
            self._log_in(interactive)
            self._pid, self._started = self._ask_pid(), self.identity()

    def _log_in(self, interactive: bool) -> None:
        argv = self.login_argv(interactive)
        # A file and not a pipe: older ssh keeps stderr open in the background.
        with tempfile.TemporaryFile() as words:
            stderr = None if interactive else words
            environment = (
                dict(os.environ) if interactive else {**os.environ, "SSH_ASKPASS_REQUIRE": "never", "LC_ALL": "C"}
            )
            process = subprocess.Popen(
                argv,
                stdin=None if interactive else subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env=environment,
                # Without a terminal nothing can prompt, the ssh of a proxy jump included.
                start_new_session=not interactive,
            )
            try:
                code = process.wait(None if interactive else self._spec.connect_timeout_s + 5)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                if process.returncode is None:
                    process.kill()
                    process.wait()
            words.seek(0)
            said = words.read().decode(errors="replace")
        if code == 0:
            return
        if code is None:
            said += f"\nno answer within {self._spec.connect_timeout_s + 5:g} s"
        if interactive:
            said = f"ssh ended with exit code {code}; it said why above"
        raise connection_error(self._spec.label, said, self.login_command)

    def _ask_pid(self) -> int:
        answer = self.control("check", [])
        match = _MASTER_PID.search(answer.stdout + answer.stderr)
        if answer.returncode != 0 or match is None:
            raise NoConnectionError(self._spec.label, f"the connection was lost at once\n{answer.stderr.strip()}")
        return int(match[1])

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Keep other processes from starting the same master: the second would connect without sharing."""
        deadline = time.monotonic() + self._spec.connect_timeout_s + 5
        with self.path.with_suffix(".lock").open("a") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() > deadline:
                        raise NoConnectionError(
                            self._spec.label, "another orch process has been logging in for too long"
                        ) from error
                    time.sleep(0.1)
            yield

    def control(self, command: str, words: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Return the master's answer to ``ssh -O command``.

        Raises:
            NoConnectionError: it does not answer.
        """
        argv = [*self.client_argv(), "-O", command, *words, "--", self._spec.host]
        try:
            return subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_CONTROL_TIMEOUT_S,
                start_new_session=True,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise NoConnectionError(
                self._spec.label, f"the master connection does not answer `-O {command}`"
            ) from error

    def stop(self) -> None:
        """End the master if this object started it; one that was there before stays."""
        is_ours, pid = self.is_ours, self._pid
        self._started = self._pid = None
        if not is_ours or pid is None:
            return
        with suppress(NoConnectionError):
            if self.control("exit", []).returncode == 0:
                return
        if self._is_our_process(pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            self.path.unlink(missing_ok=True)

    def _is_our_process(self, pid: int) -> bool:
        try:
            # ssh shows itself as `ssh: PATH [mux]` (mux.c).
            return os.fsencode(self.path) in Path(f"/proc/{pid}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            return False


def _as_options(options: Sequence[str]) -> list[str]:
    return [word for option in options for word in ("-o", option)]
