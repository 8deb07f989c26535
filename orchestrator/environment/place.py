"""Where an environment lies: its path, what is there already, and the ways to run something in it."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from secrets import token_hex

from orchestrator.errors import OrchError, TransportError, UserError
from orchestrator.recipe.hosts import HERE
from orchestrator.render import render
from orchestrator.sitecheck.visit import Visit, last_words
from orchestrator.transports import Answer

PROOF = "orch-environment.json"
"""Written last into a folder: what was proven there."""
_STAMP = re.compile(r"\.\d{8}T\d{6}Z-[0-9a-f]{4}")
_NOT_OURS = frozenset({"/", "/usr", "/usr/local", "/opt"})
# $1 path. Environments without a proof were not finished.
_LOOK = f"""
LC_ALL=C; export LC_ALL
if [ -L "$1" ]; then printf 'link %s\\n' "$(readlink -- "$1")"; elif [ -e "$1" ]; then echo "other yes"; fi
near=$(dirname -- "$1")
while [ ! -d "$near" ]; do near=$(dirname -- "$near"); done
printf 'near %s\\n' "$near"
if [ -w "$near" ]; then echo "writable yes"; fi
df -Pk -- "$near" | awk 'NR == 2 {{ print "free_kib " $4 }}'
for old in "$1".*; do
  [ -d "$old" ] && [ ! -L "$old" ] || continue
  if [ -f "$old/{PROOF}" ]; then printf 'whole %s\\n' "${{old##*/}}"; else printf 'broken %s\\n' "${{old##*/}}"; fi
done
"""


@dataclass(frozen=True)
class Found:
    """What lies at an environment's path.

    Attributes:
        target: Name of the folder that the path leads to; empty if there is nothing yet.
        whole: Names of finished environments beside it, oldest first.
        broken: The same of those that were never finished.
        folder: The nearest folder above it that is there.
        free_bytes: Free space in it.
    """

    target: str
    whole: tuple[str, ...]
    broken: tuple[str, ...]
    folder: str
    free_bytes: int

    @property
    def old(self) -> tuple[str, ...]:
        """Finished environments that the path does not lead to."""
        return tuple(name for name in self.whole if name != self.target)


@dataclass
class Place:
    """One environment to be made.

    Attributes:
        visit: The machine; its folder is the environment's path, absolute once the login was tried.
        stamp: Marks the folder that is made now.
    """

    visit: Visit
    stamp: str = field(default_factory=lambda: time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()) + f"-{token_hex(2)}")

    @property
    def path(self) -> PurePosixPath:
        """The environment's path."""
        return PurePosixPath(self.visit.folder)

    @property
    def build(self) -> PurePosixPath:
        """The folder that is made, to which the path will lead."""
        return self.path.with_name(f"{self.path.name}.{self.stamp}")

    @property
    def wheels(self) -> PurePosixPath:
        """Folder of wheels that were sent."""
        return self.path.with_name(f"{self.path.name}.wheels")

    @property
    def is_here(self) -> bool:
        """Whether it is on this machine."""
        return self.visit.name == HERE

    def run(self, argv: Sequence[str], timeout_s: float) -> Answer:
        """Return the answer of ``argv`` in the environment of a job: modules loaded, variables set, umask 077."""
        environment = self.visit.environment
        script = render("sitecheck/login.j2", {"job": {"run_dir": "/"}, "environment": environment})
        return self.visit.login_shell(script, *argv, timeout_s=timeout_s)

    def find(self) -> Found:
        """Return what lies at the path.

        Raises:
            UserError: something that was not made by `env create` is there, or the folder cannot be written.
            OrchError: it cannot be looked at.
        """
        answer = self.visit.shell(_LOOK, str(self.path))
        lines = [line.partition(" ")[::2] for line in answer.stdout.splitlines()]
        facts = dict(lines)
        if answer.returncode is None:
            raise TransportError(self.visit.transport.host, f"no answer: {last_words(answer)}")
        if not facts.get("free_kib", "").isdigit():
            raise OrchError(f"{self.path} cannot be looked at: {last_words(answer)}\nLook with `df` there.")
        if "other" in facts or ("link" in facts and not self._is_ours(facts["link"])):
            what = f"a link to {facts['link']}" if "link" in facts else "no link"
            raise UserError(
                f"{self.path} is there, {what}: `env create` did not make it.\n"
                "It is left alone. Name another place with --path, or move it away."
            )
        if "writable" not in facts:
            raise UserError(f"{facts['near']} cannot be written.\nName a folder in which you may write: --path.")
        names = {
            kind: tuple(sorted(name for word, name in lines if word == kind and self._is_ours(name)))
            for kind in ("whole", "broken")
        }
        free_bytes = int(facts["free_kib"]) << 10
        return Found(facts.get("link", ""), names["whole"], names["broken"], facts["near"], free_bytes)

    def _is_ours(self, name: str) -> bool:
        own = self.path.name
        return name.startswith(own) and _STAMP.fullmatch(name.removeprefix(own)) is not None

    def beside(self, name: str) -> str:
        """Return the path of another environment by its name.

        Raises:
            ValueError: it is none of this path.
        """
        if not self._is_ours(name):
            raise ValueError(name)
        return str(self.path.with_name(name))


def path_of_python(python: str | None) -> str | None:
    """Return the environment that an interpreter of the recipe or the site file belongs to; None if it is in none."""
    if python is None or not python.startswith("/"):
        return None
    path = PurePosixPath(python)
    folder = str(path.parent.parent)
    return None if path.parent.name != "bin" or folder in _NOT_OURS else folder


def checked_path(text: str) -> str:
    """Return a path of an environment, absolute or below the home directory.

    Raises:
        UserError: it cannot be one.
    """
    path = PurePosixPath(text)
    if ".." in path.parts or not path.name or len(path.parts) < 2 or not text.isprintable():
        raise UserError(f"--path {text!r}: give a folder below another one, without `..` and control characters.")
    return str(path)
