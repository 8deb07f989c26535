"""The test job: submitted through the same backend as every job of orch, waited for, cancelled by its id."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from orchestrator.batch_template import render_job
from orchestrator.errors import SubmitError, TransportError
from orchestrator.plan import WARNING_S
from orchestrator.recipe.infrastructure import RoleResources
from orchestrator.schedulers import JobState, Seen, Submission
from orchestrator.schedulers.local import MACHINE
from orchestrator.sitecheck.findings import Finding, failed, not_tried, ok, warning
from orchestrator.sitecheck.software import PYTHON_CODE
from orchestrator.sitecheck.visit import Report, Visit
from orchestrator.transports import Answer

NAME = "probe"
POLL_S = 2.0
# What was written on another node may be seen late: NFS keeps attributes for up to a minute (nfs(5), acdirmax).
GRACE_S = 20.0
# What a running job may take to report before it is given up, in seconds: three interpreters, three GPU programs.
REPORT_S = 300.0
_LOOK = 'date +%s; ls -a -- "$1" >/dev/null 2>&1; [ ! -f "$1/report" ] || cat -- "$1/report"'
_LOOK_TIMEOUT_S = 20.0
_NOT_SEEN = "Runs must lie on a file system that the nodes see: base_dir of a host, --output-dir here."


@dataclass(frozen=True)
class ProbeContext:
    """Values of templates/sitecheck/probe.j2."""

    python: str
    code: str
    packages: tuple[str, ...]
    data: tuple[str, ...]


def try_job(visit: Visit) -> Finding:
    """Submit the test job and wait for its report."""
    if not visit.options.wants_job:
        return not_tried("--no-job")
    visit.resources = choose_resources(visit)
    script = visit.own_folder / f"{NAME}.sh"
    visit.transport.write(str(script), _script_text(visit).encode())
    started = time.monotonic()
    refusal = _submit(visit, Submission(visit.token, Path(script), Path(_batch_log(visit, "%j")), 1))
    return refusal or _wait(visit, started)


def choose_resources(visit: Visit) -> RoleResources:
    """Return what the test job asks for: one CPU core, 1 GB, and the GPUs that the site file claims.

    Raises:
        UnsupportedFieldError: the scheduler cannot honour a field.
    """
    centre, options = visit.centre, visit.options
    partition = options.partition or _partition_of(visit)
    facts = visit.facts.get(partition or "", visit.facts.get(MACHINE))
    gpus = options.gpus
    if gpus is None and partition in centre.partitions:
        gpus = centre.partitions[partition].gpus_per_node
    if gpus is None:
        gpus = min(1, facts.gpus_per_node) if facts else 0
    wanted = RoleResources(
        partition=partition,
        account=centre.account,
        qos=centre.qos,
        nodes=1,
        cpus=1,
        mem_gb=1,
        gpus=gpus,
        time=options.time,
        requeue=False,
        directives=options.directives,
    )
    found = visit.batch.resources("trial" if gpus else "client", wanted, 1, visit.facts, [])
    # Where nobody names a partition, the scheduler's own default is as good as orch's guess.
    return found.model_copy(update={"partition": partition}) if found.partition is not None else found


def _partition_of(visit: Visit) -> str | None:
    centre = visit.centre
    with_gpus = [name for name, item in centre.partitions.items() if item.gpus_per_node]
    named = [centre.role_partitions.server, centre.role_partitions.trial, *with_gpus, *centre.partitions]
    return next((name for name in named if name), None)


def _script_text(visit: Visit) -> str:
    environment, packages = visit.environment, visit.packages
    return render_job(
        visit.batch.template,
        visit.centre.batch_template,
        visit.batch.kind,
        {
            "job": {
                "name": NAME,
                "token": visit.token,
                "log_dir": str(visit.own_folder),
                "run_dir": str(visit.own_folder),
                "body": "sitecheck/probe.j2",
                "experiment": visit.token,
            },
            "array": None,
            "components": (),
            "resources": visit.resources,
            "warning_s": WARNING_S,
            "scheduler": visit.spec,
            "environment": environment,
            "supervisor": {"python": environment.supervisor_python},
            "service": ProbeContext(
                environment.python or "python3",
                PYTHON_CODE,
                tuple(dict.fromkeys((*packages.client, *packages.trainer))),
                visit.options.data,
            ),
            "mail": None,
        },
    )


def _batch_log(visit: Visit, job_id: str) -> str:
    return str(visit.own_folder / f"{NAME}_{job_id}.batch")


def _submit(visit: Visit, submission: Submission) -> Finding | None:
    """Submit; return why it could not be done, None if the job has an id."""
    scheduler = visit.batch
    with visit.interrupts.held():
        visit.may_be_queued = True
        answer = visit.transport.run(scheduler.submit_argv(submission), scheduler.command_timeout_s)
        try:
            visit.job_id = scheduler.parse_submit(answer)
        except SubmitError as error:
            if not scheduler.is_ambiguous(answer):
                visit.may_be_queued = False
                return failed(f"{error.what}: {_said(answer)}", _refusal_remedy(visit))
            visit.job_id = find_by_token(visit)
            if visit.job_id is None:
                return failed(
                    f"{submission_program(answer)} gave no answer that tells: {_said(answer)}",
                    "Try again later; raise scheduler.command_timeout_s if the site is slow.",
                )
    return None


def submission_program(answer: Answer) -> str:
    """Return the program that was asked."""
    return Path(answer.argv[0]).name


def _said(answer: Answer) -> str:
    text = " ".join((answer.stderr or answer.stdout).split())
    return text or ("no answer in time" if answer.returncode is None else f"exit code {answer.returncode}")


def _refusal_remedy(visit: Visit) -> str:
    asked = visit.resources
    words = (
        f"partition {asked.partition or '-'}, account {asked.account or '-'}, qos {asked.qos or '-'}, " if asked else ""
    )
    return f"It asked for {words}{_gpus_words(visit)}, {visit.options.time} min; correct the site file."


def _gpus_words(visit: Visit) -> str:
    gpus = visit.resources.gpus if visit.resources else 0
    return f"{gpus or 'no'} GPU{'' if gpus == 1 else 's'}"


def find_by_token(visit: Visit) -> str | None:
    """Return the id of the test job as the scheduler lists it, None if it does not."""
    for seen in (_statuses(visit) or {}).values():
        if seen.name == visit.token and not seen.state.is_final:
            return seen.job_id
    return None


def _statuses(visit: Visit) -> dict[str, Seen] | None:
    scheduler = visit.batch
    return scheduler.parse_status(visit.transport.run(scheduler.status_argv(), scheduler.command_timeout_s))


@dataclass
class _Watch:
    """What was seen of the job so far; times are of the monotonic clock."""

    clock_before: float | None = None
    seen: Seen | None = None
    running_since: float | None = None
    ended_since: float | None = None
    is_silent: bool = False


def _wait(visit: Visit, started: float) -> Finding:
    watch = _Watch()
    while True:
        report = _look_for_report(visit, watch)
        if report is not None:
            visit.report = report
            took_s = time.monotonic() - started
            _follow(visit, watch)
            node = (watch.seen and watch.seen.node) or report.first("host")
            return ok(f"{visit.job_id} ran on {node} ({_gpus_words(visit)}), {took_s:.0f} s in all")
        _follow(visit, watch)
        end = _given_up(visit, watch, time.monotonic() - started)
        if end is not None:
            return end
        time.sleep(POLL_S)


def _look_for_report(visit: Visit, watch: _Watch) -> Report | None:
    answer = visit.shell(_LOOK, str(visit.own_folder), timeout_s=_LOOK_TIMEOUT_S)
    clock, _, text = answer.stdout.partition("\n")
    if answer.returncode != 0 or not clock.isdigit():
        return None
    if not text:
        watch.clock_before = float(clock)
        return None
    facts: dict[str, list[str]] = {}
    for line in text.splitlines():
        name, _, value = line.partition("\t")
        facts.setdefault(name, []).append(value)
    node_clock = (facts.get("clock") or [""])[0]
    if not node_clock.isdigit():
        return None
    # It was written between the last look and this one; both clocks count whole seconds.
    before = watch.clock_before if watch.clock_before is not None else float(clock)
    return Report(facts, (float(node_clock) - float(clock) - 1, float(node_clock) - before + 1))


def _follow(visit: Visit, watch: _Watch) -> None:
    seen = _statuses(visit)
    watch.is_silent = seen is None
    if seen is None:
        return
    mine = seen.get(visit.job_id or "")
    now = time.monotonic()
    watch.seen = mine or watch.seen
    if mine is None or mine.state.is_final:
        watch.ended_since = watch.ended_since or now
        return
    watch.ended_since = None
    if mine.state == JobState.RUNNING:
        watch.running_since = watch.running_since or now


def _given_up(visit: Visit, watch: _Watch, waited_s: float) -> Finding | None:
    """Return why it makes no sense to wait any longer; None if it does."""
    now = time.monotonic()
    seen = watch.seen
    if seen is not None and seen.never_starts:
        return failed(f"{visit.job_id} can never start: {seen.reason}", _refusal_remedy(visit))
    if watch.ended_since is not None and now - watch.ended_since > GRACE_S:
        return _ended(visit, seen)
    if watch.running_since is not None:
        if now - watch.running_since > REPORT_S:
            return failed(f"{visit.job_id} runs on {seen and seen.node}, but its report is not seen here", _NOT_SEEN)
        return None
    if waited_s > visit.options.wait_s:
        why = "the scheduler does not answer" if watch.is_silent else (seen and seen.reason) or "no reason given"
        return warning(
            f"{visit.job_id} waited {visit.options.wait_s:.0f} s in the queue ({why}); nothing was proven",
            "Wait longer with --wait SECONDS, or ask for less with --gpus 0 or --partition.",
        )
    return None


def _ended(visit: Visit, seen: Seen | None) -> Finding:
    try:
        log = visit.transport.read_text(_batch_log(visit, visit.job_id or "")) or ""
    except TransportError as error:
        log = str(error)
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    state = f" ({seen.state.value})" if seen is not None and seen.state.is_final else ""
    if not lines:
        return failed(f"{visit.job_id} ended{state} and left neither report nor log in {visit.folder}", _NOT_SEEN)
    return failed(
        f"{visit.job_id} ended{state} without a report; its last words: {lines[-1]}",
        "Something works on the login node only: modules and paths of the site file have to be on compute nodes too.",
    )


def cancel(visit: Visit) -> str:
    """Cancel the test job by its id; return what may be left of it, empty if nothing.

    Raises:
        TransportError: there is no connection.
    """
    if visit.scheduler is None or not visit.may_be_queued:
        return ""
    if visit.job_id is None:
        visit.job_id = find_by_token(visit)
        if visit.job_id is None:
            return f"a job named {visit.token} may be queued: look for it, and cancel it by its id"
    answer = visit.transport.run(visit.scheduler.cancel_argv([visit.job_id]), visit.scheduler.command_timeout_s)
    return "" if visit.scheduler.has_cancelled(answer) else f"job {visit.job_id} was not cancelled: {_said(answer)}"
