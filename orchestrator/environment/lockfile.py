"""The project's own versions: what of uv.lock belongs into an environment.

Format of the file: https://docs.astral.sh/uv/concepts/projects/layout/#the-lockfile and, as its fields are not
described there, uv's own writer. A fork of the resolution is chosen by markers; extras of the project that exclude each
other are named `extra-<length of the project's name>-<project>-<extra>` in them.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.markers import Marker
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from orchestrator.environment.interpreter import Interpreter
from orchestrator.errors import ProgramMissingError, UserError

# Measured: installed size over the wheel's. Nearly all of NVIDIA's is code that is packed hardly at all.
UNPACKED, UNPACKED_NVIDIA = 3.3, 1.2


@dataclass(frozen=True)
class Locked:
    """One package in the version that the project is tested with.

    Attributes:
        wheel_bytes: Size of the wheel that fits best; of the source archive if none does.
        has_wheel: Whether any fits.
    """

    name: str
    version: str
    wheel_bytes: int
    has_wheel: bool

    @property
    def installed_bytes(self) -> int:
        """About what it takes when it is installed."""
        return int(self.wheel_bytes * (UNPACKED_NVIDIA if self.name.startswith("nvidia-") else UNPACKED))

    def __str__(self) -> str:
        return f"{self.name}=={self.version}"


class LockFile:
    """The project's uv.lock."""

    def __init__(self, path: Path) -> None:
        """Read it.

        Raises:
            ProgramMissingError: it is not there or cannot be read.
        """
        self._path = path
        try:
            document = tomllib.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise ProgramMissingError(f"{path}: {error}\nIt belongs to a clone of orch: bring it back.") from error
        self._packages: dict[str, list[Mapping[str, Any]]] = {}
        for package in document.get("package", ()):
            self._packages.setdefault(package["name"], []).append(package)
        found = [package for package in document.get("package", ()) if "virtual" in package.get("source", {})]
        if len(found) != 1:
            raise ProgramMissingError(f"{path}: it does not say which package is the project.")
        self._project = found[0]

    def direct(self, extra: str | None = None) -> list[str]:
        """Return the names of what the project itself asks for, or one of its extras.

        Raises:
            UserError: there is no such extra.
        """
        if extra is None:
            return list(dict.fromkeys(edge["name"] for edge in self._project["dependencies"]))
        extras = self._project.get("optional-dependencies", {})
        if extra not in extras:
            raise UserError(f"{self._path} has no extra '{extra}'.\nKnown: {', '.join(sorted(extras))}.")
        return list(dict.fromkeys(edge["name"] for edge in extras[extra]))

    def version(self, name: str) -> str:
        """Return the version of a package that has only one.

        Raises:
            UserError: it has none, or several.
        """
        versions = {package["version"] for package in self._packages.get(name, ())}
        if len(versions) != 1:
            raise UserError(f"{self._path} has {len(versions)} versions of {name}; exactly one is needed.")
        return str(versions.pop())

    def closure(self, names: Iterable[str], extra: str | None, python: Interpreter) -> list[Locked]:
        """Return packages with everything that they need on ``python``, by name.

        Args:
            names: Of packages that the project asks for.
            extra: Extra of the project whose versions are meant where they differ.
            python: What they are for.

        Raises:
            UserError: the project does not ask for one of them, or none of its versions is for ``python``.
        """
        project: str = self._project["name"]
        environment = python.marker_environment()
        environment["extra"] = f"extra-{len(project)}-{project}-{extra}" if extra else ""
        own = [*self._project["dependencies"]]
        own += self._project.get("optional-dependencies", {}).get(extra, []) if extra else []
        wanted = {canonicalize_name(name) for name in names}
        todo = [edge for edge in own if edge["name"] in wanted and _applies(edge, environment)]
        missing = wanted - {edge["name"] for edge in todo}
        if missing:
            raise UserError(f"{self._path}: {', '.join(sorted(missing))} is not among what the project asks for.")
        chosen: dict[str, Mapping[str, Any]] = {}
        seen: set[tuple[str, str]] = set()
        while todo:
            edge = todo.pop()
            package = self._package(edge, environment)
            chosen[package["name"]] = package
            for part in ("", *edge.get("extra", ())):
                if (package["name"], part) in seen:
                    continue
                seen.add((package["name"], part))
                edges = (
                    package.get("optional-dependencies", {}).get(part, []) if part else package.get("dependencies", [])
                )
                todo += [edge for edge in edges if _applies(edge, environment)]
        ranks = {tag: rank for rank, tag in reversed(list(enumerate(python.tags())))}
        return [_locked(chosen[name], ranks) for name in sorted(chosen)]

    def _package(self, edge: Mapping[str, Any], environment: Mapping[str, str]) -> Mapping[str, Any]:
        found = [
            package for package in self._packages[edge["name"]] if edge.get("version") in {None, package["version"]}
        ]
        if len(found) > 1:
            found = [package for package in found if _is_for(package.get("resolution-markers", ()), environment)]
        if len(found) != 1:
            python = environment["python_full_version"]
            raise UserError(f"{self._path}: no single version of {edge['name']} is for Python {python}.")
        return found[0]


def _applies(edge: Mapping[str, Any], environment: Mapping[str, str]) -> bool:
    return "marker" not in edge or Marker(edge["marker"]).evaluate(dict(environment))


def _is_for(markers: Sequence[str], environment: Mapping[str, str]) -> bool:
    return any(Marker(marker).evaluate(dict(environment)) for marker in markers)


def _locked(package: Mapping[str, Any], ranks: Mapping[Any, int]) -> Locked:
    best: tuple[int, int] | None = None
    for wheel in package.get("wheels", ()):
        try:
            *_, tags = parse_wheel_filename(wheel["url"].rpartition("/")[2])
        except InvalidWheelFilename:
            continue
        rank = min((ranks[tag] for tag in tags if tag in ranks), default=None)
        if rank is not None and (best is None or rank < best[0]):
            best = (rank, wheel.get("size", 0))
    source = package.get("sdist", {}).get("size", 0)
    return Locked(package["name"], package["version"], source if best is None else best[1], best is not None)
