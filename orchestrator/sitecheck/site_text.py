"""A site file from what a machine said: every value it holds was told, and what was not told is a comment."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import SiteError
from orchestrator.forecast.document import clock
from orchestrator.recipe.load import escape_variables, validate
from orchestrator.recipe.sections import Binaries, LocalSchedulerSpec
from orchestrator.recipe.yaml_text import load_yaml
from orchestrator.render import render
from orchestrator.schedulers import PartitionLimits
from orchestrator.site import Site
from orchestrator.sitecheck.packages import PYTHON_FOR_JOBS
from orchestrator.sitecheck.survey import Survey
from orchestrator.transports.ssh_spec import SshSpec

_HOST_INDENT = "    "
MAX_GPUS = 64


@dataclass(frozen=True)
class PartitionText:
    """One partition in the file.

    Attributes:
        name: As the scheduler has it.
        gpus: GPUs of a node; None if nobody told.
        gpu_type: What the scheduler calls them, or None.
        remark: Its limits, for a comment.
    """

    name: str
    gpus: int | None
    gpu_type: str | None
    remark: str


def site_text(found: Survey, ssh: SshSpec | None) -> str:
    """Return the text of a site file that load_site takes.

    Args:
        found: What the machine said.
        ssh: How it is reached; None for this machine.

    Raises:
        SiteError: something it said cannot stand in a site file.
    """
    body = render("sitecheck/centre.yaml.j2", _context(found, ssh is not None))
    heading = {"machine": found.machine, "version": found.version or found.spec.kind}
    if ssh is None:
        text = render("sitecheck/site.yaml.j2", heading) + body
    else:
        way = {"ssh": ssh.model_dump(mode="json", exclude_unset=True)}
        text = render(
            "sitecheck/host.yaml.j2", {**heading, **way, "name": ssh.host.replace(":", "-")}
        ) + textwrap.indent(body, _HOST_INDENT)
    validate(Site, load_yaml(text), "what the machine said", SiteError)
    return text


def _context(found: Survey, is_host: bool) -> dict[str, Any]:
    partitions = [_partition(name, item, found) for name, item in sorted(found.limits.items())]
    facts = {name: escape_variables(value) for name, value in found.facts.items()}
    return {
        "kind": found.spec.kind,
        "is_host": is_host,
        "is_plain": is_host and isinstance(found.spec, LocalSchedulerSpec),
        "partitions": partitions,
        "partitions_words": _comment(found.limits_words),
        "role_partitions": _role_partitions(partitions, found.limits),
        "largest": found.largest.words if found.largest is not None else None,
        "account": _account(found),
        "accounts_words": _comment(found.accounts_words).capitalize(),
        "qos": found.default.qos[0] if found.default is not None and found.default.qos else None,
        "python": str(found.python) if found.python else None,
        "python_is_old": found.python is not None and found.python.version[:2] < PYTHON_FOR_JOBS,
        "python_wanted": ".".join(map(str, PYTHON_FOR_JOBS)),
        "home": _comment(facts.get("home", "")),
        "modules": _comment(facts.get("modules", "")) or "modules" if "modules" in facts else None,
        "module_list": _comment(facts.get("module_list", "")),
        "container": _comment(facts.get("container", "")) or None,
        "binaries": _binaries(facts),
        "proxies": [
            (name.removeprefix("proxy_"), _comment(value)) for name, value in facts.items() if "proxy_" in name
        ],
    }


def _comment(text: str) -> str:
    """Return ``text`` as it can stand in a comment: on one line."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def _partition(name: str, limits: PartitionLimits, found: Survey) -> PartitionText:
    gpus = limits.gpus if limits.gpus is not None else found.largest.gpus_per_node if found.largest else None
    told = [
        f"{limits.nodes} nodes" if limits.nodes else "",
        f"{limits.cpus} CPUs" if limits.cpus else "",
        f"{limits.mem_mib / 1024:.1f} GiB" if limits.mem_mib else "",
        f"at most {clock(limits.max_time_s)}" if limits.max_time_s is not None else "",
        "" if limits.is_up else "not up when it was asked",
        "GPUs: those of the largest node of all" if limits.gpus is None and gpus else "",
        f"{gpus} GPUs per node are more than orch takes" if gpus is not None and gpus > MAX_GPUS else "",
    ]
    known = gpus if gpus is not None and gpus <= MAX_GPUS else None
    # What PBS calls a GPU differs between sites, and is no field of its jobs.
    kind = limits.gpu_type if known else None
    return PartitionText(name, known, kind, ", ".join(filter(None, told)))


def _role_partitions(partitions: list[PartitionText], limits: Mapping[str, PartitionLimits]) -> dict[str, str]:
    """Return which partition each role gets: the first that is up, with GPUs for the server, without for the client."""
    if any(limits[item.name].gpus is None for item in partitions):
        return {}  # which of them have GPUs is not known
    up = [item for item in partitions if limits[item.name].is_up]
    with_gpus = [item.name for item in up if item.gpus]
    without = [item.name for item in up if not item.gpus]
    if not up:
        return {}
    server, client = (with_gpus or without)[0], (without or with_gpus)[0]
    return {"server": server, "client": client, "monitoring": client, "trial": server}


def _account(found: Survey) -> str | None:
    if found.default is not None:
        return found.default.account
    names = {item.account for item in found.accounts or ()}
    return names.pop() if len(names) == 1 else None


def _binaries(facts: Mapping[str, str]) -> dict[str, str]:
    paths = {}
    for name in Binaries.model_fields:
        debian = f"program_prometheus-{name.replace('_', '-')}"
        path = facts.get(f"program_{name}") or facts.get(debian)
        if path and path.startswith("/"):
            paths[name] = path
    return paths
