"""The lock on an environment, for as long as it is made: one maker at a time, from whatever machine.

``<path>.lock`` names its holder, and is renewed with each command. Each command runs under flock(1) on it as well, so
that a command which outlives its orchestrator keeps others away until it has ended.
"""

from __future__ import annotations

import getpass
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from orchestrator.errors import OrchError, UserError
from orchestrator.lease import Owner
from orchestrator.sitecheck.visit import last_words
from orchestrator.transports import Answer

Run = Callable[[Sequence[str], float], Answer]
SILENT_MIN = 2
"""A holder elsewhere that has not renewed the lock for so many minutes, and runs nothing, is taken for dead."""
_ASK_S = 60.0
_BUSY, _HELD = 75, 76
# $1 lock, $2 our record, $3 a record that may be replaced.
_TAKE = f"""
found=$(cat -- "$1")
if [ -n "$found" ] && [ "$found" != "$3" ] && [ -n "$(find "$1" -mmin -{SILENT_MIN})" ]; then exit {_HELD}; fi
printf '%s\\n' "$2" >"$1"
"""
# $1 lock, $2 our record, then the command.
_GUARD = f"""
[ "$(cat -- "$1")" = "$2" ] || {{ echo "another one has taken the lock" >&2; exit {_HELD}; }}
lock=$1; shift 2
touch -- "$lock"; printf '%s\\n' "$$" >"$lock.pid"
"$@"
code=$?
rm -f -- "$lock.pid"; touch -- "$lock"
exit $code
"""
# Ends the command of a holder, if it runs on this machine: its shell has the record among its arguments. The group is
# that of timeout(1) or of the local transport's session.
_END = """
pid=$(cat -- "$1.pid" 2>/dev/null) || exit 0
case $pid in ''|*[!0-9]*) exit 0 ;; esac
grep -qF -- "$2" "/proc/$pid/cmdline" 2>/dev/null || exit 0
set -- $(sed 's/.*) //' "/proc/$pid/stat")
[ "$3" -gt 1 ] && kill -s TERM -- "-$3"
"""
_RELEASE = '[ "$(cat -- "$1")" != "$2" ] || { rm -f -- "$1.pid"; : >"$1"; }'


class HeldError(UserError):
    """Another one makes this environment."""


class Hold:
    """The lock on one environment."""

    def __init__(self, run: Run, path: str) -> None:
        """Prepare; nothing is asked yet.

        Args:
            run: Runs argv, with a time limit in seconds, on the machine of the environment.
            path: Of the environment.
        """
        self._run, self._lock = run, f"{path}.lock"
        self._owner = Owner.of_this_process()
        self._record = holder_record(self._owner)

    def take(self) -> None:
        """Take the lock; a dead holder's is taken over.

        Raises:
            HeldError: another one holds it.
            OrchError: there can be no lock.
        """
        over = ""
        for _ in range(3):
            answer = self._run([*self._flock("-n"), "sh", "-c", _TAKE, "sh", self._lock, self._record, over], _ASK_S)
            if answer.returncode == 0:
                return
            if answer.returncode not in {_BUSY, _HELD}:
                raise OrchError(f"{self._lock}: {last_words(answer)}\n`flock` (util-linux) has to work in that folder.")
            over = self._run(["cat", "--", self._lock], _ASK_S).stdout.strip()
            if not _is_dead(over):
                break
            self._run(["sh", "-c", _END, "sh", self._lock, _nonce(over)], _ASK_S)
            time.sleep(0.5)
        raise HeldError(
            f"{holder_words(over)} makes this environment ({self._lock}).\nWait until it has ended, or end it."
        )

    def guarded(self, argv: Sequence[str]) -> list[str]:
        """Return ``argv`` as it runs under the lock."""
        return [*self._flock("-w", "30"), "sh", "-c", _GUARD, "sh", self._lock, self._record, *argv]

    def end_command(self) -> None:
        """End the command of ours that may still run there, after Ctrl-C or a lost connection."""
        self._run(["sh", "-c", _END, "sh", self._lock, self._owner.nonce], _ASK_S)

    def release(self) -> None:
        """Let others at the environment."""
        self._run([*self._flock("-w", "30"), "sh", "-c", _RELEASE, "sh", self._lock, self._record], _ASK_S)

    def _flock(self, *how: str) -> list[str]:
        return ["flock", *how, "-E", str(_BUSY), self._lock]


def _read(record: str) -> dict[str, Any]:
    try:
        document = json.loads(record)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _is_dead(record: str) -> bool:
    """Tell whether the holder was a process of this machine that has ended."""
    owner = Owner.from_lease(_read(record))
    return owner is not None and owner.lives_here() is False


def _nonce(record: str) -> str:
    owner = Owner.from_lease(_read(record))
    return owner.nonce if owner is not None else ""


def holder_record(owner: Owner) -> str:
    """Return what a lock's file says of its holder, who has held it from now on."""
    return json.dumps({"owner": asdict(owner), "user": getpass.getuser(), "since": int(time.time())})


def holder_words(record: str) -> str:
    """Return who holds a lock, in words."""
    document = _read(record)
    owner = Owner.from_lease(document)
    if owner is None:
        return "somebody"
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(document.get("since", 0)))
    return f"{document.get('user', 'somebody')} on {owner.host} (process {owner.pid}, since {since})"
