"""The batch system: does it answer, may the user charge an account, are the partitions as the site file says."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace

from orchestrator.forecast.ask import Inquiry, ask_accounts, ask_limits
from orchestrator.recipe.hosts import HERE, Partition
from orchestrator.recipe.sections import LocalSchedulerSpec, SchedulerSpec
from orchestrator.remote_host import bring_programs
from orchestrator.resolve import PATH_AT_LOGIN, find_scheduler_there
from orchestrator.schedulers import (
    PartitionFacts,
    PartitionLimits,
    find_scheduler,
    make_scheduler,
    make_scheduler_there,
)
from orchestrator.schedulers.local import MACHINE
from orchestrator.sitecheck.findings import Finding, failed, not_applicable, ok, warning
from orchestrator.sitecheck.visit import Visit

SITE_FILE = "site file"


def look_at_scheduler(visit: Visit) -> Finding:
    """Ask the batch system for the user's jobs and for its version."""
    spec, why = _scheduler_spec(visit)
    is_plain = visit.name != HERE and isinstance(spec, LocalSchedulerSpec)
    if is_plain and visit.centre.scheduler is None:
        return failed(
            "the site file names no scheduler, and neither sbatch nor qsub is on PATH there",
            f"Add scheduler: {{kind: local}} if it is a machine without a batch system. {PATH_AT_LOGIN}",
        )
    scheduler = make_scheduler(spec)
    if is_plain:
        scheduler = make_scheduler_there(spec, visit.name, visit.environment.supervisor_python, str(visit.own_folder))
        bring_programs(scheduler, visit.transport)
    visit.spec = spec
    inquiry = Inquiry(scheduler, visit.transport)
    answer = inquiry.ask(scheduler.status_argv())
    if answer is None or scheduler.parse_status(answer) is None:
        return failed(
            f"{scheduler.kind}: {inquiry.why_not(answer)}",
            f"Try `{shlex.join(scheduler.status_argv())}` there; a site in maintenance answers later.",
        )
    visit.scheduler = scheduler
    if is_plain and _ends_with_the_login(visit):
        return warning(
            "systemd-logind there ends all processes of a user with the last login (KillUserProcesses=yes)",
            "Jobs would not outlive the connection: ask for KillUserProcesses=no, or your name in KillExcludeUsers.",
        )
    argv = scheduler.version_argv()
    version = inquiry.ask(argv) if argv else None
    lines = version.stdout.strip().splitlines() if version and version.returncode == 0 else []
    return ok(f"{scheduler.kind}{f': {lines[-1].strip()}' if lines else ''} ({why})")


def _ends_with_the_login(visit: Visit) -> bool:
    """Return whether processes of another session end with it. Source: org.freedesktop.login1(5), logind.conf(5)."""
    manager = ("org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager")
    answer = visit.transport.run(["busctl", "get-property", *manager, "KillUserProcesses"], 20.0)
    return answer.returncode == 0 and answer.stdout.split() == ["b", "true"]


def _scheduler_spec(visit: Visit) -> tuple[SchedulerSpec, str]:
    if visit.centre.scheduler is not None:
        return visit.centre.scheduler, "as the site file says"
    if visit.name == HERE:
        return find_scheduler()
    notes: list[str] = []
    spec = find_scheduler_there(visit.name, visit.transport, notes)
    return spec, notes[-1].partition(", because ")[2]


def look_at_account(visit: Visit) -> Finding:
    """Ask what the user may charge."""
    account, qos = visit.centre.account, visit.centre.qos
    accounts, words = ask_accounts(visit.inquiry)
    if accounts is None:
        said = f"account {account}, as the site file says; " if account else ""
        return not_applicable(f"{said}{words.removeprefix('not applicable: ')}")
    if not accounts:
        return failed("the scheduler knows no account of yours", "Ask the site for a project.")
    if account is None:
        return ok(f"{words}; the default one is charged")
    mine = [item for item in accounts if item.account == account]
    if not mine:
        return failed(f"'{account}' is not yours. {words.capitalize()}", "Correct `account` in the site file.")
    allowed = {name for item in mine for name in item.qos}
    if qos is not None and allowed and qos not in allowed:
        return failed(
            f"qos '{qos}' does not go with account '{account}'. Allowed: {', '.join(sorted(allowed))}",
            "Correct `qos` in the site file.",
        )
    return ok(f"'{account}' is yours" + (f", with qos '{qos}'" if qos else ""))


def look_at_partitions(visit: Visit) -> Finding:
    """Compare the partitions that the site file names with those that the scheduler has."""
    scheduler, centre = visit.batch, visit.centre
    inquiry = visit.inquiry
    answer = inquiry.ask(scheduler.partitions_argv())
    told = dict(scheduler.parse_partitions(answer)) if answer is not None else {}
    claims = centre.partitions
    visit.facts = {
        **told,
        **{name: PartitionFacts(item.gpus_per_node, SITE_FILE, item.gpu_type) for name, item in claims.items()},
    }
    if MACHINE in told:
        return not_applicable(f"{told[MACHINE].words}; it has no partitions")
    roles = centre.role_partitions
    named = dict.fromkeys([*claims, *filter(None, (roles.server, roles.client, roles.monitoring, roles.trial))])
    limits, words = ask_limits(inquiry)
    if not limits:
        return failed(f"the scheduler does not tell its partitions: {words}", "Ask it again, or by hand.")
    if not named:
        return not_applicable(f"the site file names none; the scheduler has {words}")
    return _compare(tuple(named), claims, limits, told, words)


def _compare(
    named: tuple[str, ...],
    claims: Mapping[str, Partition],
    limits: Mapping[str, PartitionLimits],
    told: Mapping[str, PartitionFacts],
    words: str,
) -> Finding:
    wrong = [f"there is no '{name}'; there are: {words}" for name in named if name not in limits]
    doubts = [f"'{name}' takes or starts no jobs now" for name in named if name in limits and not limits[name].is_up]
    for name, claim in claims.items():
        if name not in limits:
            continue
        most = told.get(name) or told.get("")
        # A queue's own limit, if it has one; otherwise the largest node of the queue, or of the whole cluster.
        gpus = limits[name].gpus if limits[name].gpus is not None else most.gpus_per_node if most else None
        kind = limits[name].gpu_type
        if gpus is not None and claim.gpus_per_node > gpus:
            wrong.append(f"'{name}' has {gpus} GPUs per node, the site file says {claim.gpus_per_node}")
        elif gpus is not None and claim.gpus_per_node < gpus and name in told:
            doubts.append(f"'{name}' has {gpus} GPUs per node, the site file says {claim.gpus_per_node}")
        if claim.gpu_type and kind and claim.gpu_type != kind and claim.gpus_per_node:
            wrong.append(f"'{name}' calls its GPUs {kind}, the site file {claim.gpu_type}")
    if wrong or doubts:
        finding = (failed if wrong else warning)("; ".join([*wrong, *doubts]), "Correct partitions in the site file.")
        return finding if wrong or any("GPUs" in text for text in doubts) else replace(finding, remedy="Wait, or ask.")
    shown = [f"{name} ({claims[name].gpus_per_node} GPUs)" if name in claims else name for name in named]
    return ok(", ".join(shown))
