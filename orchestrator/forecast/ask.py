"""What the scheduler says beforehand: when jobs would start, whether it knows what they ask for.

Nothing is submitted. After one command without an answer in time nothing further is asked, so that all of it takes one
``command_timeout_s`` longer at most than a scheduler that answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.errors import TransportError
from orchestrator.forecast.document import JobStart, clock
from orchestrator.plan import PlannedJob
from orchestrator.recipe.base import time_limit_s
from orchestrator.recipe.infrastructure import RoleResources
from orchestrator.schedulers import Association, PartitionLimits, Scheduler
from orchestrator.transports import Answer, Transport

NO_PARTITION = "none"
_SILENT = "the scheduler did not answer in time"


@dataclass
class Inquiry:
    """Asks one scheduler, until it is silent.

    Attributes:
        silence: Why nothing more is asked, or None.
    """

    scheduler: Scheduler
    transport: Transport
    silence: str | None = field(default=None, init=False)

    def ask(self, argv: Sequence[str], stdin: bytes | None = None) -> Answer | None:
        """Return the answer; None if there was none in time, now or before."""
        if self.silence is not None:
            return None
        try:
            answer = self.transport.run(argv, self.scheduler.command_timeout_s, stdin)
        except TransportError as error:
            self.silence = str(error).splitlines()[0]
            return None
        if answer.returncode is None:
            self.silence = f"{_SILENT} ({argv[0]}, {self.scheduler.command_timeout_s:g} s)"
            return None
        return answer

    def why_not(self, answer: Answer | None) -> str:
        """Return why an answer cannot be used, in words."""
        if answer is None:
            return self.silence or _SILENT
        words = [line for line in answer.stderr.splitlines() if line.strip()]
        return words[0].strip() if words else f"{answer.argv[0]} gave no usable answer"


def ask_starts(inquiry: Inquiry, jobs: Sequence[PlannedJob]) -> tuple[JobStart, ...]:
    """Return when each of ``jobs`` would start; jobs with the same resources are asked about once."""
    answers: dict[str, JobStart] = {}
    starts = []
    for job in jobs:
        alike = job.resources.model_dump_json()
        if alike not in answers:
            answers[alike] = _ask_start(inquiry, job)
        starts.append(answers[alike].model_copy(update={"job": job.name}))
    return tuple(starts)


def _ask_start(inquiry: Inquiry, job: PlannedJob) -> JobStart:
    argv = inquiry.scheduler.test_argv()
    if argv is None:
        return JobStart(job=job.name, unknown=inquiry.scheduler.untold_start)
    answer = inquiry.ask(argv, job.script_text.encode())
    said = inquiry.scheduler.parse_test(answer) if answer is not None else None
    if said is None:
        return JobStart(job=job.name, unknown=f"not known: {inquiry.why_not(answer)}")
    refusal = "; ".join(said.refusal.split("\n")) if said.refusal else None
    return JobStart(job=job.name, at=said.starts_at, refusal=refusal)


def start_warnings(starts: Sequence[JobStart], jobs: Sequence[PlannedJob]) -> list[str]:
    """Return which jobs the scheduler would not take."""
    refusals = {start.job: start.refusal for start in starts}
    return _by_words((job, f"the scheduler would refuse it: {words}") for job in jobs if (words := refusals[job.name]))


def _by_words(found: Iterable[tuple[PlannedJob, str]]) -> list[str]:
    """Return each text once, after the names of all jobs that it is said of."""
    names: dict[str, list[str]] = {}
    for job, words in found:
        names.setdefault(words, []).append("trials" if job.role == "trial" else job.name)
    return [f"{', '.join(jobs)}: {words}" for words, jobs in names.items()]


def ask_limits(inquiry: Inquiry) -> tuple[Mapping[str, PartitionLimits], str]:
    """Return limits by partition, empty if they are not known, and what was said in words."""
    argv = inquiry.scheduler.limits_argv()
    if argv is None:
        return {}, "not applicable"
    answer = inquiry.ask(argv)
    limits = inquiry.scheduler.parse_limits(answer) if answer is not None else None
    if limits is None:
        return {}, f"not known: {inquiry.why_not(answer)}"
    return limits, ", ".join(sorted(limits)) or NO_PARTITION


def ask_accounts(inquiry: Inquiry) -> tuple[tuple[Association, ...] | None, str]:
    """Return the user's accounts, None if they are not known, and what was said in words."""
    argv = inquiry.scheduler.accounts_argv()
    if argv is None:
        return None, "not applicable: the scheduler cannot be asked"
    answer = inquiry.ask(argv)
    accounts = inquiry.scheduler.parse_accounts(answer) if answer is not None else None
    if accounts is None:
        return None, f"not known: {inquiry.why_not(answer)}"
    return accounts, f"yours: {', '.join(sorted({item.account for item in accounts})) or 'none'}"


def account_warnings(jobs: Sequence[PlannedJob], accounts: Sequence[Association] | None) -> list[str]:
    """Return what jobs charge that the user may not."""
    if accounts is None:
        return []
    return list(dict.fromkeys(text for job in jobs if (text := _account_warning(job.resources, accounts))))


def _account_warning(resources: RoleResources, accounts: Sequence[Association]) -> str | None:
    if resources.account is None:
        return None
    mine = [item for item in accounts if item.account == resources.account]
    if not mine:
        known = ", ".join(sorted({item.account for item in accounts})) or "none"
        return f"account '{resources.account}' is not yours as far as the scheduler knows. Yours: {known}"
    here = [item for item in mine if item.partition in {None, resources.partition}]
    if not here:
        return f"account '{resources.account}' does not hold for partition '{resources.partition}'"
    qos = {name for item in here for name in item.qos}
    if resources.qos is not None and qos and resources.qos not in qos:
        return (
            f"qos '{resources.qos}' does not go with account '{resources.account}'. Allowed: {', '.join(sorted(qos))}"
        )
    return None


def limit_warnings(jobs: Sequence[PlannedJob], limits: Mapping[str, PartitionLimits], kind: str) -> list[str]:
    """Return what jobs ask for that their partitions do not have."""
    if not limits:
        return []
    found: list[tuple[PlannedJob, str]] = []
    for job in jobs:
        name = job.resources.partition
        if name is not None and name not in limits:
            found.append((job, f"{kind} has no partition '{name}'. It has: {', '.join(sorted(limits))}"))
        elif name is not None:
            found += [(job, text) for text in _over(job.resources, name, limits[name])]
    return _by_words(found)


def _over(resources: RoleResources, name: str, limits: PartitionLimits) -> list[str]:
    found = [] if limits.is_up else [f"partition '{name}' is not up: jobs of it wait"]
    wanted_s = time_limit_s(resources.time) if resources.time else None
    if wanted_s is not None and limits.max_time_s is not None and wanted_s > limits.max_time_s:
        found.append(
            f"time {clock(wanted_s)} is over the longest of partition '{name}', {clock(limits.max_time_s)}: "
            "the job would be refused, or wait for ever"
        )
    mem_mib = resources.mem_gb * 1024 if resources.mem_gb else None
    amounts: tuple[tuple[str, float | None, float | None, Callable[[float], str]], ...] = (
        ("nodes", resources.nodes, limits.nodes, "{:g}".format),
        ("cpus", resources.cpus, limits.cpus, "{:g}".format),
        ("mem", mem_mib, limits.mem_mib, lambda mib: f"{mib / 1024:.1f}G"),
        ("gpus", resources.gpus, limits.gpus, "{:g}".format),
    )
    for what, wanted, most, shown in amounts:
        if wanted is not None and most is not None and wanted > most:
            found.append(f"{what} {shown(wanted)} is more than partition '{name}' has, {shown(most)}")
    return found
