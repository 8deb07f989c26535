"""The place that is looked at, what was asked for, and what the steps have learned so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from orchestrator.forecast.ask import Inquiry
from orchestrator.interrupts import Interrupts
from orchestrator.recipe.hosts import Centre
from orchestrator.recipe.infrastructure import Environment, RoleResources
from orchestrator.recipe.sections import SchedulerSpec
from orchestrator.schedulers import PartitionFacts, Scheduler
from orchestrator.sitecheck.packages import Packages
from orchestrator.transports import Answer, Transport

SHELL_TIMEOUT_S = 30.0
PYTHON_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Options:
    """What the user asked for.

    Attributes:
        wants_job: Whether a test job is submitted.
        partition: Partition of the test job; the site file's if None.
        gpus: GPUs of the test job; those that the site file claims if None.
        time: Its wall time, as in a recipe.
        wait_s: How long it may wait in the queue, in seconds.
        directives: Further directives of the test job, as in a recipe.
        data: Paths that have to be there.
    """

    wants_job: bool = True
    partition: str | None = None
    gpus: int | None = None
    time: str = "1"
    wait_s: float = 300.0
    directives: tuple[str, ...] = ()
    data: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """What the test job told.

    Attributes:
        facts: Values by name, several where there were several.
        ahead_s: How far the node's clock is ahead of the login node's, in seconds: at least and at most.
    """

    facts: Mapping[str, Sequence[str]]
    ahead_s: tuple[float, float]

    def first(self, name: str) -> str:
        """Return the first value of ``name``, empty if there is none."""
        values = self.facts.get(name, ())
        return values[0] if values else ""


@dataclass
class Visit:
    """One place under check.

    Attributes:
        name: ``here``, or the host's name in the site file.
        centre: What the site file says of it.
        transport: The way to it.
        environment: Of its jobs, with an interpreter.
        folder: Folder of its runs; absolute once the login was tried.
        token: Name of the test job, and of the folder that everything is written to.
        packages: What interpreters need.
        options: What the user asked for.
        interrupts: Holds signals back while a job is submitted.
        scheduler: Its batch system, once it is known.
        spec: The same as a recipe would say it.
        facts: What is known of partitions: the scheduler's words, then the site file's.
        resources: What the test job asked for.
        job_id: Id of the test job; None if there is none.
        may_be_queued: Whether a test job may have been taken without its id being known.
        has_written: Whether anything may have been written in ``folder``.
        made: The first folder of ``folder``'s path that was made for this check; empty if there is none.
        report: What the test job told.
    """

    name: str
    centre: Centre
    transport: Transport
    environment: Environment
    folder: str
    token: str
    packages: Packages
    options: Options
    interrupts: Interrupts = field(default_factory=Interrupts)
    scheduler: Scheduler | None = None
    spec: SchedulerSpec | None = None
    facts: Mapping[str, PartitionFacts] = field(default_factory=dict)
    resources: RoleResources | None = None
    job_id: str | None = None
    may_be_queued: bool = False
    has_written: bool = False
    made: str = ""
    report: Report | None = None

    @property
    def own_folder(self) -> PurePosixPath:
        """Folder of this check alone."""
        return PurePosixPath(self.folder) / self.token

    @property
    def batch(self) -> Scheduler:
        """The batch system; only for steps that need the step "scheduler"."""
        if self.scheduler is None:
            raise RuntimeError("the step 'scheduler' was not tried")
        return self.scheduler

    @property
    def inquiry(self) -> Inquiry:
        """Asks the batch system."""
        return Inquiry(self.batch, self.transport)

    def shell(self, script: str, *words: str, timeout_s: float = SHELL_TIMEOUT_S) -> Answer:
        """Return the answer of a POSIX shell's script with ``words`` as $1, $2 and so on."""
        return self.transport.run(["sh", "-c", script, "sh", *words], timeout_s)

    def login_shell(self, script: str, *words: str, timeout_s: float = SHELL_TIMEOUT_S) -> Answer:
        """Return the answer of a script under bash as a login starts it."""
        return self.transport.run(["bash", "-l", "-c", script, "bash", *words], timeout_s)


def last_words(answer: Answer) -> str:
    """Return the last line of what a command said on stderr (on stdout, if nothing), or how it ended."""
    for text in (answer.stderr, answer.stdout):
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if lines:
            return lines[-1]
    return "no answer in time" if answer.returncode is None else f"exit code {answer.returncode}"
