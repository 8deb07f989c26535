"""A real OpenSSH server for one test or session: on loopback, with keys, configuration and port of its own."""

from __future__ import annotations

import os
import pwd
import resource
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from orchestrator.transports.ssh import SshSpec

SSHD = "/usr/sbin/sshd"


class SshServer:
    """One sshd, which lets in the user who runs the tests, with one key."""

    def __init__(self, folder: Path, **options: str) -> None:
        """Make keys and configuration; nothing is started.

        Args:
            folder: Gets all files of the server.
            options: Further lines of sshd_config(5).
        """
        self.folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in ("host", "user", "stranger"):
            make_key(folder / name)
        (folder / "authorized_keys").write_bytes((folder / "user.pub").read_bytes())
        self.port = free_port()
        self.options = options
        self.know(folder / "host.pub")
        self.process: subprocess.Popen[bytes] | None = None
        self.file_limit_bytes: int | None = None

    def know(self, public_key: Path) -> None:
        """Make ``public_key`` the host key that clients expect."""
        key = " ".join(public_key.read_text().split()[:2])
        (self.folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {key}\n")

    def configure(self) -> Path:
        """Write sshd_config."""
        lines = {
            "Port": str(self.port),
            "ListenAddress": "127.0.0.1",
            "HostKey": str(self.folder / "host"),
            "AuthorizedKeysFile": str(self.folder / "authorized_keys"),
            "PidFile": "none",
            "StrictModes": "no",
            "UsePAM": "no",
            "PermitRootLogin": "yes",
            "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no",
            "Subsystem": "sftp internal-sftp",
            "MaxSessions": "50",
            **self.options,
        }
        path = self.folder / "sshd_config"
        path.write_text("".join(f"{name} {value}\n" for name, value in lines.items()))
        return path

    def start(self) -> SshServer:
        """Start it and wait until it listens."""
        if os.getuid() == 0:
            # Privilege separation needs it; the package makes it at boot (sshd(8), FILES).
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)

        def limit() -> None:
            if self.file_limit_bytes is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (self.file_limit_bytes, self.file_limit_bytes))
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [SSHD, "-D", "-e", "-f", str(self.configure())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=limit,  # noqa: PLW1509 — no threads touch it
                restore_signals=self.file_limit_bytes is None,
                env=server_environment(),
            )
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return self
            except OSError:
                assert self.process.poll() is None, self.log
                assert time.monotonic() < deadline, self.log
                time.sleep(0.05)

    @property
    def log(self) -> str:
        """What it said."""
        return (self.folder / "log").read_text()

    @property
    def n_logins(self) -> int:
        """How often somebody was let in."""
        return self.log.count("Accepted publickey")

    @property
    def n_connections(self) -> int:
        """How often somebody connected (start's own look included)."""
        return self.log.count("Connection closed") + self.log.count("Accepted publickey")

    def pids(self) -> list[int]:
        """Return the server's process, its sessions and all that runs in them."""
        assert self.process is not None
        found, children = [self.process.pid], _children()
        for pid in found:
            found += children.get(pid, [])
        return found

    def send(self, number: int) -> None:
        """Send all its processes a signal; the commands in its sessions go on."""
        for pid in self.pids():
            if b"sshd" in _cmdline(pid).split(b"\0")[0]:
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    continue

    def kill(self) -> None:
        """End the server with all its connections."""
        if self.process is not None:
            self.send(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def spec(self, **changes: object) -> SshSpec:
        """Return how it is reached."""
        return SshSpec.model_validate(
            {
                "host": "127.0.0.1",
                "port": self.port,
                "identity_file": self.folder / "user",
                "known_hosts": self.folder / "known_hosts",
                "config_file": "/dev/null",
                "connect_timeout_s": 20,
                "retry_first_s": 0.2,
                **changes,
            }
        )


def make_key(path: Path) -> None:
    """Write a key pair."""
    if not path.exists():
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", path.name, "-f", str(path)], check=True)


def login_as(shell: str, first: str = "") -> str:
    """Return sshd's ForceCommand for a login shell other than the user's own, with ``first`` run before."""
    return f'{first}exec {shlex.quote(shell)} -c "$SSH_ORIGINAL_COMMAND"'


def server_environment() -> Mapping[str, str]:
    """Return what a server started at boot would have."""
    return {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}


def user_name() -> str:
    """Return the name of the user who runs the tests."""
    return pwd.getpwuid(os.getuid()).pw_name


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def _children() -> dict[int, list[int]]:
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_bytes().rpartition(b")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        children.setdefault(parent, []).append(int(path.parent.name))
    return children
