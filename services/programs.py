"""Whether programs and Python packages that jobs need are installed."""

from __future__ import annotations

import shutil
from functools import lru_cache

from orchestrator.service import PlanContext
from orchestrator.transports import LocalTransport, Transport

_FIND = "import importlib.util, sys; print(*[name for name in sys.argv[1:] if importlib.util.find_spec(name) is None])"


def is_installed(program: str) -> bool:
    """Return whether ``program`` (a path or a name) can be run here."""
    return shutil.which(program) is not None


def missing_packages(context: PlanContext, python: str, packages: tuple[str, ...]) -> tuple[str, ...] | None:
    """Return which of ``packages`` the host's interpreter cannot find, or None if it cannot be run there."""
    return _missing_here(python, packages) if context.is_here else _missing_there(context.transport, python, packages)


@lru_cache(maxsize=64)
def _missing_here(python: str, packages: tuple[str, ...]) -> tuple[str, ...] | None:
    return _missing_there(LocalTransport(), python, packages)


def _missing_there(transport: Transport, python: str, packages: tuple[str, ...]) -> tuple[str, ...] | None:
    answer = transport.run([python, "-c", _FIND, *packages], 60.0)
    return tuple(answer.stdout.split()) if answer.returncode == 0 else None
