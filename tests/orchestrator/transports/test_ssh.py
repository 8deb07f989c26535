"""What only the transport over SSH has: logins, shells, refused options, faults of the connection."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from orchestrator.errors import (
    AuthenticationError,
    HostKeyError,
    NoConnectionError,
    RemoteFileError,
    TransferError,
    TransportError,
)
from orchestrator.transports import Answer, Fault, TransferOptions
from orchestrator.transports.master import Master, checked_socket_path, socket_folder
from orchestrator.transports.ssh import SshSpec, SshTransport
from tests.orchestrator.conftest import is_running, wait_for
from tests.orchestrator.transports.sshd import SshServer, login_as, make_key
from tests.orchestrator.transports.test_transport_contract import (
    HOSTILE,
    SHOW,
    answering_port,
    ask,
    found,
    is_refused,
    make_tree,
)

MakeServer = Callable[..., SshServer]
Connect = Callable[..., SshTransport]
SHELLS = ["sh", "bash", "tcsh", "fish", "zsh", "ksh"]
SFTP_SERVER = "/usr/lib/openssh/sftp-server"
NOISE = "echo Welcome; echo 'to the cluster' >&2; printf '\\377\\0'; "
# Seconds of patience for a hung connection, as short as the specification allows.
QUICK = {"connect_timeout_s": 3, "slack_s": 2, "keepalive_s": 1, "keepalive_count": 2}


@pytest.mark.parametrize("shell", SHELLS)
def test_run_passes_hostile_words_whatever_the_login_shell(
    shell: str, make_server: MakeServer, connect: Connect, tmp_path: Path
) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    transport = connect(make_server(ForceCommand=login_as(program)))
    folder = tmp_path / "a b!\n$(x)\\'"
    folder.mkdir()
    argv = [sys.executable, "-c", SHOW + "; print(os.environ['A'], os.getcwd())", *HOSTILE]
    answer = transport.run(argv, 30, cwd=str(folder), environment={"A": "!'\\\n$x"})
    assert answer.stdout == ascii([os.fsencode(word) for word in HOSTILE]) + f"\n!'\\\n$x {folder}\n"
    assert (answer.returncode, answer.stderr) == (0, "")
    if shell in {"sh", "fish", "tcsh"}:
        make_tree(tmp_path / "tree")
        transport.push(tmp_path / "tree", str(tmp_path / "copy !'$x"))
        assert found(tmp_path / "copy !'$x") == found(tmp_path / "tree")


@pytest.mark.parametrize("noise", [NOISE, NOISE + "exec 2>/dev/null; "])
def test_start_up_files_that_print_corrupt_nothing(
    noise: str, make_server: MakeServer, connect: Connect, tmp_path: Path
) -> None:
    (tmp_path / "banner").write_text("Authorised users only\n")
    transport = connect(make_server(ForceCommand=login_as("/bin/bash", noise), Banner=str(tmp_path / "banner")))
    answer = transport.run(["bash", "-c", "echo out; exit 255"], 30)
    assert (answer.returncode, answer.stdout, answer.stderr) == (255, "out\n", "")
    transport.write(str(tmp_path / "x"), b"\0data")
    assert transport.read_text(str(tmp_path / "x")) == "\0data"
    make_tree(tmp_path / "tree")
    assert transport.push(tmp_path / "tree", str(tmp_path / "copy")).method == "rsync"
    assert found(tmp_path / "copy") == found(tmp_path / "tree")


def test_profile_is_read_where_the_site_asks_for_it(make_server: MakeServer, connect: Connect, tmp_path: Path) -> None:
    (tmp_path / ".profile").write_text("echo noise; export FROM_PROFILE=yes\n")
    server = make_server(SetEnv=f"HOME={tmp_path}")
    ask_for = ["sh", "-c", 'echo "$FROM_PROFILE"']
    assert connect(server).run(ask_for, 30).stdout == "\n"
    assert connect(server, reads_profile=True, keepalive_s=20).run(ask_for, 30).stdout == "yes\n"


def test_login_shell_that_refuses_is_told_apart_from_the_command(make_server: MakeServer, connect: Connect) -> None:
    transport = connect(make_server(ForceCommand="echo This account is not available; exit 1"))
    answer = transport.run(["true"], 30)
    assert (answer.returncode, answer.fault) == (None, Fault.NOT_SENT)
    assert "did not run `sh -c`: This account is not available" in answer.stderr


def test_machine_without_timeout_is_named(make_server: MakeServer, connect: Connect, tmp_path: Path) -> None:
    for name in ("sh", "date", "env"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    transport = connect(make_server(ForceCommand=f"PATH={tmp_path} " + login_as("/bin/sh")[5:]))
    answer = transport.run(["env"], 30)
    assert (answer.returncode, answer.fault) == (None, Fault.NOT_SENT)
    assert "timeout (coreutils) is not installed there" in answer.stderr


def test_one_login_serves_and_close_ends_it(make_server: MakeServer, connect: Connect, runtime_dir: Path) -> None:
    server = make_server()
    transport = connect(server)
    for _ in range(3):
        assert transport.run(["true"], 30).returncode == 0
    assert server.n_logins == 1
    folder = runtime_dir / "orch"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    sockets = [path for path in folder.iterdir() if path.is_socket()]
    assert len(sockets) == 1
    transport.close()
    wait_for(lambda: not sockets[0].exists())
    wait_for(lambda: len(server.pids()) == 1)


def test_second_transport_shares_the_login_and_does_not_end_it(make_server: MakeServer, connect: Connect) -> None:
    server = make_server()
    first, second = connect(server), connect(server)
    threads = [threading.Thread(target=transport.open) for transport in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.n_logins == 1
    guest = second if first._master.is_ours else first
    guest.close()
    assert (first if guest is second else second).run(["true"], 30).returncode == 0
    assert server.n_logins == 1


def test_users_own_master_is_used_and_never_ended(make_server: MakeServer, connect: Connect, runtime_dir: Path) -> None:
    server = make_server()
    path = runtime_dir / "mine"
    transport = connect(server, control_path=path)
    with pytest.raises(NoConnectionError, match="Start it:") as error:
        transport.open()
    command = str(error.value).splitlines()[-1].strip()
    options = f"-o UserKnownHostsFile={server.folder}/known_hosts"
    subprocess.run(["bash", "-c", command], check=True, stdin=subprocess.DEVNULL)
    assert options in command
    transport.open()
    assert transport.run(["true"], 30).returncode == 0
    transport.close()
    assert transport._master.is_alive()
    subprocess.run(["ssh", "-S", str(path), "-O", "exit", "x"], check=True, capture_output=True)


def test_command_to_type_makes_the_connection_that_is_then_used(make_server: MakeServer, connect: Connect) -> None:
    server = make_server()
    transport = connect(server)
    command = transport._master.login_command
    (server.folder / "authorized_keys").rename(server.folder / "away")
    with pytest.raises(AuthenticationError, match="Log in once by hand") as error:
        transport.open()
    assert command in str(error.value)
    (server.folder / "away").rename(server.folder / "authorized_keys")
    # The transport itself does not try again so soon, but takes what the user made.
    assert transport.run(["true"], 30).fault == Fault.NOT_SENT
    subprocess.run(["bash", "-c", command], check=True, stdin=subprocess.DEVNULL)
    assert transport.run(["true"], 30).returncode == 0
    transport.close()
    assert transport._master.is_alive()
    subprocess.run(["ssh", "-S", str(transport._master.path), "-O", "exit", "x"], check=True, capture_output=True)


def test_host_alias_of_the_users_configuration_is_honoured(
    make_server: MakeServer, connect: Connect, tmp_path: Path
) -> None:
    server = make_server()
    config = tmp_path / "config"
    config.write_text(
        f"Host cluster\n HostName 127.0.0.1\n Port {server.port}\n IdentityFile {server.folder}/user\n"
        f" UserKnownHostsFile {server.folder}/known_hosts\n"
        # What would disturb, if it were not switched off.
        " RemoteCommand echo wrong\n RequestTTY force\n LocalForward 9 127.0.0.1:9\n ForwardAgent yes\n"
        f" PermitLocalCommand yes\n LocalCommand touch {tmp_path}/ran\n StrictHostKeyChecking no\n"
    )
    spec = SshSpec(host="cluster", config_file=config)
    with SshTransport(spec) as transport:
        assert transport.run(["echo", "right"], 30).stdout == "right\n"
    assert not (tmp_path / "ran").exists()


def test_proxy_jump_goes_through_the_machine_on_the_way(
    make_server: MakeServer, connect: Connect, tmp_path: Path
) -> None:
    gate, server = make_server(), make_server()
    config = tmp_path / "config"
    config.write_text(
        f"Host gate\n HostName 127.0.0.1\n Port {gate.port}\n IdentityFile {gate.folder}/user\n"
        f" UserKnownHostsFile {gate.folder}/known_hosts\n StrictHostKeyChecking yes\n"
    )
    transport = connect(server, proxy_jump="gate", config_file=config)
    assert transport.run(["echo", "hi"], 30).stdout == "hi\n"
    assert (gate.n_logins, server.n_logins) == (1, 1)


def test_unknown_host_key_is_an_error_unless_the_site_accepts_it(make_server: MakeServer, connect: Connect) -> None:
    server = make_server()
    known = server.folder / "known_hosts"
    known.unlink()
    with pytest.raises(HostKeyError, match=r"host key is not known[\s\S]*accept_new_host_key"):
        connect(server).open()
    connect(server, accept_new_host_key=True).open()
    assert str(server.port) in known.read_text()


@pytest.mark.parametrize("accepts_new", [False, True])
def test_changed_host_key_is_an_error(make_server: MakeServer, connect: Connect, accepts_new: bool) -> None:
    server = make_server()
    server.know(server.folder / "stranger.pub")
    transport = connect(server, accept_new_host_key=accepts_new)
    with pytest.raises(HostKeyError, match=r"not the one that is known[\s\S]*ssh-keygen -R"):
        transport.open()
    answer = transport.run(["true"], 30)
    assert (answer.returncode, answer.fault) == (None, Fault.NOT_SENT)
    assert "not the one that is known" in answer.stderr


def test_refused_key_is_an_error_and_not_tried_again_and_again(make_server: MakeServer, connect: Connect) -> None:
    server = make_server()
    transport = connect(server, identity_file=server.folder / "stranger")
    with pytest.raises(AuthenticationError, match="Permission denied"):
        transport.open()
    for _ in range(20):
        assert transport.run(["true"], 30).fault == Fault.NOT_SENT
    assert server.log.count("[preauth]") == 1


def test_batch_connection_never_prompts(make_server: MakeServer, connect: Connect, tmp_path: Path) -> None:
    server = make_server()
    make_key(server.folder / "locked")
    subprocess.run(["ssh-keygen", "-q", "-p", "-N", "secret", "-f", str(server.folder / "locked")], check=True)
    (server.folder / "authorized_keys").write_bytes((server.folder / "locked.pub").read_bytes())
    started = time.monotonic()
    with pytest.raises(AuthenticationError, match="Log in once by hand"):
        connect(server, identity_file=server.folder / "locked").open()
    assert time.monotonic() - started < 10


def test_interactive_connection_asks_on_the_terminal(make_server: MakeServer, runtime_dir: Path) -> None:
    server = make_server()
    make_key(server.folder / "locked")
    subprocess.run(["ssh-keygen", "-q", "-p", "-N", "secret", "-f", str(server.folder / "locked")], check=True)
    (server.folder / "authorized_keys").write_bytes((server.folder / "locked.pub").read_bytes())
    spec = server.spec(identity_file=server.folder / "locked").model_dump_json()
    program = (
        "import sys; from orchestrator.transports.ssh import *; "
        "t = SshTransport(SshSpec.model_validate_json(sys.argv[1])); t.open(interactive=True); "
        "print(t.run(['echo', 'made', 'it'], 30).stdout); t.close()"
    )
    said = on_a_terminal([sys.executable, "-c", program, spec], "passphrase", "secret\n")
    assert "made it" in said


def on_a_terminal(argv: list[str], prompt: str, reply: str) -> str:
    """Run a program on a terminal of its own, reply to its prompt, and return all that it said."""
    pid, terminal = os.forkpty()
    if pid == 0:
        try:
            environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
            os.execve(argv[0], argv, environment)  # noqa: S606
        finally:
            os._exit(126)
    said, has_replied = "", False
    try:
        while True:
            said += os.read(terminal, 4096).decode(errors="replace")
            if prompt in said and not has_replied:
                os.write(terminal, reply.encode())
                has_replied = True
    except OSError:  # the terminal's end (EIO)
        os.waitpid(pid, 0)
    os.close(terminal)
    return said


@pytest.mark.parametrize(
    "fields",
    [
        {"host": "-oProxyCommand=touch x"},
        {"host": "a b"},
        {"host": ""},
        {"host": "a", "user": "-x"},
        {"host": "a", "port": 0},
        {"host": "a", "proxy_jump": "-oProxyCommand=x"},
        {"host": "a", "proxy_jump": "b;touch x"},
        {"host": "a", "known_hosts": "/dev/null"},
        {"host": "a", "identity_file": "a b"},
        {"host": "a", "unknown": 1},
        *(
            {"host": "a", "ssh_options": {name: "x"}}
            for name in ("ProxyCommand", "proxycommand", "StrictHostKeyChecking")
        ),
        *(
            {"host": "a", "ssh_options": {name: "x"}}
            for name in ("LocalCommand", "KnownHostsCommand", "PKCS11Provider")
        ),
        *(
            {"host": "a", "ssh_options": {name: "x"}}
            for name in ("UserKnownHostsFile", "Include", "ControlPath", "x=y")
        ),
        {"host": "a", "ssh_options": {"Ciphers": "a\nProxyCommand=b"}},
        {"host": "a", "ssh_options": {"Ciphers": ""}},
    ],
)
def test_specification_refuses_what_runs_commands_or_switches_checks_off(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SshSpec.model_validate(fields)


def test_specification_passes_its_fields_on() -> None:
    spec = SshSpec.model_validate(
        {"host": "a", "user": "u", "port": 22, "proxy_jump": "x@b:1,c", "ssh_options": {"compression": "yes"}}
    )
    assert spec.label == "u@a:22"
    assert spec.connection_argv() == ["-l", "u", "-p", "22", "-J", "x@b:1,c", "-o", "Compression=yes"]
    argv = Master(spec).login_argv(interactive=False)
    assert "StrictHostKeyChecking=yes" in argv
    assert "BatchMode=yes" in argv


def test_control_socket_too_long_for_unix_is_an_error() -> None:
    with pytest.raises(TransportError, match="too many for a control socket"):
        checked_socket_path(Path("/" + "x" * 100))


def test_control_socket_folder_of_others_is_refused(monkeypatch: pytest.MonkeyPatch, runtime_dir: Path) -> None:
    folder = runtime_dir / "orch"
    folder.mkdir()
    folder.chmod(0o770)
    with pytest.raises(TransportError, match="not a private folder"):
        socket_folder()
    folder.rmdir()
    folder.symlink_to("/tmp")
    with pytest.raises(TransportError, match="not a private folder"):
        socket_folder()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime_dir / ("x" * 60)))
    assert len(str(socket_folder())) < 60


@pytest.fixture
def pending() -> Iterator[Callable[[Callable[[], Answer]], Callable[[], Answer]]]:
    """Start something in the background; calling what comes back waits for its answer."""
    threads: list[threading.Thread] = []

    def start(work: Callable[[], Answer]) -> Callable[[], Answer]:
        answers: list[Answer] = []
        thread = threading.Thread(target=lambda: answers.append(work()))
        thread.start()
        threads.append(thread)

        def wait() -> Answer:
            thread.join(60)
            return answers[0]

        return wait

    yield start
    for thread in threads:
        thread.join()


Pending = Callable[[Callable[[], Answer]], Callable[[], Answer]]


def test_server_killed_while_a_command_runs_is_a_cut_and_comes_back(
    make_server: MakeServer, connect: Connect, pending: Pending, tmp_path: Path
) -> None:
    server = make_server()
    transport = connect(server, **QUICK)
    with answering_port() as port:
        there = transport.forward("127.0.0.1", port)
        back = transport.reverse("127.0.0.1", port)
        script = f"echo $$ >{tmp_path}/pid; echo begun; sleep 4"
        wait = pending(lambda: transport.run(["bash", "-c", script], 4))
        pid = int(wait_for(lambda: read(tmp_path / "pid")))
        server.kill()
        answer = wait()
        assert (answer.returncode, answer.fault) == (None, Fault.CUT_OFF)
        assert "connection was lost while the command ran" in answer.stderr

        answer = transport.run(["true"], 5)
        assert (answer.returncode, answer.fault) == (None, Fault.NOT_SENT)
        assert "no connection" in answer.stderr
        with pytest.raises(NoConnectionError):
            transport.read_many(["/x"])
        assert is_refused(there)
        # What was left behind ends by its own time limit.
        wait_for(lambda: not is_running(pid))

        server.start()
        wait_for(lambda: transport.run(["true"], 5).returncode == 0, 20)
        assert ask(there) == b"hello"
        assert ask(back) == b"hello"
        assert transport.forward("127.0.0.1", port) == there
        assert transport.reverse("127.0.0.1", port) == back
        transport.unreverse("127.0.0.1", port)
        wait_for(lambda: is_refused(back))


def test_no_storm_of_attempts_while_there_is_no_server(
    make_server: MakeServer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make_server()
    transport = connect(server, retry_first_s=60)
    server.kill()
    attempts: list[bool] = []
    start = transport._master.start

    def counted(interactive: bool) -> None:
        attempts.append(interactive)
        start(interactive)

    monkeypatch.setattr(transport._master, "start", counted)
    started = time.monotonic()
    for _ in range(50):
        assert transport.run(["true"], 5).fault == Fault.NOT_SENT
    assert len(attempts) == 1
    assert time.monotonic() - started < 10
    server.start()
    transport.open(interactive=True)
    assert transport.run(["true"], 5).returncode == 0


def test_server_that_hangs_is_waited_for_a_bounded_time_and_never_runs_the_command_later(
    make_server: MakeServer, connect: Connect, tmp_path: Path
) -> None:
    server = make_server()
    transport = connect(server, **QUICK)
    transport.open()
    server.send(signal.SIGSTOP)
    started = time.monotonic()
    answer = transport.run(["touch", str(tmp_path / "ran")], 5)
    assert (answer.returncode, answer.fault) == (None, Fault.NOT_SENT)
    assert time.monotonic() - started < 9
    # The keepalive gives the connection up; the new one hangs as well, for a bounded time.
    wait_for(lambda: not transport._master.is_alive())
    started = time.monotonic()
    answer = transport.run(["touch", str(tmp_path / "ran")], 5)
    assert answer.fault == Fault.NOT_SENT
    assert time.monotonic() - started < 12
    server.send(signal.SIGCONT)
    wait_for(lambda: transport.run(["true"], 5).returncode == 0, 20)
    time.sleep(1)
    assert not (tmp_path / "ran").exists()


def test_server_that_hangs_while_a_command_runs_is_a_cut(
    make_server: MakeServer, connect: Connect, pending: Pending, tmp_path: Path
) -> None:
    server = make_server()
    transport = connect(server, **QUICK)
    wait = pending(lambda: transport.run(["bash", "-c", f"echo $$ >{tmp_path}/pid; sleep 1"], 3))
    wait_for(lambda: read(tmp_path / "pid"))
    server.send(signal.SIGSTOP)
    started = time.monotonic()
    assert wait().fault == Fault.CUT_OFF
    assert time.monotonic() - started < 8
    server.send(signal.SIGCONT)


def test_master_that_was_killed_leaves_a_socket_that_is_replaced(make_server: MakeServer, connect: Connect) -> None:
    server = make_server()
    transport = connect(server)
    transport.open()
    pid = transport._master._pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not transport._master.is_alive())
    assert transport._master.path.is_socket()
    assert transport.run(["echo", "again"], 30).stdout == "again\n"
    assert server.n_logins == 2


def test_forward_is_made_again_over_a_connection_that_another_process_made(
    make_server: MakeServer, connect: Connect
) -> None:
    server = make_server()
    first, second = connect(server), connect(server)
    with answering_port() as port:
        address = first.forward("127.0.0.1", port)
        server.kill()
        wait_for(lambda: not first._master.is_alive())
        server.start()
        second.open()
        assert first.run(["true"], 30).returncode == 0
        assert ask(address) == b"hello"
        first.close()
        wait_for(lambda: is_refused(address))
    assert second.run(["true"], 30).returncode == 0
    assert server.n_logins == 2


def test_port_of_a_forward_that_was_taken_meanwhile_is_told(
    make_server: MakeServer, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    server = make_server()
    transport = connect(server)
    with answering_port() as port:
        address = transport.forward("127.0.0.1", port)
        server.kill()
        wait_for(lambda: is_refused(address))
        with socket.create_server(address):
            server.start()
            wait_for(lambda: transport.run(["true"], 5).returncode == 0, 20)
            assert "could not be taken again" in caplog.text
            other = transport.forward("127.0.0.1", port)
            assert other != address
            assert ask(other) == b"hello"


def test_forward_that_the_server_forbids_is_an_error(make_server: MakeServer, connect: Connect) -> None:
    transport = connect(make_server(AllowTcpForwarding="no"))
    with pytest.raises(TransportError, match="cannot forward a port back"):
        transport.reverse("127.0.0.1", 9)
    with pytest.raises(ValueError, match="no address"):
        transport.forward("-x", 9)


def test_write_beyond_the_room_there_is_an_error_and_keeps_the_old_file(
    make_server: MakeServer, connect: Connect, tmp_path: Path
) -> None:
    server = make_server()
    server.kill()
    server.file_limit_bytes = 100_000
    server.start()
    transport = connect(server)
    target = tmp_path / "there" / "x"
    target.parent.mkdir()
    target.write_text("old")
    with pytest.raises(RemoteFileError, match=r"File too large[\s\S]*ulimit"):
        transport.write(str(target), b"x" * 200_000)
    source = tmp_path / "big"
    source.write_bytes(os.urandom(200_000))
    with pytest.raises(TransferError, match=r"File too large[\s\S]*ulimit"):
        transport.push(source, str(target))
    assert target.read_text() == "old"
    assert [path.name for path in target.parent.iterdir() if path.is_file()] == ["x"]


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "orch-test", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a small disk: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disk_there_is_an_error_that_says_so(shared_server: SshServer, connect: Connect, tiny_disk: Path) -> None:
    transport = connect(shared_server)
    source = tiny_disk.parent / "big"
    source.write_bytes(os.urandom(1 << 20))
    with pytest.raises(TransferError, match=r"No space left[\s\S]*Free some space"):
        transport.push(source, str(tiny_disk / "x"))
    with pytest.raises(RemoteFileError, match=r"No space left[\s\S]*Free some space"):
        transport.write(str(tiny_disk / "y"), source.read_bytes())
    assert not (tiny_disk / "x").exists()
    assert not (tiny_disk / "y").exists()


def test_copy_that_is_cut_goes_on_where_it_was(make_server: MakeServer, connect: Connect, tmp_path: Path) -> None:
    server = make_server()
    transport = connect(server, **QUICK)
    source, target = tmp_path / "big", tmp_path / "there" / "big"
    source.write_bytes(os.urandom(6 << 20))
    slow = TransferOptions(bandwidth_limit_kib_per_s=1024, timeout_s=2)
    with pytest.raises(TransferError, match="was ended after 2 s"):
        transport.push(source, str(target), slow)
    partial = target.parent / ".orch-partial" / "big"
    wait_for(partial.exists)
    assert 0 < partial.stat().st_size < source.stat().st_size
    assert not target.exists()
    transport.push(source, str(target))
    assert target.read_bytes() == source.read_bytes()
    assert [path.name for path in target.parent.iterdir()] == ["big"]


def test_copy_over_a_connection_that_breaks_is_an_error(
    make_server: MakeServer, connect: Connect, tmp_path: Path
) -> None:
    server = make_server()
    transport = connect(server, **QUICK)
    source = tmp_path / "big"
    source.write_bytes(os.urandom(4 << 20))
    transport.open()
    timer = threading.Timer(1.5, server.kill)
    timer.start()
    try:
        with pytest.raises(NoConnectionError, match="rsync ended with exit code"):
            transport.push(source, str(tmp_path / "x"), TransferOptions(bandwidth_limit_kib_per_s=512))
    finally:
        timer.join()


@pytest.mark.parametrize("side", ["here", "there"])
def test_without_rsync_sftp_copies_and_the_log_says_so(
    side: str,
    make_server: MakeServer,
    connect: Connect,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    programs = tmp_path / "bin"
    programs.mkdir()
    for folder in ("/usr/bin", "/bin"):
        for path in Path(folder).iterdir():
            if path.name != "rsync" and not (programs / path.name).exists():
                (programs / path.name).symlink_to(path)
    options_there = {}
    if side == "here":
        monkeypatch.setenv("PATH", str(programs))
    else:
        force = f"PATH={programs}; export PATH; " + login_as("/bin/sh")
        options_there = {"ForceCommand": force, "Subsystem": f"sftp {SFTP_SERVER}"}
    transport = connect(make_server(**options_there))
    source = tmp_path / "from here"
    files = make_tree(source)
    options = TransferOptions(excludes=("*.pyc", "/output/"), bandwidth_limit_kib_per_s=100_000)
    expected = {name: files[name] for name in files if name not in {"cache/x.pyc", "output/big"}}
    done = transport.push(source, str(tmp_path / "pushed -x"), options)
    assert (done.method, set(done.files)) == ("sftp", set(expected))
    assert found(tmp_path / "pushed -x") == expected
    assert "rsync is not installed on" in caplog.text
    assert "link" in caplog.text
    transport.pull(str(source), tmp_path / "pulled", options)
    assert found(tmp_path / "pulled") == expected
    transport.push(source / "a.py", str(tmp_path / "one"))
    transport.pull(str(source / "a.py"), tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes() == files["a.py"][1]
    (source / "a\nb").touch()
    with pytest.raises(TransferError, match="line break"):
        transport.push(source, str(tmp_path / "x"))


def test_sftp_over_start_up_files_that_print_is_an_error_that_says_so(
    make_server: MakeServer, connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    force = login_as("/bin/sh", "echo Welcome to the cluster; ")
    transport = connect(make_server(ForceCommand=force, Subsystem=f"sftp {SFTP_SERVER}"))
    monkeypatch.setattr("orchestrator.transports.ssh.shutil.which", lambda name: None)
    (tmp_path / "x").touch()
    with pytest.raises(TransferError, match=r"too long[\s\S]*Make it silent"):
        transport.push(tmp_path / "x", str(tmp_path / "y"))


def test_command_is_ended_here_by_an_interrupt(
    shared_server: SshServer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = connect(shared_server)
    transport.open()
    main = threading.get_ident()
    timer = threading.Timer(0.5, lambda: signal.pthread_kill(main, signal.SIGINT))
    timer.start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        transport.run(["sleep", "5"], 6)
    assert time.monotonic() - started < 4
    assert transport.run(["true"], 30).returncode == 0


def read(path: Path) -> str:
    """Return what is in a file, or nothing."""
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        return ""
