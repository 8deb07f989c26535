"""What makes virtual environments and installs packages: uv or pip."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from orchestrator.environment.interpreter import Interpreter
from orchestrator.environment.place import Place
from orchestrator.environment.roles import Chosen

_ASK_S = 60.0


@dataclass(frozen=True)
class Installer:
    """One of the two.

    Attributes:
        uv: Path of uv; None for venv and pip.
    """

    uv: str | None = None

    @property
    def name(self) -> str:
        """Its name."""
        return "pip" if self.uv is None else "uv"

    def venv(self, python: str, folder: str) -> list[str]:
        """Return the command that makes a virtual environment."""
        if self.uv is None:
            return [python, "-m", "venv", folder]
        return [self.uv, "venv", "--quiet", "--no-project", "--python", python, folder]

    def installs(self, python: str, locked: str, own: str, chosen: Chosen, source: str | None) -> list[list[str]]:
        """Return the commands that install.

        Args:
            python: Interpreter of the virtual environment.
            locked: File of packages that need no resolver.
            own: File of requirements that are resolved within their versions.
            chosen: Tells which of the files have anything in them.
            source: Folder of wheels to install from; None for an index.
        """
        if self.uv is None:
            common = [python, "-m", "pip", "install", "--quiet", "--no-input", "--progress-bar", "off"]
        else:
            common = [self.uv, "pip", "install", "--quiet", "--python", python]
        if source is not None:
            common += ["--no-index", "--find-links", source]
        commands = [[*common, "--no-deps", "--requirement", locked]] if chosen.locked else []
        return [*commands, *([[*common, "--requirement", own, "--constraint", locked]] if chosen.loose else [])]


def choose_installer(place: Place, python: Interpreter, is_offline: bool) -> tuple[Installer | None, str]:
    """Return what installs there, and why; None if nothing does.

    uv is quicker, but does not read pip's configuration: an index or a proxy named there is the user's choice.
    """
    uv = _find_uv(place)
    if uv is not None and (is_offline or not python.has_index):
        return Installer(uv), f"uv ({uv})"
    if not python.has_venv:
        return (
            (None, "it has no ensurepip (Debian: python3-venv), and there is no uv")
            if uv is None
            else (
                None,
                "it has no ensurepip (Debian: python3-venv); uv does not read the index of pip's configuration",
            )
        )
    return Installer(), "pip: no uv is there" if uv is None else "pip: uv would not read pip's configuration"


def _find_uv(place: Place) -> str | None:
    own = Path(sys.executable).with_name("uv")
    if place.is_here and own.is_file():
        return str(own)
    answer = place.run(["sh", "-c", "command -v uv"], _ASK_S)
    found = answer.stdout.strip().splitlines()
    return found[-1] if answer.returncode == 0 and found else None
