"""orch.py env create in a home of its own, with a wheel made on the spot and no network."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.hosts import PROJECT

# Nothing listens there: who asks an index gets an error.
NO_INDEX = "http://127.0.0.1:9/simple"
SLOW = "import pathlib, time\npathlib.Path({mark!r}).write_text('up')\ntime.sleep(300)\n"


def make_wheel(folder: Path, version: str, body: str = "", name: str = "orch_tiny") -> Path:
    """Make a wheel with one module; ``body`` is its text."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}/__init__.py": body,
        f"{name}/later.py": f"VERSION = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(path, "w") as wheel:
        for member, text in files.items():
            wheel.writestr(member, text)
        wheel.writestr(f"{info}/RECORD", "".join(f"{member},,\n" for member in [*files, f"{info}/RECORD"]))
    return path


class Maker:
    """One user's folder, in which environments are made."""

    def __init__(self, folder: Path, runtime_dir: Path) -> None:
        self.folder = folder
        self.path = folder / "my 'envs'" / "env"
        self.wheelhouse = folder / "wheel house"
        self.requirements = folder / "own.txt"
        self.home = folder / "home"
        self.shims = folder / "shims"
        self.home.mkdir()
        self.shims.mkdir()
        self.environment = {
            "HOME": str(self.home),
            "PATH": f"{self.shims}:/usr/local/bin:/usr/bin:/bin",
            "XDG_RUNTIME_DIR": str(runtime_dir),
            "PIP_INDEX_URL": NO_INDEX,
            "PIP_RETRIES": "0",
            "COLUMNS": "80",
            "LANG": "C.UTF-8",
        }
        self.ask_for("1.0")

    def ask_for(self, version: str, body: str = "") -> None:
        """Let the next environment have this version of the small package."""
        make_wheel(self.wheelhouse, version, body)
        self.requirements.write_text(f"# our own\n\norch-tiny=={version}  # small\n")

    def argv(self, *more: str | Path, path: Path | str | None = None) -> list[str]:
        """Return the command line."""
        argv = ["env", "create", "--for", "none", "--path", str(path or self.path), "--python", sys.executable]
        argv += ["--wheelhouse", str(self.wheelhouse), "--requirements", str(self.requirements)]
        argv += ["--output-dir", str(self.folder / "output"), *map(str, more)]
        return [sys.executable, str(PROJECT / "orch.py"), *argv]

    def make(self, *more: str | Path, path: Path | str | None = None) -> subprocess.CompletedProcess[str]:
        """Make an environment; nobody ever sees a traceback."""
        argv = self.argv(*more, path=path)
        done = subprocess.run(argv, env=self.environment, capture_output=True, text=True, timeout=200)
        assert "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
        return done

    def start(self, *more: str | Path) -> subprocess.Popen[str]:
        """Begin to make one."""
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(self.argv(*more), env=self.environment, start_new_session=True, **pipes)

    def beside(self) -> list[str]:
        """Return the names of the environments beside the path, the path's own included."""
        return sorted(item.name for item in self.path.parent.iterdir() if item.is_dir())

    def version(self) -> str:
        """Return the version of the small package that the path leads to."""
        code = "import orch_tiny.later; print(orch_tiny.later.VERSION)"
        argv = [str(self.path / "bin" / "python"), "-c", code]
        return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()

    def shim(self, name: str, script: str) -> None:
        """Put a program in front of PATH."""
        (self.shims / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.shims / name).chmod(0o755)


@pytest.fixture
def runtime_dir() -> Iterator[Path]:
    """A private place for control sockets, short enough for one."""
    folder = Path(tempfile.mkdtemp(prefix="o-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def maker(tmp_path: Path, runtime_dir: Path) -> Maker:
    return Maker(tmp_path, runtime_dir)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    """Wait until a file is there."""
    deadline = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def step(done: subprocess.CompletedProcess[str], name: str) -> dict[str, Any]:
    """Return a step of ``--json``."""
    found: dict[str, Any] = next(item for item in json.loads(done.stdout)["steps"] if item["name"] == name)
    return found


def processes_in(folder: Path) -> list[int]:
    """Return the processes that were started from a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if os.fsencode(folder) in path.read_bytes():
                found.append(int(path.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return [pid for pid in found if pid != os.getpid()]
