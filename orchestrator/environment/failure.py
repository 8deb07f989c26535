"""A command that failed while an environment was made, told in a few words."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from orchestrator.errors import OrchError, TransportError
from orchestrator.sitecheck.visit import last_words
from orchestrator.transports import Answer, Fault

_LONGEST = 600
# pip writes `ERROR:`, uv `error:` and `cause:`; a URL of an index may carry a password.
_TELLING = re.compile(r"\s*(?:ERROR|error|cause|Because)\b")
_PASSWORD = re.compile(r"(?<=://)[^/@\s]+@")


class MakingError(OrchError):
    """A step of making an environment failed."""


def checked(answer: Answer, argv: Sequence[str], what: str, host: str) -> Answer:
    """Return ``answer`` if the command succeeded.

    Args:
        answer: Of the command.
        argv: The command, without what it was wrapped in.
        what: What was not done.
        host: The machine, for people.

    Raises:
        TransportError: the connection was lost.
        MakingError: the command failed, or took too long.
    """
    if answer.fault in {Fault.NOT_SENT, Fault.CUT_OFF}:
        raise TransportError(host, f"{what}: {last_words(answer)}", "Try again when the connection is there.")
    if answer.returncode == 0:
        return answer
    lines = [line.strip() for line in answer.stderr.splitlines() if _TELLING.match(line)]
    words = "; ".join(lines)[:_LONGEST] or last_words(answer)
    raise MakingError(f"{what}: {_PASSWORD.sub('***@', words)}\nBy hand: {shown(argv)}")


def shown(argv: Sequence[str]) -> str:
    """Return a command for people; scripts and code in it are left out."""
    return shlex.join(word if "\n" not in word else "…" for word in argv)
