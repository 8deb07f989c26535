"""The catalogue: what containers/*.def say of each image."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from orchestrator.errors import UserError

DEFINITIONS = Path(__file__).resolve().parents[2] / "containers"
_FROM = re.compile(r"^From: \{\{ REGISTRY \}\}/(\S+):([\w.-]+)$", re.MULTILINE)
_REGISTRY = re.compile(r"^    REGISTRY=(\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Definition:
    """One image as it is to be.

    Attributes:
        name: Of its file.
        path: The definition file.
        base: What it is made from, below the registry: ``prom/prometheus:v2.55.1``.
        registry: Where that is, if no mirror is named.
        is_built: Whether something is installed into it; otherwise it is pulled as it is.
        version: The base's tag, or the definition's hash where something is installed.
    """

    name: str
    path: Path
    base: str
    registry: str
    is_built: bool
    version: str

    @property
    def folder(self) -> str:
        """Name of its folder in a store."""
        return f"{self.name}-{self.version}"


@lru_cache(maxsize=4)
def catalogue(folder: Path = DEFINITIONS) -> Mapping[str, Definition]:
    """Return all images by name, in order.

    Raises:
        ValueError: a definition lacks a pinned base or a registry.
    """
    return {path.stem: _read(path) for path in sorted(folder.glob("*.def"))}


def _read(path: Path) -> Definition:
    text = path.read_text(encoding="utf-8")
    base, registry = _FROM.search(text), _REGISTRY.search(text)
    if base is None or registry is None or base[2] == "latest":
        raise ValueError(f"{path}: `From: {{{{ REGISTRY }}}}/NAME:VERSION` and a default of REGISTRY are needed")
    is_built = re.search("^%post$", text, re.MULTILINE) is not None
    version = hashlib.sha256(text.encode()).hexdigest()[:8] if is_built else base[2]
    return Definition(path.stem, path, f"{base[1]}:{base[2]}", registry[1], is_built, version)


def definition_of(name: str) -> Definition:
    """Return an image by its name.

    Raises:
        UserError: there is none.
    """
    try:
        return catalogue()[name]
    except KeyError:
        raise UserError(f"'{name}' is no image of containers/.\nAllowed: {', '.join(catalogue())}.") from None
