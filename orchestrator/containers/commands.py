"""The commands `containers build`, `pull`, `list` and `verify`."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from orchestrator.containers.definition import catalogue, definition_of
from orchestrator.containers.lock import maker_words
from orchestrator.containers.making import fetch
from orchestrator.containers.store import Entry, Store, partial_of
from orchestrator.errors import DocumentError, UserError
from orchestrator.hosts import PROJECT
from orchestrator.interrupts import Interrupts
from orchestrator.models.meter import bar_meter, telling_meter
from orchestrator.recipe.container import Container
from orchestrator.recipe.load import validate
from orchestrator.site import load_site
from orchestrator.sitecheck.commands import Subparsers
from orchestrator.space.places import cache_here
from orchestrator.space.wording import size_text

COMMANDS = ("containers",)
EPILOG = """\
  orch.py containers build|pull|list|verify [NAME ...]   images that jobs run in
"""
_HELP = {
    "build": "build images from containers/NAME.def",
    "pull": "pull images that need no building",
    "list": "list the images of the catalogue and of the store",
    "verify": "read images whole and compare their checksums",
}


def add_commands(subparsers: Subparsers[argparse.ArgumentParser], parents: Sequence[argparse.ArgumentParser]) -> None:
    """Add `containers` to the command line.

    Args:
        subparsers: Of orch.py.
        parents: With --json and what all commands have.
    """
    containers = subparsers.add_parser("containers", help="make and look after the images that jobs run in")
    actions = containers.add_subparsers(dest="action", required=True, metavar="|".join(_HELP))
    for action, text in _HELP.items():
        command = actions.add_parser(action, parents=parents, help=text)
        command.add_argument("--site", type=Path, metavar="FILE", help="site file")
        command.add_argument("--dir", type=Path, metavar="DIR", help="the store (container.dir of the site file)")
        if action != "list":
            command.add_argument("names", nargs="*", metavar="NAME", help=", ".join(catalogue()))
        if action in {"build", "pull"}:
            command.add_argument("--registry", metavar="PREFIX", help="mirror or folder in place of public registries")
            command.add_argument("--force", action="store_true", help="make it again if it is there")


def run_command(arguments: argparse.Namespace) -> int:
    """Run one of the commands and return 0, or 1 if `verify` found an image damaged.

    Raises:
        OrchError: an image could not be made, or a name is unknown.
    """
    site, _ = load_site(arguments.site)
    container = site.container
    chosen = arguments.dir or container.dir
    store = Store(
        Path(chosen).expanduser().absolute() if chosen else cache_here(arguments.site, PROJECT) / "containers"
    )
    if arguments.action == "list":
        return _list(store, arguments.json)
    if arguments.action == "verify":
        return _verify(store, arguments)
    return _make(store, container, arguments)


def _make(store: Store, container: Container, arguments: argparse.Namespace) -> int:
    definitions = [definition_of(name) for name in arguments.names]
    if not definitions:
        raise UserError(f"containers {arguments.action}: which?\nName some of {', '.join(catalogue())}.")
    for definition in definitions:
        action, why = ("build", "packages are") if definition.is_built else ("pull", "nothing is")
        if arguments.action != action:
            raise UserError(f"{definition.name}: {why} installed into it.\nUse `orch.py containers {action}`.")
    if arguments.registry:
        document = {**container.model_dump(), "registry": arguments.registry}
        container = validate(Container, document, "--registry", DocumentError)
    Interrupts().install()
    console = Console(stderr=True, highlight=False)
    made = []
    for definition in definitions:
        with console.status("") as spinner:

            def tell(words: str) -> None:
                spinner.update(f"{words} (since {time.strftime('%H:%M:%S')})")
                if not console.is_terminal:
                    console.print(words, markup=False, soft_wrap=True)

            image = fetch(definition, store, container, tell, telling_meter(tell), arguments.force)
        made.append({"name": definition.name, "version": definition.version, "image": str(image)})
        if not arguments.json:
            print(image)  # noqa: T201
    if arguments.json:
        print(json.dumps(made, indent=2))  # noqa: T201
    return 0


def _rows(store: Store) -> Iterator[dict[str, Any]]:
    """Yield what is known of each image: first the catalogue's, then what else is in the store."""
    known = {definition.folder for definition in catalogue().values()}
    for definition in catalogue().values():
        entry = store.entry(definition)
        if entry.folder.exists():
            state = entry.fault() or "there"
        elif partial_of(entry.folder).exists():
            maker = maker_words(entry.folder)
            state = f"{maker} is making it" if maker else "unfinished"
        else:
            state = "missing"
        yield _row(entry, definition.name, definition.version, state)
    for entry in store.entries():
        if entry.folder.name not in known:
            manifest = entry.manifest
            name, version = (manifest.name, manifest.version) if manifest else (entry.folder.name, "?")
            yield _row(entry, name, version, entry.fault() or "other version")


def _row(entry: Entry, name: str, version: str, state: str) -> dict[str, Any]:
    manifest = entry.manifest
    return {
        "name": name,
        "version": version,
        "state": state,
        "image": str(entry.image),
        "size": manifest.size if manifest else None,
        "source": manifest.source if manifest else None,
        "sha256": manifest.sha256 if manifest else None,
        "verified_at": manifest.verified_at if manifest else None,
    }


def _list(store: Store, is_json: bool) -> int:
    rows = list(_rows(store))
    if is_json:
        print(json.dumps(rows, indent=2))  # noqa: T201
        return 0
    table = Table("image", "version", "state", "size", "verified", box=None, pad_edge=False)
    for row in rows:
        size = "" if row["size"] is None else size_text(row["size"])
        at = row["verified_at"]
        verified = "" if at is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
        table.add_row(row["name"], row["version"], row["state"], size, verified)
    console = Console(highlight=False, markup=False)
    console.print(f"images in {store.folder}", soft_wrap=True)
    console.print(table)
    return 0


def _verify(store: Store, arguments: argparse.Namespace) -> int:
    definitions = [definition_of(name) for name in arguments.names]
    entries = [store.entry(definition) for definition in definitions] or list(store.entries())
    meter, found = bar_meter(Console(stderr=True, highlight=False)), []
    for entry in entries:
        with meter(entry.folder.name, entry.manifest.size if entry.manifest else 0) as step:
            fault = entry.verify(step)
        found.append({"image": str(entry.image), "fault": fault or None})
        if not arguments.json:
            print(f"{entry.folder.name}: {fault or 'whole'}")  # noqa: T201
    if arguments.json:
        print(json.dumps(found, indent=2))  # noqa: T201
    elif any(each["fault"] for each in found):
        print("`orch.py containers build|pull --force NAME` makes a damaged image again.")  # noqa: T201
    return int(any(each["fault"] for each in found))
