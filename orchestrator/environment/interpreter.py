"""The interpreter that an environment is made of: what it is, and which packages fit it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from packaging.tags import Tag, compatible_tags, cpython_tags

from orchestrator.sitecheck.packages import PYTHON_FOR_JOBS

NEWEST_MINOR = 13
"""Newest Python 3 that the project's packages are locked for: `requires-python` of pyproject.toml."""
_SIGN = "orch-interpreter "
# Oldest glibc that a manylinux tag stands for: PEP 600; x86_64 alone had tags before PEP 599.
_OLDEST_GLIBC_MINOR = {"x86_64": 5}
_OTHERS_OLDEST_MINOR = 17
_LEGACY = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
# For any Python from 2.7 on: an old one has to be told as such. Files that pip reads: its user guide, Configuration.
PROBE = """\
import json, os, platform, sys
try:
    import ensurepip, venv
    has_venv = True
except ImportError:
    has_venv = False
try:
    libc = os.confstr("CS_GNU_LIBC_VERSION") or ""
except (AttributeError, ValueError):
    libc = ""
names = ("index", "find-links", "proxy", "cert", "trusted-host")
has_index = any(key.startswith("PIP_") and any(name in key.lower().replace("_", "-") for name in names)
                for key in os.environ)
home = os.path.expanduser("~")
config = os.environ.get("XDG_CONFIG_HOME") or home + "/.config"
own = os.environ.get("PIP_CONFIG_FILE", "")
paths = ["/etc/pip.conf", "/etc/xdg/pip/pip.conf", home + "/.pip/pip.conf", config + "/pip/pip.conf",
         sys.prefix + "/pip.conf", own]
for path in [] if own == os.devnull else paths:
    try:
        with open(path) as file:
            has_index = has_index or any(name in line.split("=")[0].replace("_", "-")
                                         for line in file if "=" in line for name in names)
    except (IOError, OSError):
        pass
print("orch-interpreter " + json.dumps({
    "version": list(sys.version_info[:3]), "executable": sys.executable, "name": sys.implementation.name
    if hasattr(sys, "implementation") else "cpython", "machine": platform.machine(),
    "release": platform.release(), "libc": libc, "has_venv": has_venv, "has_index": has_index}))
"""


@dataclass(frozen=True)
class Interpreter:
    """What an interpreter said of itself.

    Attributes:
        executable: Its absolute path.
        version: Of Python.
        implementation: `cpython`, …
        machine: Of the processor, such as `x86_64`.
        glibc: Version of the C library; None where it is another one.
        has_venv: Whether it has both venv and ensurepip.
        has_index: Whether the user's pip configuration there names an index, a proxy or a certificate.
    """

    executable: str
    version: tuple[int, int, int]
    implementation: str
    machine: str
    glibc: tuple[int, int] | None
    has_venv: bool
    has_index: bool

    def __str__(self) -> str:
        return ".".join(map(str, self.version))

    @property
    def minor_name(self) -> str:
        """Its name with its minor version, such as `python3.12`."""
        return f"python{self.version[0]}.{self.version[1]}"

    @property
    def is_fit(self) -> bool:
        """Whether the project's packages are locked for it."""
        fits = PYTHON_FOR_JOBS <= self.version[:2] <= (3, NEWEST_MINOR)
        return fits and self.implementation == "cpython"

    def platforms(self) -> list[str]:
        """Return the platform tags of wheels that run there, best first (PEP 600)."""
        found = []
        if self.glibc is not None and self.glibc[0] == 2:
            oldest = _OLDEST_GLIBC_MINOR.get(self.machine, _OTHERS_OLDEST_MINOR)
            for minor in range(self.glibc[1], oldest - 1, -1):
                found.append(f"manylinux_2_{minor}_{self.machine}")
                found += [f"{_LEGACY[minor]}_{self.machine}"] if minor in _LEGACY else []
        return [*found, f"linux_{self.machine}"]

    def tags(self) -> Iterator[Tag]:
        """Yield the tags of wheels that run there, best first."""
        version, name = self.version[:2], f"cp{self.version[0]}{self.version[1]}"
        yield from cpython_tags(version, [name], self.platforms())
        yield from compatible_tags(version, name, self.platforms())

    def marker_environment(self) -> dict[str, str]:
        """Return the values of a requirement's environment markers there (PEP 508)."""
        return {
            "implementation_name": self.implementation,
            "implementation_version": str(self),
            "os_name": "posix",
            "platform_machine": self.machine,
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": str(self),
            "python_version": f"{self.version[0]}.{self.version[1]}",
            "sys_platform": "linux",
        }


def parse_probe(text: str) -> Interpreter | None:
    """Return what PROBE printed; None if it did not."""
    line = next((line for line in text.splitlines() if line.startswith(_SIGN)), None)
    if line is None:
        return None
    said: Mapping[str, Any] = json.loads(line.removeprefix(_SIGN))
    name, _, version = said["libc"].partition(" ")
    parts = version.split(".")
    is_glibc = name == "glibc" and len(parts) >= 2 and all(part.isdigit() for part in parts[:2])
    major, minor, micro = said["version"]
    return Interpreter(
        executable=said["executable"],
        version=(major, minor, micro),
        implementation=said["name"],
        machine=said["machine"],
        glibc=(int(parts[0]), int(parts[1])) if is_glibc else None,
        has_venv=said["has_venv"],
        has_index=said["has_index"],
    )
