"""Both transports, the one over SSH against a real server."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from orchestrator.transports import LocalTransport, Transport
from orchestrator.transports.ssh import SshTransport
from tests.orchestrator.transports.sshd import SSHD, SshServer


@pytest.fixture(autouse=True)
def runtime_dir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A private place for control sockets, short enough for one."""
    folder = Path(tempfile.mkdtemp(prefix="o-", dir="/tmp"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    """A server for tests that leave it as it is."""
    require_sshd()
    server = SshServer(tmp_path_factory.mktemp("sshd")).start()
    yield server
    server.kill()


@pytest.fixture
def make_server(tmp_path: Path) -> Iterator[Callable[..., SshServer]]:
    """Make servers with settings of their own; they are ended after the test."""
    require_sshd()
    servers: list[SshServer] = []

    def make(**options: str) -> SshServer:
        servers.append(SshServer(tmp_path / f"sshd{len(servers)}", **options))
        return servers[-1].start()

    yield make
    for server in servers:
        server.kill()


@pytest.fixture
def connect() -> Iterator[Callable[..., SshTransport]]:
    """Make transports to a server; they are closed after the test."""
    with ExitStack() as stack:
        yield lambda server, **changes: stack.enter_context(SshTransport(server.spec(**changes)))


@pytest.fixture(params=["local", "ssh"])
def transport(request: pytest.FixtureRequest) -> Iterator[Transport]:
    """Each of the two transports."""
    if request.param == "local":
        yield LocalTransport()
        return
    server: SshServer = request.getfixturevalue("shared_server")
    with SshTransport(server.spec()) as ssh:
        yield ssh


def require_sshd() -> None:
    """Skip the test where there is no OpenSSH server to start."""
    for program in (SSHD, "ssh", "sftp"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (apt-get install openssh-server openssh-client)")
