"""The command `models`: pull, list, verify, convert."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from orchestrator.errors import ModelNotFoundError, UserError
from orchestrator.hosts import PROJECT
from orchestrator.interrupts import Interrupts
from orchestrator.models.hub import Hub, read_token
from orchestrator.models.manifest import Manifest, faults, size_faults
from orchestrator.models.meter import Meter, bar_meter, telling_meter
from orchestrator.models.pull import pull_directory, pull_hub
from orchestrator.models.source import ModelSource, convert_once, is_hub_id, package_of
from orchestrator.models.store import MAIN, Held, hub_places, list_models
from orchestrator.site import load_site
from orchestrator.sitecheck.commands import EXIT_INTERRUPTED
from orchestrator.space.places import cache_here
from orchestrator.space.wording import size_text

COMMANDS = ("models",)
EPILOG = """\
  orch.py models pull MODEL       bring a model into the store, and check it
  orch.py models list             what is in the store
  orch.py models verify [MODEL]   compare files with their checksums
  orch.py models convert MODEL    make a model of a GGUF file
"""
EXIT_FAULTY = 1
_NO_MANIFEST = "no checksums"


def add_commands(subparsers: Any, parents: Sequence[argparse.ArgumentParser]) -> None:
    """Add `models` to the command line.

    Args:
        subparsers: Of argparse.
        parents: Options that it shares with the others: log level, JSON, output folder.
    """
    models = subparsers.add_parser("models", help="pull, list, verify and convert models")
    actions = models.add_subparsers(dest="action", required=True, metavar="pull | list | verify | convert")
    common = argparse.ArgumentParser(add_help=False, parents=[*parents])
    common.add_argument("--site", type=Path, default=None, metavar="FILE", help="site file")
    pull = actions.add_parser("pull", parents=[common], help="bring a model into the store, whole and checked")
    pull.add_argument("model", metavar="MODEL", help="id at the hub (OWNER/NAME), directory, or package:NAME")
    pull.add_argument("--revision", default=None, metavar="R", help="branch, tag or commit at the hub (main)")
    pull.add_argument("--token-file", type=Path, default=None, metavar="F", help="the hub's token; else HF_TOKEN")
    actions.add_parser("list", parents=[common], help="what is in the store")
    verify = actions.add_parser("verify", parents=[common], help="compare files with their checksums")
    verify.add_argument("model", nargs="?", default=None, metavar="MODEL", help="as `list` shows it; all if not given")
    convert = actions.add_parser("convert", parents=[common], help="make a model of a GGUF file")
    convert.add_argument("model", metavar="MODEL", help="package:NAME, or FILE.gguf")
    for converting in (pull, convert):
        converting.add_argument("--name", default=None, metavar="N", help="in the store, of a directory or FILE.gguf")
        converting.add_argument(
            "--python", default=sys.executable, metavar="PROGRAM", help="interpreter that converts, and has the package"
        )


class _Desk:
    """What the four actions share: where the store is, and how they tell what they do."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        site, _ = load_site(arguments.site)
        self.cache = cache_here(arguments.site, PROJECT)
        self.hubs = hub_places(self.cache, {**os.environ, **site.environment.variables})
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)

    def tell(self, text: str) -> None:
        """Tell what happens, on standard error."""
        self._console.print(text, markup=False)

    @property
    def meter(self) -> Meter:
        """Shows how far something is, on standard error."""
        return bar_meter(Console(stderr=True)) if self._console.is_terminal else telling_meter(self.tell)

    def folder(self, name: str) -> Path:
        """Return the folder for a model that is ``name`` unless another name is given.

        Raises:
            UserError: it is no name for one.
        """
        name = self.arguments.name or name
        if "/" in name or name.startswith("."):
            raise UserError(f"'{name}' is no name for a model: it begins with a dot or has a slash. See --name.")
        return self.cache / "models" / name

    def refuse_name(self) -> None:
        """Raise a UserError if a name is given to a model that has its own."""
        if self.arguments.name is not None:
            raise UserError(f"--name: {self.arguments.model} has its own. Only directories and GGUF files are named.")

    def show(self, held: Held) -> int:
        """Print one model, and return the exit code."""
        if self.arguments.json:
            print(json.dumps(_as_json(held), indent=2))  # noqa: T201
        else:
            names = f" ({', '.join(held.revisions)})" if held.revisions else ""
            print(f"{held.model}{names}: {_size_words(held.manifest)} in {held.folder}")  # noqa: T201
        return 0


def run_command(arguments: argparse.Namespace) -> int:
    """Run one of the actions; 1 where a model is found damaged.

    Raises:
        UserError: the model does not exist, or an option is wrong.
        HubError: the hub cannot be reached, or cut the connection.
        StorageError: there is no room.
    """
    Interrupts().install()
    desk = _Desk(arguments)
    actions = {"pull": _pull, "list": _list, "verify": _verify, "convert": _convert}
    try:
        return actions[arguments.action](desk)
    except KeyboardInterrupt:
        desk.tell("orch: interrupted; the same command goes on where it stopped")
        return EXIT_INTERRUPTED


def _pull(desk: _Desk) -> int:
    arguments = desk.arguments
    model: str = arguments.model
    if Path(model).expanduser().is_dir() and (Path(model).is_absolute() or model.startswith((".", "~"))):
        if arguments.revision is not None:
            raise UserError("--revision: a directory has none.")
        return desk.show(_pull_directory(Path(model).expanduser().resolve(), desk))
    if model.startswith((".", "~")) or not is_hub_id(model):
        return _convert(desk)
    desk.refuse_name()
    token = read_token(arguments.token_file) if arguments.token_file is not None else None
    held = pull_hub(model, arguments.revision or MAIN, desk.hubs[0], Hub(token), desk.meter, desk.tell)
    return desk.show(held)


def _pull_directory(folder: Path, desk: _Desk) -> Held:
    if not (folder / "config.json").is_file():
        raise ModelNotFoundError(f"{folder} holds no config.json: it is not a Hugging Face model.")
    return pull_directory(folder, desk.folder(folder.name), desk.meter, desk.tell)


def _convert(desk: _Desk) -> int:
    model, python = desk.arguments.model, desk.arguments.python
    if package_of(model) is not None:
        desk.refuse_name()
        source = ModelSource(model, python, desk.cache, desk.hubs)
        return desk.show(convert_once(model, source.gguf, source.store, python, desk.meter, desk.tell))
    file = Path(model).expanduser().resolve()
    if file.suffix.lower() != ".gguf" or not file.is_file():
        raise ModelNotFoundError(
            f"{model}: there is no such GGUF file or directory.\nAllowed: package:NAME, FILE.gguf."
        )
    target = desk.folder(file.stem)
    return desk.show(convert_once(str(target), lambda: file, target, python, desk.meter, desk.tell))


def _list(desk: _Desk) -> int:
    found = list(list_models(desk.cache, desk.hubs))
    if desk.arguments.json:
        print(json.dumps({"models": [_as_json(held) for held in found]}, indent=2))  # noqa: T201
        return 0
    table = Table("model", "revision", "files", "size", "state", box=None, pad_edge=False)
    for held in found:
        files = str(len(held.manifest.files)) if held.manifest else "?"
        size = size_text(held.manifest.size) if held.manifest else "?"
        table.add_row(held.model, ", ".join(name[:12] for name in held.revisions), files, size, _state(held))
    console = Console(highlight=False, markup=False)
    console.print(table if found else f"There are no models in {desk.cache / 'models'} and {desk.hubs[0]}.")
    return 0


def _verify(desk: _Desk) -> int:
    chosen = [held for held in list_models(desk.cache, desk.hubs) if _is_meant(held, desk.arguments.model)]
    if desk.arguments.model is not None and not chosen:
        raise ModelNotFoundError(
            f"'{desk.arguments.model}' is not in the store.\n`orch.py models list` shows what is there."
        )
    results = {held: _faults(held, desk.meter) for held in chosen}
    if desk.arguments.json:
        models = [{**_as_json(held), "faults": found} for held, found in results.items()]
        print(json.dumps({"models": models}, indent=2))  # noqa: T201
    else:
        for held, found in results.items():
            verdict = "damaged" if found else f"ok, {_size_words(held.manifest)}" if held.manifest else _NO_MANIFEST
            print(f"{held.model}: {verdict} ({held.folder})")  # noqa: T201
            for fault in found:
                print(f"  {fault}")  # noqa: T201
        if any(results.values()):
            desk.tell("`orch.py models pull MODEL` brings anew what is damaged; `convert MODEL`, what was converted.")
    return EXIT_FAULTY if any(results.values()) else 0


def _is_meant(held: Held, model: str | None) -> bool:
    return model is None or model in {held.model, str(held.folder), held.folder.name}


def _faults(held: Held, meter: Meter) -> list[str]:
    """Return what is wrong with a model's files; nothing is known of those without checksums."""
    if held.manifest is None:
        return []
    try:
        return faults(held.folder, held.manifest, meter)
    except OSError as error:
        return [f"{error.filename}: cannot be read: {error.strerror}"]


def _state(held: Held) -> str:
    if held.manifest is None:
        return _NO_MANIFEST
    return "not whole" if size_faults(held.folder, held.manifest) else "whole"


def _size_words(manifest: Manifest | None) -> str:
    return _NO_MANIFEST if manifest is None else f"{len(manifest.files)} files, {size_text(manifest.size)}"


def _as_json(held: Held) -> dict[str, Any]:
    manifest = held.manifest
    return {
        "model": held.model,
        "revisions": list(held.revisions),
        "folder": str(held.folder),
        "files": len(manifest.files) if manifest else None,
        "bytes": manifest.size if manifest else None,
        "state": _state(held),
    }
