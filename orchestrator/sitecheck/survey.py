"""What a machine says of itself, as far as a site file needs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.errors import TransportError
from orchestrator.forecast.ask import Inquiry, ask_accounts, ask_limits
from orchestrator.recipe.hosts import BASE_DIR
from orchestrator.recipe.sections import Binaries, LocalSchedulerSpec, SchedulerSpec
from orchestrator.resolve import find_scheduler_there
from orchestrator.schedulers import (
    Association,
    PartitionFacts,
    PartitionLimits,
    find_scheduler,
    make_scheduler,
    make_scheduler_there,
)
from orchestrator.schedulers.local import MACHINE
from orchestrator.sitecheck.software import PYTHON_CODE, Interpreter, parse_python
from orchestrator.transports import Transport

LOGIN_TIMEOUT_S = 60.0
_DEBIAN = "prometheus-"
_BATCH_PROGRAMS = ("sbatch", "qsub")
# One name and value a line, after a mark that no start-up file prints.
_LOOK = r"""
tell() { printf 'orch-fact %s %s\n' "$1" "$2"; }
tell machine "$(uname -n)"
tell home "$HOME"
if type module >/dev/null 2>&1; then
  tell modules "${LMOD_VERSION:+Lmod $LMOD_VERSION}"
  tell module_list "${LOADEDMODULES-}"
fi
for name in apptainer singularity; do
  if command -v "$name" >/dev/null 2>&1; then tell container "$("$name" --version 2>/dev/null | tail -n 1)"; break; fi
done
for name in http_proxy https_proxy no_proxy; do
  if [ -n "${!name-}" ]; then tell "proxy_$name" "${!name}"; fi
done
for name in "$@"; do
  path=$(command -v "$name" 2>/dev/null) && tell "program_$name" "$path"
done
exit 0
"""


@dataclass(frozen=True)
class Survey:
    """What was found.

    Attributes:
        machine: Its name.
        spec: Its scheduler, as a recipe would say it.
        version: What the scheduler calls itself, empty if it does not.
        limits: By partition; empty if the scheduler does not tell.
        limits_words: What was said of partitions.
        largest: What the largest of all nodes has, where it is not told by partition, or a machine without a batch
            system; None otherwise.
        accounts: What the user may charge; None if the scheduler cannot tell.
        accounts_words: What was said of accounts.
        default: The account and qos that are charged by themselves, None if not known.
        python: The interpreter `python3`, None if there is none that answers.
        facts: Further facts by name; see the script above.
    """

    machine: str
    spec: SchedulerSpec
    version: str
    limits: Mapping[str, PartitionLimits]
    limits_words: str
    largest: PartitionFacts | None
    accounts: tuple[Association, ...] | None
    accounts_words: str
    default: Association | None
    python: Interpreter | None
    facts: Mapping[str, str]


def programs() -> tuple[str, ...]:
    """Return what is looked for: batch systems, and monitoring programs by orch's names, then by Debian's."""
    names = [str(field.default) for field in Binaries.model_fields.values()]
    return (*_BATCH_PROGRAMS, *names, *(f"{_DEBIAN}{name.replace('_', '-')}" for name in names if name != "prometheus"))


def survey(transport: Transport, is_here: bool) -> Survey:
    """Ask a machine and its scheduler; each command has its own time limit.

    Raises:
        TransportError: it cannot be asked, or has no scheduler though it is not this machine.
    """
    facts = _facts(transport)
    spec = _spec(transport, is_here, facts)
    scheduler = make_scheduler(spec) if is_here else make_scheduler_there(spec, transport.host, "python3", BASE_DIR)
    inquiry = Inquiry(scheduler, transport)
    argv = scheduler.version_argv()
    version = inquiry.ask(argv) if argv else None
    said = version.stdout.strip().splitlines() if version and version.returncode == 0 else []
    answer = inquiry.ask(scheduler.partitions_argv())
    told = scheduler.parse_partitions(answer) if answer is not None else {}
    limits, limits_words = ask_limits(inquiry)
    accounts, accounts_words = ask_accounts(inquiry)
    defaults = scheduler.defaults_argv()
    answer = inquiry.ask(defaults) if defaults else None
    return Survey(
        machine=facts.get("machine", "unnamed"),
        spec=spec,
        version=said[-1].strip() if said else "",
        limits={} if isinstance(spec, LocalSchedulerSpec) else limits,
        limits_words=limits_words,
        largest=told.get("") or (told.get(MACHINE) if not is_here else None),
        accounts=accounts,
        accounts_words=accounts_words,
        default=scheduler.parse_defaults(answer) if answer is not None else None,
        python=parse_python(transport.run(["python3", "-c", PYTHON_CODE], LOGIN_TIMEOUT_S).stdout),
        facts=facts,
    )


def _facts(transport: Transport) -> dict[str, str]:
    answer = transport.run(["bash", "-l", "-c", _LOOK, "bash", *programs()], LOGIN_TIMEOUT_S)
    if answer.returncode != 0:
        raise TransportError(transport.host, f"a login shell does not answer: {answer.stderr.strip()[-300:]}")
    lines = [line.split(" ", 2) for line in answer.stdout.splitlines() if line.startswith("orch-fact ")]
    return {line[1]: line[2] for line in lines}


def _spec(transport: Transport, is_here: bool, facts: Mapping[str, str]) -> SchedulerSpec:
    if is_here:
        return find_scheduler()[0]
    spec = find_scheduler_there(transport.host, transport, [])
    at_login = [name for name in _BATCH_PROGRAMS if f"program_{name}" in facts]
    if isinstance(spec, LocalSchedulerSpec) and at_login:
        raise TransportError(
            transport.host,
            f"{at_login[0]} is on PATH there at login only",
            "Write its site file by hand, with ssh.reads_profile: true.",
        )
    return spec
