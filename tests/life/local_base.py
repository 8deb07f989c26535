"""File systems for images without a registry: this machine's programs, and packages from PyPI or uv's cache."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from pathlib import Path

_FOLDERS = ("dev", "etc", "home", "proc", "root", "sys", "tmp", "usr/bin", "usr/lib", "usr/lib64", "var/tmp")
_SKIPPED = ("test", "tests", "__pycache__", "EXTERNALLY-MANAGED", "site-packages", "dist-packages", "config-*")
PYTHON, STDLIB = Path(sys.executable).resolve(), Path(sysconfig.get_path("stdlib"))
SHELL = Path("/bin/sh").resolve()


def make_root(root: Path) -> None:
    """Make a folder with a file system in which `sh` runs."""
    for name in _FOLDERS:
        (root / name).mkdir(parents=True)
    for name in ("bin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    for name in ("passwd", "group"):
        (root / "etc" / name).touch()
    _copy(SHELL, root)
    (root / "usr/bin/sh").symlink_to(f"/usr/bin/{SHELL.name}")
    _copy_libraries([SHELL], root)


def make_base(root: Path, packages: Sequence[str]) -> None:
    """Make a folder with a file system in which `sh` and `python3 -m pip` run.

    Args:
        root: The folder; made.
        packages: Requirements that are installed, beside pip.

    Raises:
        subprocess.CalledProcessError: a package cannot be had.
    """
    make_root(root)
    _copy(PYTHON, root)
    (root / "usr/bin/python3").symlink_to(PYTHON)
    shutil.copytree(STDLIB, root / STDLIB.relative_to("/"), ignore=shutil.ignore_patterns(*_SKIPPED))
    where = "import site; print(site.getsitepackages()[0])"
    site = subprocess.run([PYTHON, "-c", where], capture_output=True, text=True, check=True).stdout.strip()
    target = root / site.lstrip("/")
    uv = shutil.which("uv") or str(Path(sys.prefix) / "bin" / "uv")
    argv = [uv, "pip", "install", "--quiet", f"--python={PYTHON}", f"--target={target}", "pip", *packages]
    subprocess.run(argv, capture_output=True, text=True, check=True)
    _copy_libraries([PYTHON, *STDLIB.glob("lib-dynload/*.so"), *target.rglob("*.so")], root)


def _copy_libraries(programs: Iterable[Path], root: Path) -> None:
    """Copy the shared libraries of programs, the loader among them."""
    said = subprocess.run(["ldd", *programs], capture_output=True, text=True, check=True).stdout
    for path in set(re.findall(r"(?:=> |\t)(/\S+) \(", said)):
        _copy(path, root)


def _copy(path: Path | str, root: Path) -> None:
    target = root / os.path.normpath(path).lstrip("/")
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
