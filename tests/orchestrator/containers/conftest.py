"""A stand-in for Apptainer, which behaves as a test wants, and orch.py with it on PATH."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.builders import ProgramFolder

PROJECT = Path(__file__).parents[3]
# What it does when asked for an image: words are looked for in the file "how".
APPTAINER = r"""
cd_folder=%s
case $1 in
  --version) echo "apptainer version 1.4.5"; exit ;;
  inspect) grep -qs unreadable "$cd_folder/how" && { echo "FATAL: no SIF" >&2; exit 255; }; exit 0 ;;
esac
for word in "$@"; do case $word in build | pull | -*) ;; *) image=$word; break ;; esac; done
echo "$APPTAINER_TMPDIR|$SINGULARITY_TMPDIR|$APPTAINER_DISABLE_CACHE" >"$cd_folder/environment"
touch "$APPTAINER_TMPDIR/rootfs"
case $(cat "$cd_folder/how" 2>/dev/null) in
  slow) touch "$cd_folder/started"; while [[ ! -e $cd_folder/go ]]; do sleep 0.05; done ;;
  refused) echo "FATAL: while pulling: connection refused" >&2; exit 255 ;;
  full) head -c 16M /dev/zero >"$image" || { echo "FATAL: write $image: no space left on device" >&2; exit 255; } ;;
  quota) head -c 1M /dev/zero >"$image"; echo "FATAL: write $image: disk quota exceeded" >&2; exit 255 ;;
  garbage) echo "<html>login</html>" >"$image"; exit 0 ;;
  cut) head -c 500 "$cd_folder/sif" >"$image"; exit 0 ;;
esac
cp "$cd_folder/sif" "$image"
"""


def sif_bytes(size: int = 4096) -> bytes:
    """Return a file of ``size`` bytes with the header of a SIF image."""
    header = b"#!/usr/bin/env run-singularity\n".ljust(32, b"\0") + b"SIF_MAGIC\0" + b"01\0" + b"02\0" + bytes(16)
    header += struct.pack("<6q", 0, 0, 0, 0, 128, 0) + struct.pack("<qq", 128, size - 128)
    return header + os.urandom(size - len(header))


class FakeApptainer:
    """The stand-in, and a store for its images."""

    def __init__(self, folder: Path) -> None:
        self.programs, self.store = ProgramFolder(folder / "bin"), folder / "store"
        self.folder = self.programs.folder
        self.sif = sif_bytes()
        (self.folder / "sif").write_bytes(self.sif)
        self.install("apptainer")

    def install(self, name: str) -> None:
        """Put it on PATH under a name."""
        self.programs.add(name, APPTAINER % self.folder)

    def behave(self, how: str) -> None:
        """Choose what it does."""
        (self.folder / "how").write_text(how)

    def let_go(self) -> None:
        """End the wait of a slow one."""
        (self.folder / "go").touch()

    @property
    def has_started(self) -> bool:
        """Whether a slow one is at work."""
        return (self.folder / "started").exists()

    @property
    def makings(self) -> list[str]:
        """The calls that make an image."""
        return [call for call in self.programs.calls("apptainer") if call.startswith(("build", "pull"))]

    def left(self) -> list[str]:
        """Return what is in the store beside images, locks and leases."""
        hidden = [path.name for path in self.store.iterdir() if path.name.startswith(".")]
        return [name for name in hidden if not name.endswith((".lock", ".lease"))]

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start `orch.py containers` on the store."""
        argv = [sys.executable, str(PROJECT / "orch.py"), "containers", *arguments, f"--dir={self.store}"]
        env = {**os.environ, "PATH": self.programs.path, "XDG_CONFIG_HOME": str(self.folder)}
        return subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """Return exit code, standard output and standard error of `orch.py containers`."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeApptainer:
    """The stand-in, on this process' PATH as well."""
    found = FakeApptainer(tmp_path)
    monkeypatch.setenv("PATH", found.programs.path)
    return found


@pytest.fixture
def begin(fake: FakeApptainer) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start commands; whatever still runs at the end of the test is killed."""
    processes: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        processes.append(fake.start(*arguments))
        return processes[-1]

    yield start
    fake.let_go()
    for process in processes:
        process.kill()
        process.communicate()
