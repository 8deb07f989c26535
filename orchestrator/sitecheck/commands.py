"""The commands `check` and `site init`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex

from rich.console import Console
from rich.status import Status

from orchestrator.atomic import make_private_dir, write_text
from orchestrator.errors import DocumentError, UserError
from orchestrator.hosts import PROJECT
from orchestrator.interrupts import Interrupts
from orchestrator.recipe.base import StrictModel, TimeLimit
from orchestrator.recipe.hosts import HERE, Centre, HostSpec
from orchestrator.recipe.load import validate
from orchestrator.site import Site, default_site_path, load_site
from orchestrator.sitecheck.check import run_check
from orchestrator.sitecheck.findings import Step
from orchestrator.sitecheck.packages import Packages
from orchestrator.sitecheck.show import as_json, exit_code, show_steps
from orchestrator.sitecheck.site_text import site_text
from orchestrator.sitecheck.survey import survey
from orchestrator.sitecheck.visit import Options, Visit
from orchestrator.transports import LocalTransport, Transport
from orchestrator.transports.ssh_spec import SshSpec
from orchestrator.transports.ways import can_ask, way_to

COMMANDS = ("check", "site")
EPILOG = """\
  orch.py check [HOST]            prove a site step by step, with a test job
  orch.py site init [--host HOST] write a site file from what the scheduler says
"""
EXIT_INTERRUPTED = 130
_STDOUT = "-"
# Whatever may not stand in an argument of a shell or in one line of a table.
_CONTROL = frozenset(map(chr, range(32))) | {"\x7f"}
Subparsers = argparse._SubParsersAction  # noqa: SLF001 - argparse has no public name for it


def add_commands(
    subparsers: Subparsers[argparse.ArgumentParser],
    parents: Sequence[argparse.ArgumentParser],
    common: argparse.ArgumentParser,
) -> None:
    """Add both commands to the command line.

    Args:
        subparsers: Of orch.py.
        parents: With --output-dir, --json and what all commands have.
        common: With what all commands have.
    """
    check = subparsers.add_parser("check", parents=parents, help="prove a site step by step")
    check.add_argument("host", nargs="?", default=None, metavar="HOST", help="host of the site file; else this machine")
    check.add_argument("--site", type=Path, default=None, metavar="FILE", help="site file")
    check.add_argument("--no-job", action="store_true", help="submit no test job")
    check.add_argument("--data", action="append", default=[], metavar="PATH", help="must be readable there; repeatable")
    check.add_argument("--partition", default=None, metavar="NAME", help="partition or queue of the test job")
    check.add_argument("--gpus", type=int, default=None, metavar="N", help="GPUs of the test job (those claimed)")
    check.add_argument("--time", default="1", metavar="LIMIT", help="wall time of the test job (1 minute)")
    check.add_argument("--wait", type=float, default=300.0, metavar="SECONDS", help="longest wait in the queue (300)")
    check.add_argument(
        "--directive", action="append", default=[], metavar="TEXT", help="further directive of the test job; repeatable"
    )
    site = subparsers.add_parser("site", help="write a site file from what the scheduler says")
    actions = site.add_subparsers(dest="action", required=True, metavar="init")
    init = actions.add_parser("init", parents=[common], help="write a site file from what the scheduler says")
    init.add_argument(
        "--host", default=None, metavar="[USER@]HOST[:PORT]", help="ask a machine over SSH; else this one"
    )
    init.add_argument("--output", type=Path, default=None, metavar="FILE", help="site file; - for standard output")
    init.add_argument("--force", action="store_true", help="replace a file that is there")


def run_command(arguments: argparse.Namespace, packages: Packages) -> int:
    """Run `check` or `site` and return the exit code."""
    return check(arguments, packages) if arguments.command == "check" else init_site(arguments)


def check(arguments: argparse.Namespace, packages: Packages) -> int:
    """Prove a site, print the steps, and return 0 if none failed, 1 if one did.

    Raises:
        UserError: site file, host or an option are wrong.
    """
    site, source = load_site(arguments.site)
    visit = _visit(arguments, site, packages)
    visit.interrupts.install()
    steps: list[Step] = []
    was_interrupted = False
    with _spinner() as spinner:
        try:
            run_check(visit, spinner.update, steps)
        except KeyboardInterrupt:
            was_interrupted = True
    if arguments.json:
        print(json.dumps(as_json(visit.name, source, steps, was_interrupted), indent=2))  # noqa: T201
    else:
        console = Console(highlight=False)
        console.print(f"{visit.name}, site file {source}", soft_wrap=True, markup=False)
        show_steps(steps, console)
    if was_interrupted:
        print("orch: interrupted; see the step 'clean up'", file=sys.stderr)  # noqa: T201
        return EXIT_INTERRUPTED
    return exit_code(steps)


@contextmanager
def _spinner() -> Iterator[Status]:
    # On a terminal only; rich prints nothing of it elsewhere.
    with Console(file=sys.stderr, highlight=False).status("") as status:
        yield status


class _Given(StrictModel):
    """Options that have to be as in a recipe."""

    time: TimeLimit


def _visit(arguments: argparse.Namespace, site: Site, packages: Packages) -> Visit:
    problems = [f"--gpus = {arguments.gpus}: allowed: 0-64"] if not 0 <= (arguments.gpus or 0) <= 64 else []
    problems += [f"--wait = {arguments.wait:g}: allowed: 0-86400"] if not 0 <= arguments.wait <= 86_400 else []
    for text in (*arguments.data, *arguments.directive, arguments.partition or "-"):
        if not text or _CONTROL & set(text):
            problems.append(f"{text!r}: empty, or with control characters")
    try:
        validate(_Given, {"time": arguments.time}, "command line", DocumentError)
    except DocumentError as error:
        problems += [f"--time = {arguments.time}: {problem.what}" for problem in error.problems]
    if problems:
        raise UserError("\n".join(problems))
    name = HERE if arguments.host is None else arguments.host
    centre, transport, folder, python = _place(name, site, arguments.output_dir or PROJECT / "output")
    environment = centre.environment
    return Visit(
        name=name,
        centre=centre,
        transport=transport,
        environment=environment.model_copy(update={"python": environment.python or python}),
        folder=folder,
        token=f"orch-check-{token_hex(4)}",
        packages=packages,
        options=Options(
            wants_job=not arguments.no_job,
            partition=arguments.partition,
            gpus=arguments.gpus,
            time=arguments.time,
            wait_s=arguments.wait,
            directives=tuple(arguments.directive),
            data=tuple(arguments.data),
        ),
        interrupts=Interrupts(),
    )


def _place(name: str, site: Site, output_dir: Path) -> tuple[Centre, Transport, str, str]:
    """Return what is known of a place, the way to it, the folder of its runs and its interpreter if none is named.

    Raises:
        UserError: the site file has no such host.
    """
    if name == HERE:
        return site, LocalTransport(), str(output_dir.expanduser().absolute()), sys.executable
    if name not in site.hosts:
        known = ", ".join(sorted(site.hosts)) or "none: describe it under `hosts`, or try `orch.py site init --host`"
        raise UserError(f"'{name}' is no host of the site file.\nKnown: {known}")
    spec: HostSpec = site.hosts[name]
    return spec, way_to(spec.ssh), spec.base_dir, "python3"


def init_site(arguments: argparse.Namespace) -> int:
    """Ask the scheduler, and write a site file.

    Raises:
        UserError: the file is there already, or the host cannot be one.
        TransportError: the host cannot be asked.
        StorageError: the file cannot be written.
    """
    output: Path = arguments.output or default_site_path()
    is_printed = str(output) == _STDOUT
    if not is_printed and output.exists() and not arguments.force:
        raise UserError(f"{output} is there already.\nGive another with --output, or replace it with --force.")
    ssh = None if arguments.host is None else parse_ssh_host(arguments.host)
    transport: Transport = LocalTransport() if ssh is None else way_to(ssh)
    with _spinner() as spinner:
        spinner.update("asking the scheduler")
        transport.open(interactive=can_ask())
        found = survey(transport, is_here=ssh is None)
    text = site_text(found, ssh)
    if is_printed:
        print(text, end="")  # noqa: T201
        return 0
    make_private_dir(output.absolute().parent)
    write_text(output, text)
    host = f" {ssh.host}" if ssh is not None else ""
    print(f"{output}: written. Read its comments, then: orch.py check{host} --site {output}")  # noqa: T201
    return 0


def parse_ssh_host(text: str) -> SshSpec:
    """Return how ``[user@]host[:port]`` is reached.

    Raises:
        UserError: it is none.
    """
    user, _, address = text.rpartition("@")
    # An address of IPv6 has colons of its own; with a port it stands in brackets.
    host, colon, port = address.rpartition(":") if address.count(":") == 1 or "]:" in address else ("", "", "")
    host, address = host.strip("[]"), address.strip("[]")
    document: dict[str, str] = {"host": host if colon else address}
    document |= {"user": user} if user else {}
    document |= {"port": port} if colon else {}
    return validate(SshSpec, document, f"--host {text}", DocumentError)
