"""What both transports promise."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from orchestrator.errors import RemoteFileError, TransferError
from orchestrator.transports import Fault, FileContent, TransferOptions, Transport
from tests.orchestrator.conftest import is_running, wait_for

SHOW = "import os, sys; print(ascii([os.fsencode(word) for word in sys.argv[1:]]))"
HOSTILE = [
    *(
        "a b",
        "",
        " ",
        "'",
        '"',
        "'\"'",
        "$(touch pwned)",
        "`touch pwned`",
        "$HOME",
        "${n}",
        "a\nb",
        "\n",
        "\n\n'\n",
        "a\n",
    ),
    *("*", "?", "[a-z]*", "~", "~root", "-x", "--", "-", "!x", "!!", "\\", "\\n", "a\\\n!b", "a\\", "#", ";", "&", "|"),
    *("ü", "日本語", "\x01\x02", "\x7f\x81\x82\x88", "\udcff", "%s", "{a,b}", "<", ">", "x=y", "\t", "\r\n", "(", ")"),
    bytes(range(1, 256)).decode("utf-8", "surrogateescape"),
]


def test_run_gives_code_and_both_streams(transport: Transport) -> None:
    answer = transport.run(["bash", "-c", "echo out; echo err >&2; exit 3"], 30)
    assert (answer.returncode, answer.stdout, answer.stderr, answer.fault) == (3, "out\n", "err\n", None)
    assert answer.argv == ("bash", "-c", "echo out; echo err >&2; exit 3")


@pytest.mark.parametrize("code", [0, 1, 124, 126, 127, 137, 255])
def test_run_gives_any_exit_code_of_the_command_itself(transport: Transport, code: int) -> None:
    assert transport.run(["bash", "-c", f"exit {code}"], 30).returncode == code


def test_run_passes_hostile_words_unchanged(transport: Transport, tmp_path: Path) -> None:
    answer = transport.run([sys.executable, "-c", SHOW, *HOSTILE], 30, cwd=str(tmp_path))
    assert answer.stdout == ascii([os.fsencode(word) for word in HOSTILE]) + "\n"
    assert answer.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_run_of_a_program_in_a_hostile_place(transport: Transport, tmp_path: Path) -> None:
    program = tmp_path / "a=b $(x)\n'" / "-p"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho ran\n")
    program.chmod(0o755)
    assert transport.run([str(program)], 30).stdout == "ran\n"


def test_run_of_a_name_that_is_a_builtin_too_runs_the_program(transport: Transport) -> None:
    assert transport.run(["printf", r"\x41"], 30).stdout == "A"  # dash's own printf knows no \x


def test_run_of_a_missing_program_answers_127(transport: Transport) -> None:
    answer = transport.run(["no-such-program-anywhere"], 30)
    assert (answer.returncode, answer.fault) == (127, None)
    assert "no-such-program-anywhere" in answer.stderr
    assert "No such file" in answer.stderr


@pytest.mark.parametrize("name", ["", " x", "-x", "a'b\nc"])
def test_run_in_a_directory(transport: Transport, tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir(exist_ok=True)
    assert transport.run(["pwd", "-P"], 30, cwd=str(folder)).stdout == f"{folder.resolve()}\n"


def test_run_in_a_missing_directory_answers_127(transport: Transport, tmp_path: Path) -> None:
    answer = transport.run(["pwd"], 30, cwd=str(tmp_path / "none"))
    assert answer.returncode == 127
    assert str(tmp_path / "none") in answer.stderr


def test_run_without_stdin_reads_nothing(transport: Transport) -> None:
    assert transport.run(["cat"], 30).stdout == ""


@pytest.mark.parametrize("data", [b"", b"x", b"no end\nof line", bytes(range(256)) * 8192])
def test_run_passes_stdin_unchanged(transport: Transport, data: bytes, tmp_path: Path) -> None:
    assert transport.run(["dd", f"of={tmp_path / 'got'}", "bs=4096"], 30, stdin=data).returncode == 0
    assert (tmp_path / "got").read_bytes() == data


def test_run_of_a_command_that_does_not_want_its_stdin(transport: Transport) -> None:
    assert transport.run(["echo", "done"], 30, stdin=b"x" * 3_000_000).stdout == "done\n"


def test_run_gives_a_megabyte_of_output(transport: Transport) -> None:
    answer = transport.run(
        [sys.executable, "-c", "print('x' * 1_000_000); import sys; sys.stderr.write('y' * 100_000)"], 30
    )
    assert (answer.stdout, answer.stderr) == ("x" * 1_000_000 + "\n", "y" * 100_000)


def test_run_replaces_bytes_that_are_no_text(transport: Transport) -> None:
    answer = transport.run([sys.executable, "-c", "import os; os.write(1, b'a\\xff\\0\\r\\nb')"], 30)
    assert answer.stdout == "a\N{REPLACEMENT CHARACTER}\0\r\nb"


def test_run_that_takes_too_long_is_ended_with_its_children(transport: Transport, tmp_path: Path) -> None:
    script = f"trap '' TERM; echo said; sleep 60 & echo $! >{tmp_path}/pid; wait; wait"
    started = time.monotonic()
    answer = transport.run(["bash", "-c", script], 1)
    assert (answer.returncode, answer.stdout, answer.stderr, answer.fault) == (None, "said\n", "", Fault.TIMED_OUT)
    assert time.monotonic() - started < 10
    pid = int((tmp_path / "pid").read_text())
    wait_for(lambda: not is_running(pid))


def test_run_gives_variables_that_appear_on_no_argv(transport: Transport) -> None:
    secret = "canary $(x)\n'\"ü" + os.urandom(4).hex()
    seen: list[bytes] = []
    with threaded(lambda: seen.extend(all_argv())):
        answer = transport.run(["bash", "-c", 'sleep 0.5; printf %s "$TOKEN"'], 30, environment={"TOKEN": secret})
    assert answer.stdout == secret
    assert any(b"sleep 0.5" in argv for argv in seen)
    assert not [argv for argv in seen if secret[-8:].encode() in argv]


def test_run_leaves_nothing_of_its_own_in_the_environment(transport: Transport) -> None:
    names = [line.partition("=")[0] for line in transport.run(["env"], 30).stdout.splitlines()]
    assert not [name for name in names if name.startswith("orch_")]


@pytest.mark.parametrize(
    ("argv", "environment"),
    [
        ([], {}),
        ([""], {}),
        (["a=b"], {}),
        (["a", "\0"], {}),
        (["a"], {"B": "\0"}),
        (["a"], {"A B": ""}),
        (["a"], {"": ""}),
    ],
)
def test_run_refuses_what_no_machine_can_pass_on(
    transport: Transport, argv: list[str], environment: dict[str, str]
) -> None:
    with pytest.raises(ValueError, match=r"program|NUL|variable"):
        transport.run(argv, 30, environment=environment)


@pytest.mark.parametrize("name", ["record", "a b", "-x", "a\nb", "$(x)'\"", "ü*", "\udcff"])
def test_write_and_read_are_exact(transport: Transport, tmp_path: Path, name: str) -> None:
    data = bytes(range(256)) * 300
    path = str(tmp_path / name)
    transport.write(path, data)
    assert Path(path).read_bytes() == data
    assert Path(path).stat().st_mode & 0o7777 == 0o600
    assert transport.read_many([path]) == {path: FileContent(data)}
    assert [item.name for item in tmp_path.iterdir()] == [name]


def test_write_replaces_a_file_and_sets_its_mode(transport: Transport, tmp_path: Path) -> None:
    target = tmp_path / "x"
    target.write_bytes(b"old")
    old = target.stat().st_ino
    transport.write(str(target), b"", 0o755)
    assert (target.read_bytes(), target.stat().st_mode & 0o7777) == (b"", 0o755)
    assert target.stat().st_ino != old


@pytest.mark.parametrize("place", ["none/x", ""])
def test_write_that_cannot_be_is_an_error_and_leaves_nothing(transport: Transport, tmp_path: Path, place: str) -> None:
    with pytest.raises(RemoteFileError, match=r"No such file|directory"):
        transport.write(str(tmp_path / place), b"x")
    assert list(tmp_path.iterdir()) == []


def test_write_at_home_is_found_by_a_relative_path(transport: Transport) -> None:
    name = f".orch-test-{os.urandom(6).hex()}"
    try:
        transport.write(name, b"here")
        assert transport.read_text(name) == "here"
        assert (Path.home() / name).read_bytes() == b"here"
    finally:
        (Path.home() / name).unlink(missing_ok=True)


def test_read_many_tells_files_missing_ones_and_unusable_ones_apart(transport: Transport, tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "exact").write_bytes(b"x" * 100)
    (tmp_path / "large").write_bytes(b"x" * 101)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to("nowhere")
    names = ["empty", "exact", "large", "pipe", "dangling", "none", "none/none", "exact/below", ""]
    contents = transport.read_many([f"{tmp_path}/{name}" for name in names], limit_bytes=100)
    assert list(contents.values()) == [
        FileContent(b""),
        FileContent(b"x" * 100),
        FileContent(problem="larger than 100 bytes"),
        FileContent(problem="not a regular file"),
        FileContent(),
        FileContent(),
        FileContent(),
        FileContent(),
        FileContent(problem="not a regular file"),
    ]
    assert transport.read_many([]) == {}


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_read_many_of_a_forbidden_file_says_so(transport: Transport, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.touch(mode=0o000)
    assert transport.read_many([str(path)]) == {str(path): FileContent(problem="Permission denied")}


def test_read_many_of_a_hundred_files(transport: Transport, tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{number}.json") for number in range(100)]
    for path in paths:
        Path(path).write_text(path)
    assert transport.read_many(paths) == {path: FileContent(path.encode()) for path in paths}


def test_read_many_of_growing_files_gives_what_is_behind_their_starts(transport: Transport, tmp_path: Path) -> None:
    for name in ("a", "-b", "short"):
        (tmp_path / name).write_bytes(b"0123456789\n\0\xff")
    paths = {name: f"{tmp_path}/{name}" for name in ("a", "-b", "short", "none")}
    starts = {paths["a"]: 0, paths["-b"]: 8, paths["short"]: 13, paths["none"]: 5}
    found = transport.read_many([*paths.values(), str(tmp_path)], limit_bytes=4, starts=starts)
    assert found == {
        paths["a"]: FileContent(b"0123"),
        paths["-b"]: FileContent(b"89\n\0"),
        paths["short"]: FileContent(b""),
        paths["none"]: FileContent(),
        str(tmp_path): FileContent(problem="not a regular file"),
    }


def test_read_many_of_the_end_of_a_huge_file_costs_as_little_as_of_a_small_one(
    transport: Transport, tmp_path: Path
) -> None:
    path = tmp_path / "huge"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a terabyte would take hours to read
        file.seek(1 << 40)
        file.write(b"the end\n")
    found = transport.read_many([str(path)], limit_bytes=1 << 20, timeout_s=20, starts={str(path): 1 << 40})
    assert found[str(path)] == FileContent(b"the end\n")


@pytest.mark.parametrize("direction", ["push", "pull"])
def test_copy_that_lasts_calls_meanwhile_and_ends_with_what_that_raises(
    transport: Transport, tmp_path: Path, direction: str
) -> None:
    source, target = tmp_path / "big", tmp_path / "there"
    source.write_bytes(os.urandom(3 << 20))
    slow = TransferOptions(bandwidth_limit_kib_per_s=1024)
    calls: list[float] = []

    def tick() -> None:
        calls.append(time.monotonic())

    def give_up() -> None:
        raise KeyError("the run is another's")

    def go() -> None:
        if direction == "push":
            transport.push(source, str(target), slow)
        else:
            transport.pull(str(source), target, slow)

    transport.while_copying = give_up
    with pytest.raises(KeyError):
        go()
    assert not target.exists()
    transport.while_copying = tick
    go()
    assert target.read_bytes() == source.read_bytes()
    assert len(calls) >= 1


def test_read_text_gives_text_or_none_or_an_error(transport: Transport, tmp_path: Path) -> None:
    path = tmp_path / "x"
    assert transport.read_text(str(path)) is None
    path.write_text("ü\r\n")
    assert transport.read_text(str(path)) == "ü\r\n"
    path.write_bytes(b"\xff")
    with pytest.raises(RemoteFileError, match="no UTF-8"):
        transport.read_text(str(path))
    with pytest.raises(RemoteFileError, match="larger than 0 bytes"):
        transport.read_text(str(path), limit_bytes=0)


def test_read_from_follows_a_growing_file(transport: Transport, tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert transport.read_from(str(path), 0, 10) is None
    path.write_bytes(b"0123456789\xff\n")
    first = transport.read_from(str(path), 0, 10)
    assert first is not None
    assert (first.data, first.next_offset, first.size) == (b"0123456789", 10, 12)
    rest = transport.read_from(str(path), first.next_offset, 10)
    assert rest is not None
    assert (rest.data, rest.next_offset, rest.size) == (b"\xff\n", 12, 12)
    path.write_bytes(b"new")
    cut = transport.read_from(str(path), 12, 10)
    assert cut is not None
    assert (cut.data, cut.next_offset, cut.size) == (b"", 12, 3)
    with pytest.raises(RemoteFileError, match="not a regular file"):
        transport.read_from(str(tmp_path), 0, 10)


def make_tree(top: Path) -> dict[str, tuple[int, bytes]]:
    """Make a tree with odd names; return mode and content of each file."""
    files = {
        "a.py": (0o600, b"print()\n"),
        "run.sh": (0o700, b"#!/bin/sh\n"),
        "sub/ü $(x) 'q'.txt": (0o640, b"\0\xff" * 1000),
        "sub/deep/-x": (0o600, b""),
        "sub/deep/[a]*?": (0o600, b"glob"),
        "cache/x.pyc": (0o600, b"x"),
        "output/big": (0o600, b"x" * 10),
    }
    for name, (mode, data) in files.items():
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        path.chmod(mode)
    (top / "sub").chmod(0o700)
    (top / "link").symlink_to("sub/deep")
    return files


def found(top: Path) -> dict[str, tuple[int, bytes]]:
    """Return mode and content of each file of a tree."""
    paths = [path for path in top.rglob("*") if path.is_file() and not path.is_symlink()]
    return {str(path.relative_to(top)): (path.stat().st_mode & 0o7777, path.read_bytes()) for path in paths}


@pytest.mark.parametrize("direction", ["push", "pull"])
def test_copy_of_a_tree_keeps_modes_and_is_not_repeated(transport: Transport, tmp_path: Path, direction: str) -> None:
    source, target = tmp_path / "from here", tmp_path / "far/away/to -there"
    files = make_tree(source)
    options = TransferOptions(excludes=("*.pyc", "/output/"))
    expected = {name: files[name] for name in files if name not in {"cache/x.pyc", "output/big"}}

    def go(how: TransferOptions = options) -> set[str]:
        if direction == "push":
            return set(transport.push(source, str(target), how).files)
        return set(transport.pull(str(source), target, how).files)

    assert go(TransferOptions(options.excludes, is_dry_run=True)) == set(expected)
    assert not target.exists() or not any(target.iterdir())
    assert go() == set(expected)
    assert found(target) == expected
    assert (target / "link").readlink() == Path("sub/deep")
    assert (target / "sub").stat().st_mode & 0o7777 == 0o700
    assert (target.parent.stat().st_mode & 0o7777) == 0o700
    assert go() == set()
    (source / "a.py").write_bytes(b"other()\n")
    assert go() == {"a.py"}
    assert (target / "a.py").read_bytes() == b"other()\n"


@pytest.mark.parametrize("direction", ["push", "pull"])
def test_copy_of_a_file(transport: Transport, tmp_path: Path, direction: str) -> None:
    source, target = tmp_path / "a:b", tmp_path / "new" / "-c d"
    source.write_bytes(b"x" * 5000)
    source.chmod(0o600)
    done = transport.push(source, str(target)) if direction == "push" else transport.pull(str(source), target)
    assert (done.files, done.n_bytes) == (("a:b",), 5000)
    assert (target.read_bytes(), target.stat().st_mode & 0o7777) == (b"x" * 5000, 0o600)


def test_copy_leaves_out_links_that_lead_out(
    transport: Transport, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = tmp_path / "a"
    source.mkdir()
    (source / "bad").symlink_to("/etc/passwd")
    (source / "worse").symlink_to("../b")
    transport.pull(str(source), tmp_path / "b")
    assert list((tmp_path / "b").iterdir()) == []
    assert "bad" in caplog.text
    assert "worse" in caplog.text


@pytest.mark.parametrize("direction", ["push", "pull"])
def test_copy_of_nothing_or_onto_a_folder_is_an_error(transport: Transport, tmp_path: Path, direction: str) -> None:
    def go(source: Path, target: Path) -> object:
        return transport.push(source, str(target)) if direction == "push" else transport.pull(str(source), target)

    with pytest.raises(TransferError, match="No such file"):
        go(tmp_path / "none", tmp_path / "x")
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(TransferError, match="is a directory"):
        go(tmp_path / "file", tmp_path / "folder")


@pytest.mark.parametrize("pattern", ["", "/", "!", "- x", "+ x", "a/**"])
def test_options_refuse_patterns_that_are_rules(pattern: str) -> None:
    with pytest.raises(ValueError, match="no pattern"):
        TransferOptions(excludes=(pattern,))


def test_forward_and_reverse_reach_the_service(transport: Transport) -> None:
    with answering_port() as port:
        for make, end in ((transport.forward, transport.unforward), (transport.reverse, transport.unreverse)):
            address = make("127.0.0.1", port)
            assert make("127.0.0.1", port) == address
            assert ask(address) == b"hello"
            end("127.0.0.1", port)
            end("127.0.0.1", port)
            if address.port != port:
                wait_for(partial(is_refused, address))


def ask(address: tuple[str, int]) -> bytes:
    """Return what a service says first."""
    with socket.create_connection(address, 10) as client:
        return client.recv(100)


def is_refused(address: tuple[str, int]) -> bool:
    """Tell whether nobody listens."""
    try:
        ask(address)
    except ConnectionRefusedError:
        return True
    return False


@contextmanager
def answering_port() -> Iterator[int]:
    """A port whose service says hello."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    client, _ = server.accept()
                except OSError:
                    return
                with client:
                    client.sendall(b"hello")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


@contextmanager
def threaded(look: object) -> Iterator[None]:
    """Call ``look`` again and again meanwhile."""
    done = threading.Event()

    def work() -> None:
        while not done.is_set():
            assert callable(look)
            look()
            time.sleep(0.01)

    thread = threading.Thread(target=work)
    thread.start()
    yield
    done.set()
    thread.join()


def all_argv() -> list[bytes]:
    """Return the argv of every process that can be seen."""
    argv = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            argv.append(path.read_bytes())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return argv
