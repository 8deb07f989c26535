"""One command over an ssh session: what the other side is told, and how its answer is told apart from all else.

The command line that the remote login shell sees is a constant, which sh, bash, zsh, csh and fish read alike. Words,
directory and variables follow as one line on stdin, after the remote side has said hello: so no variable is ever part
of an argv, and a connection that hangs before the hello never runs the command later. Hello and trailer carry random
words, so that what start-up files print is no part of the answer, and the trailer's exit code is the command's own:
255 by ssh's own failure comes without a trailer.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from secrets import token_hex

_NEWLINE = "\n"
NO_TIMEOUT_PROGRAM = "timeout (coreutils) is not installed there"

# Runs under `timeout`, whose KILL reaches it as well: then its trailer is missing.
_INNER = (
    "orch_k=$orch_key; unset orch_key; {command}; orch_c=$?; "
    'printf %sE%s. "$orch_k" "$orch_c"; printf %sE%s. "$orch_k" "$orch_c" >&2'
)


@dataclass(frozen=True)
class RemoteCommand:
    """A command as it is sent.

    Attributes:
        argv: Program and arguments.
        timeout_s: Time limit, enforced over there in whole seconds, rounded up.
        start_within_s: It is not started later than this many seconds after the hello.
        cwd: Working directory.
        environment: Variables on top of those of the machine.
        has_stdin: Whether its stdin follows; otherwise it has none.
    """

    argv: tuple[str, ...]
    timeout_s: float
    start_within_s: float
    cwd: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    has_stdin: bool = False
    hello: str = field(default_factory=lambda: token_hex(8))
    key: str = field(default_factory=lambda: token_hex(16))

    def login_line(self, reads_profile: bool) -> str:
        """Return the command line for the remote login shell.

        No backslash, exclamation mark, line break or quote inside: csh and fish read single quotes differently.
        """
        shell = "sh -l -c" if reads_profile else "sh -c"
        say = f'printf %s. "{self.hello}"'
        return f"exec {shell} 'orch_b=$(date +%s); {say}; {say} >&2; IFS= read -r orch_l && eval \"$orch_l\"'"

    def script_line(self) -> bytes:
        """Return the line that is sent after the hello, with its line end."""
        say = f'printf %s%s. {self.key} "$1"; printf %s%s. {self.key} "$1" >&2; exit 0'
        steps = [
            r"orch_n=$(printf '\nx'); orch_n=${orch_n%x}",
            f"orch_say() {{ {say}; }}",
            f"[ $(($(date +%s)-orch_b)) -le {math.ceil(self.start_within_s)} ] || orch_say L",
        ]
        if self.cwd is not None:
            steps.append(f"cd -- {quoted(self.cwd if self.cwd.startswith('/') else './' + self.cwd)} || orch_say C")
        steps += [f"export {name}={quoted(value)}" for name, value in self.environment.items()]
        # A builtin of the same name is not the program that was asked for.
        inner = _INNER.format(command='"$@"' if "/" in self.argv[0] else 'env -- "$@"')
        words = " ".join(quoted(word) for word in (*self._limit(), "sh", "-c", inner, "sh", *self.argv))
        source = "" if self.has_stdin else "</dev/null"
        # A shell's own words on its killed child are no part of the command's stderr.
        run = f"orch_key={self.key}; export orch_key; exec {words} {source}"
        steps += ["exec 9>&2 2>/dev/null", f"({run}) 2>&9 9>&-", "orch_c=$?", "exec 2>&9 9>&-", 'orch_say "T$orch_c"']
        return ("; ".join(steps) + _NEWLINE).encode("utf-8", "surrogateescape")

    def _limit(self) -> tuple[str, ...]:
        # KILL, as nothing else surely ends the whole process group (timeout(1)).
        return ("timeout", "-s", "KILL", str(max(1, math.ceil(self.timeout_s))))


def quoted(word: str) -> str:
    """Return ``word`` quoted for sh, on one line: line breaks are the variable orch_n."""
    parts = [shlex.quote(part) if part else "" for part in word.split(_NEWLINE)]
    return '"$orch_n"'.join(parts) or "''"


@dataclass(frozen=True)
class Outcome:
    """What came back.

    Attributes:
        said_hello: Whether the remote side was ready to take the command.
        is_complete: Whether the trailer came.
        returncode: Exit code of the command; None if it was ended, or did not end.
        was_too_late: Whether it was not started, as the line came too late.
        problem: What over there makes it impossible to run commands; empty otherwise.
    """

    said_hello: bool
    is_complete: bool
    returncode: int | None
    stdout: bytes
    stderr: bytes
    was_too_late: bool = False
    problem: str = ""


class AnswerReader:
    """Takes the two streams of a session apart."""

    def __init__(self, command: RemoteCommand) -> None:
        self.stdout, self.stderr = bytearray(), bytearray()
        self._hello = f"{command.hello}.".encode()
        self._trailer = re.compile(command.key.encode() + rb"(?:[LC]|T\d+)\.")
        self._first = re.compile(command.key.encode() + rb"([LCTE])(\d*)\.")
        self._scanned = [0, 0]
        self._said_hello = False

    @property
    def said_hello(self) -> bool:
        """Whether the remote side is ready to take the script line."""
        self._said_hello = self._said_hello or self._hello in self.stdout
        return self._said_hello

    @property
    def is_complete(self) -> bool:
        """Whether both trailers have come; what processes in the background write later belongs to nobody."""
        return all(self._has_trailer(index) for index in (0, 1))

    def _has_trailer(self, index: int) -> bool:
        stream = (self.stdout, self.stderr)[index]
        if self._trailer.search(stream, max(0, self._scanned[index] - 64)):
            return True
        self._scanned[index] = len(stream)
        return False

    def outcome(self) -> Outcome:
        """Return what is known so far."""
        stdout, match = self._body(self.stdout)
        stderr, _ = self._body(self.stderr)
        if match is None or not self._has_trailer(0):
            return Outcome(self.said_hello, False, None, stdout, stderr)
        if self._hello not in self.stderr:
            # A start-up file has sent stderr elsewhere; what came is its own.
            stderr = b""
        kind, digits = match[1], match[2]
        code = int(digits) if digits else None
        if kind == b"E":
            return Outcome(True, True, code, stdout, stderr)
        if kind == b"L":
            return Outcome(True, True, None, stdout, stderr, was_too_late=True)
        if kind == b"C":
            return Outcome(True, True, 127, stdout, stderr)
        if code == 127:
            return Outcome(True, True, None, stdout, stderr, problem=NO_TIMEOUT_PROGRAM)
        # 137 is timeout's own end by the signal that it sent (128 + 9); another code is that of a killed inner shell.
        return Outcome(True, True, None if code == 137 else code, stdout, stderr)

    def _body(self, stream: bytearray) -> tuple[bytes, re.Match[bytes] | None]:
        _, hello, after = bytes(stream).partition(self._hello)
        if not hello:
            return bytes(stream), None
        match = self._first.search(after)
        return (after, None) if match is None else (after[: match.start()], match)


def login_noise_problem(outcome: Outcome, words: Sequence[str]) -> str:
    """Return what to say of a login shell that ended without a hello."""
    said = (outcome.stdout + outcome.stderr).decode(errors="replace").strip()[-1000:]
    return f"the remote login shell did not run `{' '.join(words)}`" + (f": {said}" if said else "")
