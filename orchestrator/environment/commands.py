"""The command `env create`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex

import yaml
from rich.console import Console

from orchestrator.compose import Request, load
from orchestrator.environment.build import Build
from orchestrator.environment.lockfile import LockFile
from orchestrator.environment.place import Place, checked_path, path_of_python
from orchestrator.environment.prune import Prune
from orchestrator.environment.roles import (
    DEFAULT,
    VLLM,
    VLLM_CPU,
    Wanted,
    hosts_of,
    imports_of,
    parse_roles,
    read_requirements,
    roles_of,
)
from orchestrator.errors import UserError
from orchestrator.hosts import PROJECT
from orchestrator.interrupts import Interrupts, TerminatedError
from orchestrator.recipe.document import Recipe
from orchestrator.recipe.hosts import HERE, Centre
from orchestrator.recipe.infrastructure import Environment
from orchestrator.resolve import merge_environment
from orchestrator.site import Site, load_site
from orchestrator.sitecheck.commands import EXIT_INTERRUPTED, Subparsers
from orchestrator.sitecheck.findings import Check, Step, not_tried, try_checks
from orchestrator.sitecheck.packages import Packages
from orchestrator.sitecheck.show import as_json, exit_code, show_counts, show_step
from orchestrator.sitecheck.visit import Options, Visit
from orchestrator.space.places import cache_here
from orchestrator.transports import LocalTransport, Transport
from orchestrator.transports.ways import can_ask, way_to

COMMANDS = ("env",)
EPILOG = """\
  orch.py env create [RECIPE]     make the Python environment of a recipe's jobs
"""
_NAME_WIDTH = 8


def add_commands(subparsers: Subparsers[argparse.ArgumentParser], parents: Sequence[argparse.ArgumentParser]) -> None:
    """Add `env` to the command line.

    Args:
        subparsers: Of orch.py.
        parents: With --output-dir, --json and what all commands have.
    """
    env = subparsers.add_parser("env", help="make the Python environment of jobs")
    actions = env.add_subparsers(dest="action", required=True, metavar="create")
    create = actions.add_parser("create", parents=parents, help="make the Python environment of jobs")
    create.add_argument("recipe", nargs="?", type=Path, metavar="RECIPE", help="recipe whose jobs it is for")
    create.add_argument("--site", type=Path, metavar="FILE", help="site file")
    create.add_argument("--host", metavar="NAME", help="host of recipe or site file; 'here' for this machine")
    create.add_argument("--path", metavar="DIR", help="the environment (where environment.python is; else BASE/env)")
    create.add_argument(
        "--for", dest="roles", metavar="ROLES", help="client, trainer, server[=vllm], server=vllm-cpu, agent; or none"
    )
    create.add_argument("--python", metavar="PROGRAM", help="interpreter to make it of (found if not given)")
    create.add_argument("--wheelhouse", type=Path, metavar="DIR", help="collect wheels here, and install only those")
    create.add_argument(
        "--requirements", type=Path, action="append", default=[], metavar="FILE", help="further packages; repeatable"
    )
    create.add_argument("--prune", action="store_true", help="remove older ones that no run uses")
    create.add_argument("--dry-run", action="store_true", help="look, and print the commands; change nothing")


@dataclass(frozen=True)
class _Target:
    """The machine that was asked for.

    Attributes:
        name: ``here`` or the host's.
        environment: Of jobs there.
        folder: In which environments are made if nothing names another.
        roles: That jobs there need.
        field: Where `python` belongs, from the document's top.
        source: That document.
    """

    name: str
    centre: Centre
    transport: Transport
    environment: Environment
    folder: str
    roles: tuple[str, ...]
    field: tuple[str, ...]
    source: str


def run_command(arguments: argparse.Namespace, packages: Packages) -> int:
    """Make an environment, print the steps and what to write where, and return 0 if none failed, 1 if one did.

    Raises:
        UserError: recipe, site file, host or an option are wrong.
    """
    target = _target(arguments)
    roles = target.roles if arguments.roles is None else parse_roles(arguments.roles)
    wanted = Wanted(roles, read_requirements(arguments.requirements), imports_of(roles, packages))
    place = Place(_visit(arguments, target, packages))
    lock = LockFile(PROJECT / "uv.lock")
    build = Build(place, wanted, lock, arguments.python, arguments.wheelhouse, arguments.dry_run)
    checks = build.checks(can_ask())
    if arguments.prune:
        prune = Prune(build, (arguments.output_dir or PROJECT / "output").absolute())
        checks.append(Check("prune", prune.look, ("switch",)))
    place.visit.interrupts.install()
    console = Console(highlight=False, quiet=arguments.json, soft_wrap=False)
    console.print(f"{target.name}, {wanted}", markup=False)
    steps, was_interrupted = _try(build, checks, console)
    if arguments.json:
        document = as_json(target.name, target.source, steps, was_interrupted)
        document |= {"path": str(place.path), "made": place.build.name if build.is_switched else None}
        print(json.dumps(document, indent=2))  # noqa: T201
    else:
        show_counts(steps, console)
        if build.is_switched or (arguments.dry_run and not exit_code(steps)):
            print(_what_to_write(target, wanted, str(place.path / "bin" / "python"), arguments.dry_run))  # noqa: T201
    if was_interrupted:
        print("orch: interrupted; see the step 'clean up'", file=sys.stderr)  # noqa: T201
        return EXIT_INTERRUPTED
    return exit_code(steps)


def _try(build: Build, checks: Sequence[Check], console: Console) -> tuple[list[Step], bool]:
    """Try all steps, each shown as it ends; return them, and whether Ctrl-C ended them."""
    steps: list[Step] = []
    under_way = ""
    was_interrupted = False

    def add(step: Step) -> None:
        steps.append(step)
        show_step(step, console, _NAME_WIDTH)

    with Console(file=sys.stderr, highlight=False).status("") as spinner:

        def begin(name: str) -> None:
            nonlocal under_way
            under_way = name
            spinner.update(f"{name} (since {time.strftime('%H:%M:%S')})")

        try:
            for step in try_checks(checks, begin):
                add(step)
        except KeyboardInterrupt:
            was_interrupted = True
            add(Step(under_way, not_tried("interrupted")))
        except TerminatedError:
            add(Step(under_way, not_tried("terminated")))
            raise
        finally:
            build.place.visit.interrupts.ignore()
            if build.hold is not None:
                begin("clean up")
                add(Step("clean up", build.clean_up()))
    return steps, was_interrupted


def _target(arguments: argparse.Namespace) -> _Target:
    """Find the machine, and what recipe and site file say of it.

    Raises:
        UserError: there is no such host, or the recipe's jobs run on several and none is named.
    """
    recipe: Recipe | None = None
    if arguments.recipe is None:
        site, source = load_site(arguments.site)
    else:
        recipe, site, source = load(Request(arguments.recipe, site=arguments.site))
    name = arguments.host or _only_host(recipe)
    own = recipe.job.environment if recipe is not None else Environment()
    roles = DEFAULT if recipe is None else roles_of(recipe, name)
    if recipe is not None and not roles and arguments.roles is None:
        raise UserError(
            f"{arguments.recipe}: none of its jobs on '{name}' needs an environment.\n"
            f"Hosts: {', '.join(hosts_of(recipe)) or 'none'}. Or say what for: --for."
        )
    if name == HERE:
        field = ("environment",) if recipe is None else ("job", "environment")
        environment = merge_environment(own, site.environment, "")
        folder = str(cache_here(arguments.site, PROJECT))
        where = source if recipe is None else str(arguments.recipe)
        return _Target(name, site, LocalTransport(), environment, folder, roles, field, where)
    return _far_target(name, site, source, recipe, arguments, roles)


def _far_target(
    name: str, site: Site, source: str, recipe: Recipe | None, arguments: argparse.Namespace, roles: tuple[str, ...]
) -> _Target:
    hosts = {**site.hosts, **(recipe.job.hosts if recipe is not None else {})}
    if name not in hosts:
        known = ", ".join(sorted(hosts)) or "none: describe it under `hosts`, or try `orch.py site init --host`"
        raise UserError(f"'{name}' is no host of recipe or site file ({source}).\nKnown: {known}")
    spec = hosts[name]
    own = recipe.job.environment if recipe is not None else Environment()
    environment = merge_environment(spec.environment, own, "")
    is_recipes = recipe is not None and name in recipe.job.hosts
    field = ("job", "hosts", name, "environment") if is_recipes else ("hosts", name, "environment")
    where = str(arguments.recipe) if is_recipes else source
    return _Target(name, spec, way_to(spec.ssh), environment, spec.cache_dir or spec.base_dir, roles, field, where)


def _only_host(recipe: Recipe | None) -> str:
    if recipe is None:
        return HERE
    hosts = hosts_of(recipe)
    if len(hosts) > 1:
        raise UserError(f"the jobs of this recipe run on {' and '.join(hosts)}.\nMake each environment: --host NAME.")
    return hosts[0] if hosts else HERE


def _visit(arguments: argparse.Namespace, target: _Target, packages: Packages) -> Visit:
    given = arguments.path
    if given is not None and target.name == HERE:
        given = str(Path(given).expanduser().absolute())
    path = given or path_of_python(target.environment.python) or f"{target.folder}/env"
    return Visit(
        name=target.name,
        centre=target.centre,
        transport=target.transport,
        environment=target.environment,
        folder=checked_path(path),
        token=f"orch-env-{token_hex(4)}",
        packages=packages,
        options=Options(wants_job=False),
        interrupts=Interrupts(),
    )


def _what_to_write(target: _Target, wanted: Wanted, python: str, is_dry: bool) -> str:
    """Return the lines for the recipe or the site file."""
    if target.environment.python == python:
        return f"{target.source} names it already: {'.'.join(target.field)}.python"
    document: object = {"python": python}
    field, where = target.field, "your site file" if target.source == "none" else target.source
    if wanted.roles and {*wanted.roles} <= {VLLM, VLLM_CPU}:
        # Nothing else runs in it, and a site file has no engine.
        document = {"kind": "vllm", "python": python}
        field, where = ("job", "engine"), target.source if target.field[0] == "job" else "your recipe"
    for name in reversed(field):
        document = {name: document}
    is_yaml = where.endswith((".yaml", ".yml")) or where == "your site file"
    text = yaml.safe_dump(document, sort_keys=False, width=10_000).rstrip() if is_yaml else json.dumps(document)
    return f"{'It would then go' if is_dry else 'Now put this'} into {where}:\n\n{text}"
