"""The proof of an environment: its packages import, under its own interpreter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_SIGN = "orch-proof "
# Runs in the new environment: 3.11 or newer. A package may bring several import names; the one of its own name counts.
PROVE = """\
import importlib, json, platform, re, sys
from importlib import metadata
asked = json.loads(sys.argv[1])
plain = lambda name: re.sub(r"[-_.]+", "-", name).lower()
tops = {}
for top, names in metadata.packages_distributions().items():
    for name in names:
        tops.setdefault(plain(name), []).append(top)
versions, problems = {}, []
if sys.prefix != asked["prefix"]:
    problems.append("it runs in " + sys.prefix + ", not in " + asked["prefix"])
modules = list(asked["imports"])
for name in asked["names"]:
    try:
        versions[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        problems.append(name + " is not installed")
        continue
    found = [top for top in tops.get(plain(name), []) if top.isidentifier() and not top.startswith("_")]
    modules += [top for top in found if plain(top) == plain(name)] or found
for module in dict.fromkeys(modules):
    try:
        importlib.import_module(module)
    except Exception as error:
        problems.append("import " + module + ": " + type(error).__name__ + ": " + (str(error).splitlines() or [""])[0])
print("\\norch-proof " + json.dumps({"python": platform.python_version(), "versions": versions, "problems": problems}))
"""


@dataclass(frozen=True)
class Proof:
    """What an environment showed.

    Attributes:
        python: Its version.
        versions: Of the packages that were asked for.
        problems: Why it cannot be used.
    """

    python: str
    versions: Mapping[str, str]
    problems: tuple[str, ...]


def parse_proof(text: str) -> Proof | None:
    """Return what PROVE printed; None if it did not."""
    line = next((line for line in text.splitlines() if line.startswith(_SIGN)), None)
    if line is None:
        return None
    said: Any = json.loads(line.removeprefix(_SIGN))
    return Proof(said["python"], said["versions"], tuple(said["problems"]))
