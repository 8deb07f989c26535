"""Whether programs and Python packages that jobs need are installed."""

from __future__ import annotations

import shutil
import subprocess
from functools import lru_cache


def is_installed(program: str) -> bool:
    """Return whether ``program`` (a path or a name) can be run here."""
    return shutil.which(program) is not None


@lru_cache(maxsize=64)
def missing_packages(python: str, packages: tuple[str, ...]) -> tuple[str, ...] | None:
    """Return which of ``packages`` the interpreter cannot find, or None if the interpreter cannot be run here."""
    code = (
        "import importlib.util, sys; print(*[name for name in sys.argv[1:] if importlib.util.find_spec(name) is None])"
    )
    try:
        done = subprocess.run([python, "-c", code, *packages], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return tuple(done.stdout.split())
