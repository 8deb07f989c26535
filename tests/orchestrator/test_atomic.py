"""Files that are whole or not there, private whatever the umask."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.atomic import append_line, make_private_dir, point_link, read_json, write_json, write_text
from orchestrator.errors import StorageError

PROJECT = Path(__file__).parents[2]
FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from orchestrator.atomic import append_line, write_text
from orchestrator.errors import StorageError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    {"write": write_text, "append": append_line}[sys.argv[1]](Path(sys.argv[2]), "x" * 100_000)
except StorageError as error:
    print(error)
    sys.exit(error.exit_code)
"""


@pytest.fixture(params=[0o000, 0o077, 0o022, 0o777])
def _umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def mode_of(path: Path) -> int:
    """Return the permission bits of ``path``."""
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.usefixtures("_umask")
def test_files_and_folders_are_private_whatever_the_umask(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)  # pytest may have made it under the umask of this test
    folder = make_private_dir(tmp_path / "a" / "b")
    write_text(folder / "text", "x")
    write_json(folder / "json", {})
    append_line(folder / "lines", "x")
    assert [mode_of(path) for path in (folder.parent, folder)] == [0o700, 0o700]
    assert [mode_of(folder / name) for name in ("text", "json", "lines")] == [0o600, 0o600, 0o600]


def test_make_private_dir_leaves_folders_that_were_there_alone(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir(mode=0o755)
    make_private_dir(tmp_path / "there" / "new")
    assert mode_of(tmp_path / "there") == 0o755


def test_make_private_dir_below_a_file_fails_and_leaves_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    path.chmod(0o644)
    for wanted in (path, path / "run"):
        with pytest.raises(StorageError, match="cannot write"):
            make_private_dir(wanted)
    assert mode_of(path) == 0o644


def test_write_text_replaces_the_whole_content(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_text(path, "long content ü")
    write_text(path, "new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_write_text_on_a_full_disk_keeps_the_old_content_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_text(path, "old")
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, "write", str(path)], cwd=PROJECT, capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr
    assert f"cannot write {path}: File too large" in done.stdout
    assert "--output-dir" in done.stdout
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_append_line_on_a_full_disk_says_so_and_the_next_line_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "f"
    append_line(path, "first")
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, "append", str(path)], cwd=PROJECT, capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr
    assert "File too large" in done.stdout
    append_line(path, "last")
    lines = path.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("first", "last")


def test_append_line_after_a_torn_line_starts_a_line_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text('{"a": 1}\n{"b"')
    append_line(path, "c")
    append_line(path, "d")
    assert path.read_text() == '{"a": 1}\n{"b"\nc\nd\n'


def test_write_text_where_nothing_may_be_written_is_a_storage_error(tmp_path: Path) -> None:
    for function in (write_text, append_line):
        with pytest.raises(StorageError, match="No such file or directory"):
            function(tmp_path / "none" / "f", "x")


def test_write_text_seen_by_readers_is_old_or_new_but_never_a_part(tmp_path: Path) -> None:
    path = tmp_path / "f"
    texts = {letter * 200_000 for letter in "ab"}
    write_text(path, "a" * 200_000)
    seen: set[str] = set()
    is_over = threading.Event()

    def read() -> None:
        while not is_over.is_set():
            seen.add(path.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(20):
        for text in sorted(texts):
            write_text(path, text)
    is_over.set()
    reader.join()
    assert seen <= texts


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_write_json_of_what_json_cannot_say_is_refused(value: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "f", {"a": value})
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize("content", [b"", b'{"a": ', b"\xff\xfe", b"nonsense"])
def test_read_json_of_a_damaged_file_is_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(content)
    assert read_json(tmp_path / "f") is None
    assert read_json(tmp_path / "missing") is None


def test_read_json_gives_what_write_json_wrote(tmp_path: Path) -> None:
    value = {"ü": [1, None, "a\nb"]}
    write_json(tmp_path / "f", value)
    assert read_json(tmp_path / "f") == value == json.loads((tmp_path / "f").read_text())


def test_point_link_replaces_an_older_link(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        point_link(tmp_path / "latest", name)
    assert (tmp_path / "latest").resolve() == tmp_path / "two"


def test_point_link_over_a_folder_fails_and_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "latest").mkdir()
    with pytest.raises(StorageError):
        point_link(tmp_path / "latest", "one")
    assert [path.name for path in tmp_path.iterdir()] == ["latest"]


@pytest.mark.parametrize("text", ["half \ud83d of a pair", "\udcff"])
def test_half_a_character_is_written_as_an_escape_and_loses_nothing_else(text: str, tmp_path: Path) -> None:
    # An LLM's JSON may hold such an escape; Python reads it, and UTF-8 cannot write it.
    write_text(tmp_path / "text", f"before {text} after")
    append_line(tmp_path / "lines", f"before {text} after")
    write_json(tmp_path / "json", {"answer": text})
    for name in ("text", "lines"):
        written = (tmp_path / name).read_bytes().decode("utf-8")
        assert written.startswith("before ")
        assert written.rstrip("\n").endswith(" after")
        assert "\\ud" in written
    assert read_json(tmp_path / "json") == {"answer": text}


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 100_000, "1" * 5000, '{"a": ' + "9" * 5000 + "}"])
def test_read_json_of_what_is_too_deep_or_too_long_is_none(content: str, tmp_path: Path) -> None:
    (tmp_path / "f").write_text(content)
    assert read_json(tmp_path / "f") is None
