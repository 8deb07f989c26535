"""The steps of making an environment; whatever ends them, the one that was there before stays as it is."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from orchestrator.environment import wheels
from orchestrator.environment.failure import checked, shown
from orchestrator.environment.hold import Hold
from orchestrator.environment.installer import Installer, choose_installer
from orchestrator.environment.interpreter import PROBE, Interpreter, parse_probe
from orchestrator.environment.lockfile import LockFile
from orchestrator.environment.place import PROOF, Found, Place
from orchestrator.environment.prove import PROVE, parse_proof
from orchestrator.environment.roles import Chosen, Wanted, choose
from orchestrator.errors import OrchError, TransportError
from orchestrator.sitecheck import machine, software
from orchestrator.sitecheck.findings import Check, Finding, failed, not_applicable, ok, planned, warning
from orchestrator.sitecheck.visit import PYTHON_TIMEOUT_S, last_words
from orchestrator.space.wording import size_text
from orchestrator.transports import Answer

# Installing gigabytes of small files onto a parallel file system, and the first import from it, take this long.
INSTALL_TIMEOUT_S, IMPORT_TIMEOUT_S = 2 * 3600.0, 1200.0
_ASK_S = 60.0
_VENV_BYTES = 64 << 20
_PYTHONS = ("python3", "python3.13", "python3.12", "python3.11")
LOCKED, OWN = "orch-locked.txt", "orch-own.txt"
# $1 folder, $2 name such as python3.12, $3 text of the wrapper. A process that was started by way of the link must not
# follow it when it is switched: `python` starts the interpreter under the folder's own name.
_PIN = """
cd -- "$1/bin" && name=python || exit 1
while base=$(readlink -- "$name"); do case $base in */*) break ;; esac; name=$base; done
[ -n "$base" ] && rm -f python python3 "$2" && ln -s -- "$base" "$2" || exit 1
for name in python python3; do printf '%s\\n' "$3" >"$name" && chmod 755 "$name" || exit 1; done
"""
_SWITCH = 'ln -s -- "$2" "$1.$3.link" && mv -T -- "$1.$3.link" "$1"'
ValueT = TypeVar("ValueT")


@dataclass
class Build:
    """One environment that is made, and what its steps have learned so far.

    Attributes:
        place: Where.
        wanted: What for.
        lock: The project's versions.
        python: The interpreter to make it of; found if None.
        wheelhouse: Folder of wheels here; None to install from an index there.
        is_dry: Whether steps that change something only say what they would do.
        hold: The lock, once it was taken.
        is_switched: Whether the path leads to what was made.
    """

    place: Place
    wanted: Wanted
    lock: LockFile
    python: str | None = None
    wheelhouse: Path | None = None
    is_dry: bool = False
    found: Found | None = None
    interpreter: Interpreter | None = None
    installer: Installer | None = None
    chosen: Chosen | None = None
    hold: Hold | None = None
    is_switched: bool = False

    def checks(self, interactive: bool) -> list[Check]:
        """Return the steps, in their order."""
        visit = self.place.visit

        def step(name: str, look: Callable[[], Finding], *needs: str) -> Check:
            return Check(name, look, needs)

        return [
            step("login", partial(machine.look_at_login, visit, interactive)),
            step("modules", partial(software.look_at_modules, visit), "login"),
            step("path", self.look_at_path, "login"),
            step("python", self.look_at_python, "modules"),
            step("packages", self.choose_packages, "python"),
            step("space", self.look_at_space, "path", "packages"),
            step("wheels", self.collect_wheels, "space"),
            step("send", self.send_wheels, "wheels"),
            step("lock", self.take_lock, "send"),
            step("venv", self.make_venv, "lock"),
            step("install", self.install, "venv"),
            step("import", self.prove, "install"),
            step("switch", self.switch, "import"),
        ]

    def look_at_path(self) -> Finding:
        """Look what is there."""
        self.found = self.place.find()
        if not self.found.target:
            return ok(f"{self.place.path} will be made")
        return ok(f"{self.place.path} leads to {self.found.target}")

    def look_at_python(self) -> Finding:
        """Find an interpreter that the project's packages are locked for, and what installs."""
        own = (sys.executable,) if self.place.is_here else ()
        modules = self.place.visit.environment.modules
        candidates = (self.python,) if self.python else (*_PYTHONS, *own) if modules else (*own, *_PYTHONS)
        seen = []
        for name in candidates:
            answer = self.place.run([name, "-c", PROBE], PYTHON_TIMEOUT_S)
            if answer.returncode is None:
                raise TransportError(self.place.visit.transport.host, f"no answer: {last_words(answer)}")
            interpreter = parse_probe(answer.stdout) if answer.returncode == 0 else None
            if interpreter is None:
                seen.append(f"{name}: {last_words(answer)}" if self.python else f"no {name}")
                continue
            installer, why = choose_installer(self.place, interpreter, self.wheelhouse is not None)
            if interpreter.is_fit and installer is not None:
                self.interpreter, self.installer = interpreter, installer
                libc = "" if interpreter.glibc is None else f", glibc {'.'.join(map(str, interpreter.glibc))}"
                return ok(f"{interpreter.executable} ({interpreter}, {interpreter.machine}{libc}); {why}")
            seen.append(f"{name} is {interpreter}" if not interpreter.is_fit else f"{name}: {why}")
        return failed(
            "; ".join(seen), "Load a module of Python 3.11 to 3.13 (environment.modules), or name one with --python."
        )

    def choose_packages(self) -> Finding:
        """Choose the versions."""
        interpreter = self._known(self.interpreter)
        self.chosen = choose(self.wanted, self.place.visit.packages, self.lock, interpreter)
        if not self.chosen.names:
            return failed("nothing is to be installed", "Name roles with --for, or --requirements FILE.")
        words = f"{self.wanted}: {len(self.chosen.locked)} packages of uv.lock"
        return ok(words + (f", and {', '.join(self.chosen.loose)}" if self.chosen.loose else ""))

    def look_at_space(self) -> Finding:
        """Compare free space with about what will be needed."""
        found, chosen = self._known(self.found), self._known(self.chosen)
        collected = sum(package.wheel_bytes for package in chosen.locked) if self.wheelhouse is not None else 0
        sent = 0 if self.place.is_here else collected
        need = chosen.need_bytes + sent + _VENV_BYTES
        what = f"about {size_text(need)} needed" + (f", {size_text(sent)} of it for wheels" if sent else "")
        what += ", own requirements not counted" if self.wanted.own else ""
        what += f"; {size_text(found.free_bytes)} free in {found.folder}"
        answer = self.place.visit.shell(machine.SPACE, found.folder)
        tight = [quota for quota in machine.parse_quotas(answer.stdout.splitlines()) if quota.left_bytes < need]
        if tight:
            return failed(
                f"{what}; {'; '.join(map(str, tight))}", "Free some, or name another file system with --path."
            )
        if need > found.free_bytes:
            return failed(what, "Free some, or name a larger file system with --path.")
        if self.wheelhouse is not None and (here := wheels.space_problem(self.wheelhouse, collected)):
            return failed(here, "Free some here, or name another folder with --wheelhouse.")
        return ok(what)

    def collect_wheels(self) -> Finding:
        """Collect wheels here for there."""
        if self.wheelhouse is None:
            return not_applicable("installed from an index, by the configuration there (--wheelhouse: from here)")
        interpreter, chosen = self._known(self.interpreter), self._known(self.chosen)
        if self.is_dry:
            commands = wheels.download_commands(self.wheelhouse.absolute(), interpreter, chosen, Path("LISTS"))
            return would(*map(wheels.short, commands))
        n_new = wheels.collect(self.wheelhouse, interpreter, chosen)
        files = [path.stat().st_size for path in self.wheelhouse.glob("*.whl")]
        return ok(f"{self.wheelhouse}: {len(files)} wheels, {size_text(sum(files))}, {n_new} of them new")

    def send_wheels(self) -> Finding:
        """Send wheels that are not there yet."""
        if self.wheelhouse is None or self.place.is_here:
            return not_applicable("no wheels are sent")
        target = str(self.place.wheels)
        if self.is_dry:
            return planned(f"send {self.wheelhouse}/ to {self.place.visit.name}:{target}/")
        sent = wheels.send(self.wheelhouse, self.place.visit.transport, target)
        return ok(f"{target}: {len(sent.files)} sent by {sent.method}, {size_text(sent.n_bytes)}")

    def take_lock(self) -> Finding:
        """Keep others away, and remove what earlier ones left unfinished."""
        folder = ["mkdir", "-p", "--", str(self.place.path.parent)]
        if self.is_dry:
            return would(folder, ["flock", "-n", f"{self.place.path}.lock"])
        self._checked(self.place.run(folder, _ASK_S), folder, "the folder was not made")
        hold = Hold(self.place.run, str(self.place.path))
        hold.take()
        self.hold = hold
        # Another one may have switched or failed since the first look.
        self.found = self.place.find()
        broken = [self.place.beside(name) for name in self.found.broken]
        if broken:
            self.do(["rm", "-rf", "--", *broken], INSTALL_TIMEOUT_S, "unfinished environments were not removed")
        return ok(f"{self.place.path}.lock" + (f"; removed, unfinished: {len(broken)}" if broken else ""))

    def make_venv(self) -> Finding:
        """Make the virtual environment under a name of its own."""
        interpreter, installer = self._known(self.interpreter), self._known(self.installer)
        build = str(self.place.build)
        make = installer.venv(interpreter.executable, build)
        if self.is_dry:
            return would(make)
        self.do(make, INSTALL_TIMEOUT_S, "the virtual environment was not made")
        wrapper = f'#!/bin/sh\nexec {shlex.quote(f"{build}/bin/{interpreter.minor_name}")} "$@"'
        pin = ["sh", "-c", _PIN, "sh", build, interpreter.minor_name, wrapper]
        self.do(pin, _ASK_S, "its interpreter was not fixed")
        return ok(build)

    def install(self) -> Finding:
        """Install: what is locked as it is listed, the rest as the installer resolves it."""
        interpreter, installer, chosen = (
            self._known(self.interpreter),
            self._known(self.installer),
            self._known(self.chosen),
        )
        build = self.place.build
        source = None
        if self.wheelhouse is not None:
            source = str(self.wheelhouse.absolute() if self.place.is_here else self.place.wheels)
        python, lists = str(build / "bin" / interpreter.minor_name), (str(build / LOCKED), str(build / OWN))
        commands = installer.installs(python, *lists, chosen, source)
        if self.is_dry:
            return would(*commands)
        for path, text in zip(lists, (wheels.locked_text(chosen), wheels.own_text(chosen)), strict=True):
            self.place.visit.transport.write(path, text.encode())
        started = time.monotonic()
        for command in commands:
            self.do(command, INSTALL_TIMEOUT_S, "packages were not installed")
        return ok(f"by {installer.name}, in {time.monotonic() - started:.0f} s")

    def prove(self) -> Finding:
        """Import what was asked for, in the environment of a job, and write down what was proven."""
        chosen = self._known(self.chosen)
        asked = json.dumps({"names": chosen.names, "imports": self.wanted.imports, "prefix": str(self.place.build)})
        argv = [str(self.place.build / "bin" / "python"), "-c", PROVE, asked]
        if self.is_dry:
            return would([*argv[:2], f"import {', '.join(name.replace('-', '_') for name in chosen.names)}"])
        answer = self.do(argv, IMPORT_TIMEOUT_S, "the environment's interpreter failed")
        proof = parse_proof(answer.stdout)
        if proof is None:
            return failed(f"it said nothing of the kind: {last_words(answer)}", "Run its bin/python there by hand.")
        if proof.problems:
            return failed(
                "; ".join(proof.problems), "Nothing was switched. Look at the first of these; mend, try again."
            )
        document = {
            "schema_version": 1,
            "made_at": time.time(),
            "for": [*self.wanted.roles],
            "python": proof.python,
            "packages": proof.versions,
        }
        text = json.dumps(document, indent=2) + "\n"
        self.place.visit.transport.write(str(self.place.build / PROOF), text.encode())
        return ok(", ".join(f"{name} {version}" for name, version in proof.versions.items()))

    def switch(self) -> Finding:
        """Let the path lead to what was made, in one step."""
        path = str(self.place.path)
        argv = ["sh", "-c", _SWITCH, "sh", path, self.place.build.name, self.place.stamp]
        if self.is_dry:
            return planned(f"ln -s {shlex.quote(self.place.build.name)} {shlex.quote(path)} (atomically)")
        self.do(argv, _ASK_S, "the link was not made")
        self.is_switched = True
        old = self._known(self.found).whole
        words = f"{path} leads to {self.place.build.name}"
        return ok(words + (f"; kept for jobs that run: {', '.join(old)}" if old else ""))

    def clean_up(self) -> Finding:
        """Remove what was not finished, and release the lock."""
        if self.hold is None:
            return not_applicable("nothing was made")
        try:
            self.hold.end_command()
            if not self.is_switched:
                rm = ["rm", "-rf", "--", str(self.place.build), f"{self.place.path}.{self.place.stamp}.link"]
                self.do(rm, INSTALL_TIMEOUT_S, "what was made was not removed")
            self.hold.release()
        except OrchError as error:
            return warning(str(error).splitlines()[0], "The next `orch.py env create` removes what is left.")
        return ok("the lock is released" if self.is_switched else "what was made is removed, nothing was switched")

    def do(self, argv: Sequence[str], timeout_s: float, what: str) -> Answer:
        """Run a command under the lock.

        Raises:
            TransportError: the connection was lost.
            MakingError: it failed.
        """
        return self._checked(self.place.run(self._known(self.hold).guarded(argv), timeout_s), argv, what)

    def _checked(self, answer: Answer, argv: Sequence[str], what: str) -> Answer:
        return checked(answer, argv, what, self.place.visit.transport.host)

    @staticmethod
    def _known(value: ValueT | None) -> ValueT:
        if value is None:
            raise RuntimeError("a step was tried before what it needs")
        return value


def would(*commands: Sequence[str]) -> Finding:
    """Return that commands were not run, as a dry run says."""
    return planned("\n".join(map(shown, commands)))
