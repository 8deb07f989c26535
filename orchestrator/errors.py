"""Every error that orch raises on purpose, as one tree.

A message says where, what was wrong, what is allowed and what to do. ``exit_code`` is what the process ends with:
2 when the user can mend the input, 1 when a run failed.
"""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class OrchError(Exception):
    """Root of all expected errors; shown without a traceback."""

    exit_code = 1


class UserError(OrchError):
    """Something in the user's input; nothing was started."""

    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong in a document.

    Attributes:
        where: Dotted path inside the document, empty for the document as a whole.
        what: What was wrong, with the offending value.
        allowed: What is allowed, or an empty string.
        remedy: What to do, or an empty string.
    """

    where: str
    what: str
    allowed: str = ""
    remedy: str = ""

    def render(self) -> str:
        """Return the problem as one or two lines of text."""
        first = f"{self.where}: {self.what}" if self.where else self.what
        tail = " ".join(part for part in (f"Allowed: {self.allowed}." if self.allowed else "", self.remedy) if part)
        return f"{first}\n    {tail}" if tail else first


class DocumentError(UserError):
    """A recipe or site file that cannot be used; carries every problem found."""

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        self.source = source
        self.problems = tuple(problems)
        count = len(self.problems)
        lines = [f"{source}: {count} problem{'s' if count != 1 else ''}"]
        lines += [f"  {problem.render()}" for problem in self.problems]
        super().__init__("\n".join(lines))


class RecipeError(DocumentError):
    """The recipe cannot be used."""


class SiteError(DocumentError):
    """The site file cannot be used."""


class UnsupportedFieldError(UserError):
    """A recipe field that the chosen scheduler or engine cannot honour."""

    def __init__(self, field: str, by: str, why: str, remedy: str) -> None:
        self.field, self.by = field, by
        super().__init__(f"{field}: not supported by {by}: {why}\n{remedy}")


class NotHereError(UserError):
    """Something that a run needs is not on this machine; a plan can be made all the same."""


class ModelNotFoundError(NotHereError):
    """The model that the recipe names does not exist or cannot be reached."""


class DataNotFoundError(NotHereError):
    """The data set that the recipe names is not where it should be."""


class ProgramMissingError(NotHereError):
    """A program or package that a job needs is not installed where it was looked for."""


class RunNotFoundError(UserError):
    """The named run is not in the output folder."""


class RunBusyError(UserError):
    """Another orchestrator looks after the run."""

    def __init__(self, whose: str) -> None:
        super().__init__(f"{whose}.\nEnd the run with `orch.py stop`, or end that process to take its place.")


class LeaseLostError(OrchError):
    """Another orchestrator has taken the run over; this one must not touch it any more."""


class RenderError(OrchError):
    """A template could not be rendered, or a value cannot be put into a script safely."""


class UnsafeValueError(RenderError, UserError):
    """A value of the recipe, or a path, that cannot be put into a script safely."""

    exit_code = 2


class StorageError(OrchError):
    """A file of the run could not be written (no space, quota, permissions).

    Attributes:
        path: The file or folder.
        error: What the system said.
    """

    def __init__(self, path: Path, error: OSError, remedy: str | None = None) -> None:
        self.path, self.error = path, error
        usual = "Free some space or quota there, or put the run elsewhere with --output-dir."
        super().__init__(f"cannot write {path}: {error.strerror or error}\n{remedy or usual}")

    @property
    def is_full(self) -> bool:
        """Whether space or quota ran out."""
        return self.error.errno in _NO_SPACE


class CommandError(OrchError):
    """A command failed; carries what is needed to repeat it by hand."""

    def __init__(self, argv: Sequence[str], returncode: int | None, stderr: str, what: str) -> None:
        self.argv, self.returncode, self.stderr, self.what = tuple(argv), returncode, stderr, what
        end = stderr.strip()[-2000:]
        code = "no answer in time" if returncode is None else f"exit code {returncode}"
        super().__init__(f"{what} ({code}): {' '.join(argv)}\n{end}".rstrip())


class SubmitError(CommandError):
    """The scheduler did not take a job.

    Attributes:
        is_refusal: It said no (exit code 2: partition, account or limits are the user's); otherwise nobody knows.
    """

    def __init__(
        self, argv: Sequence[str], returncode: int | None, stderr: str, what: str, is_refusal: bool = True
    ) -> None:
        self.is_refusal = is_refusal
        self.exit_code = 2 if is_refusal else 1
        super().__init__(argv, returncode, stderr, what)


class TransportError(OrchError):
    """Something on the way to a machine failed; says nothing of what runs there.

    Attributes:
        host: The machine as the user names it.
    """

    def __init__(self, host: str, what: str, remedy: str = "") -> None:
        self.host, self.what, self.remedy = host, what, remedy
        super().__init__(f"{host}: {what}\n{remedy}" if remedy else f"{host}: {what}")


class NoConnectionError(TransportError):
    """The machine cannot be reached now; it may come back by itself."""


class HostKeyError(TransportError):
    """The machine's host key is unknown or is not the one that is known."""


class AuthenticationError(TransportError):
    """The machine did not let the user in; a key, a password or a second factor is wanted."""


class RemoteFileError(TransportError):
    """A file of the machine could not be read or written.

    Attributes:
        path: The file, as the machine names it.
    """

    def __init__(self, host: str, path: str, what: str, remedy: str = "") -> None:
        self.path = path
        super().__init__(host, f"{path}: {what}", remedy)


class TransferError(TransportError):
    """Files could not be copied; carries the words of both ends."""


class LeaseNotLiftedError(OrchError):
    """Services that were to be kept will end, as their hosts could not be told.

    Attributes:
        ends: When the services of each host end, by its name, in seconds since the epoch; None if it was never told.
    """

    def __init__(self, ends: Mapping[str, float | None], tried_s: float) -> None:
        self.ends = dict(ends)
        clock = {name: time.strftime("%H:%M", time.localtime(at)) if at else "" for name, at in ends.items()}
        words = [f"on {name} {f'at {at}' if at else 'within 15 minutes'}" for name, at in clock.items()]
        super().__init__(
            f"services are not kept: no connection within {tried_s:.0f} s to lift their lease.\n"
            f"They will end when it runs out: {', '.join(words)}. `orch.py resume RUN --keep` tries again until then."
        )


class JobFailedError(OrchError):
    """A job of the run ended when it should have lived.

    Attributes:
        job: Name of the job in the plan.
        log_tail: Last lines of what it said.
    """

    def __init__(self, job: str, why: str, log_tail: str = "") -> None:
        self.job, self.log_tail = job, log_tail
        text = f"job '{job}' {why}"
        super().__init__(f"{text}\nIts last words:\n{log_tail}" if log_tail else text)


class CannotStartError(UserError):
    """A job waits for something that will never come."""

    def __init__(self, job: str, job_id: str, reason: str) -> None:
        remedy = (
            "Ask for less (time, nodes, CPUs, memory, GPUs) or for another partition, account or qos: "
            "job.infrastructure and job.resources."
        )
        if re.search("held|hold", reason, re.IGNORECASE):
            remedy = "The scheduler holds it after failed starts: look at the node and the batch log, then start anew."
        super().__init__(f"job '{job}' ({job_id}) can never start as it stands; the scheduler says: {reason}\n{remedy}")


class StageError(OrchError):
    """A stage (benchmark, hpo) could not do its work."""


class ServiceAnswerError(OrchError):
    """A service of the run gave an answer that cannot be used."""


class EarlierRunError(OrchError):
    """A run that had to be completed before this one has ended otherwise.

    Attributes:
        run: Its directory.
        state: How it ended.
    """

    def __init__(self, run: str, state: str) -> None:
        self.run, self.state = run, state
        name = run.rpartition("/")[2]
        super().__init__(
            f"job.after: {name} has ended as {state} and had to be completed: nothing was submitted.\n"
            f"`orch.py resume {name}` goes on with it; resume or start this run when it is completed. "
            f"To start whichever way it ends, write {{run: {name}, when: ended}}."
        )


class HubError(OrchError):
    """A model hub cannot be reached, cut the connection, or gave something else than it lists."""


class StopRequestedError(OrchError):
    """``orch.py stop`` asked this run to end."""
