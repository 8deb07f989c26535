"""The commands sync, fetch, du, clean and archive."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from orchestrator.atomic import make_private_dir
from orchestrator.errors import OrchError, UserError
from orchestrator.hosts import PROJECT
from orchestrator.rundir import LATEST, RunDir, find_run, iter_runs
from orchestrator.space import caches
from orchestrator.space.archive import Archived, check_target, default_path, make_archive
from orchestrator.space.caches import CachesHere
from orchestrator.space.clean import RunsHere, away_from, delete_run
from orchestrator.space.far import CachesThere, RunsThere
from orchestrator.space.places import cache_here, open_place
from orchestrator.space.removal import is_doomed, mend_latest
from orchestrator.space.selection import Filters, Item
from orchestrator.space.sending import DEFAULT_TO, FETCHED, USUAL_EXCLUDES, Sent, fetch, send
from orchestrator.space.usage import Tree, Usage, measure, usage_of
from orchestrator.space.verdict import Fate, Queues, judge_run
from orchestrator.space.views import item_json, show_items, show_usage, usage_json
from orchestrator.space.wording import age_argument, size_text
from orchestrator.transports import LocalTransport, TransferOptions
from orchestrator.transports.ways import can_ask

COMMANDS = ("sync", "fetch", "du", "clean", "archive")
EPILOG = """\
  orch.py sync HOST PATH...       send code or data to a host
  orch.py fetch [RUN]             bring a run's results back from its hosts
  orch.py du [--host HOST]        space by run and by kind
  orch.py clean                   delete old or failed runs, checkpoints, caches
  orch.py archive [RUN]           put a run into one file
"""
# What an archive of a run may not wait for: it lives, and changes while it is read.
_LIVING = frozenset({Fate.LIVES, Fate.KEPT})


class _Cleaner(Protocol):
    """One kind of things on one machine that could be deleted; see clean.RunsHere."""

    def look(self) -> list[Item]: ...

    def delete(self, item: Item) -> str: ...

    def finish(self) -> None: ...


def add_commands(subparsers: Any, parents: Sequence[argparse.ArgumentParser]) -> None:
    """Add the five commands to the command line.

    Args:
        subparsers: Of argparse.
        parents: Options that they share with the others: log level, JSON, output folder.
    """
    site = argparse.ArgumentParser(add_help=False, parents=[*parents])
    site.add_argument("--site", type=Path, default=None, metavar="FILE", help="site file")
    copies = argparse.ArgumentParser(add_help=False)
    copies.add_argument("--bwlimit", type=_positive, metavar="KIB", help="at most so many KiB per second")
    copies.add_argument("--no-compress", action="store_true", help="for data that is compressed already")
    copies.add_argument("--checksum", action="store_true", help="compare contents, not sizes and times")
    copies.add_argument("--dry-run", action="store_true", help="only list what would be copied")
    _add_sync(subparsers.add_parser("sync", parents=[site, copies], help="send code or data to a host"))
    fetching = subparsers.add_parser("fetch", parents=[*parents, copies], help="bring a run's results back")
    fetching.add_argument("run", nargs="?", default=LATEST, metavar="RUN")
    fetching.add_argument("--only", choices=[*FETCHED, "all"], default="all", help="which results (all)")
    usage = subparsers.add_parser("du", parents=[site], help="space by run and by kind")
    usage.add_argument("--host", metavar="HOST", help="a host of the site file; this machine if not given")
    _add_clean(subparsers.add_parser("clean", parents=[site], help="delete old or failed runs, checkpoints, caches"))
    _add_archive(subparsers.add_parser("archive", parents=[*parents], help="put a run into one file"))


def _add_sync(sync: argparse.ArgumentParser) -> None:
    sync.add_argument("host", metavar="HOST", help="a host of the site file")
    sync.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="file or folder")
    sync.add_argument("--to", default=DEFAULT_TO, metavar="DIR", help="folder below the host's base_dir (data)")
    sync.add_argument("--exclude", action="append", default=[], metavar="PATTERN", help="as rsync has it, without **")
    sync.add_argument("--all", action="store_true", help=f"send {', '.join(USUAL_EXCLUDES[:3])} and such as well")


def _add_clean(clean: argparse.ArgumentParser) -> None:
    clean.description = "Lists first, then asks. A run that has not surely ended is never deleted."
    clean.add_argument("--host", metavar="HOST", help="clean on a host of the site file instead of here")
    clean.add_argument("--older-than", type=age_argument, metavar="AGE", help="not active for 30d, 12h, 2w")
    clean.add_argument("--failed", action="store_true", help="only runs that were started and not completed")
    clean.add_argument("--keep-last", type=_positive, metavar="N", help="never the newest N runs")
    clean.add_argument("--checkpoints", action="store_true", help="trials' checkpoints of these runs, not the runs")
    clean.add_argument("--caches", action="store_true", help="cached models and containers unused for AGE (30d)")
    clean.add_argument("--dry-run", action="store_true", help="only list")
    clean.add_argument("--yes", action="store_true", help="do not ask")


def _add_archive(archive: argparse.ArgumentParser) -> None:
    archive.add_argument("run", nargs="?", default=LATEST, metavar="RUN")
    archive.add_argument("--output", type=Path, metavar="FILE", help=".tar.zst or .tar.gz (archives/RUN.tar.zst)")
    archive.add_argument("--without-checkpoints", action="store_true", help="leave checkpoints out")
    archive.add_argument("--remove", action="store_true", help="delete the run once the archive was read back")


def _positive(text: str) -> int:
    if not text.isdigit() or not 0 < int(text) < 1 << 31:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def run_command(arguments: argparse.Namespace, output_dir: Path) -> int:
    """Run one of COMMANDS and return its exit code."""
    match arguments.command:
        case "sync":
            return _sync(arguments)
        case "fetch":
            return _fetch(arguments, find_run(output_dir, arguments.run))
        case "du":
            return _du(arguments, output_dir)
        case "clean":
            return _clean(arguments, output_dir)
        case _:
            return _archive(arguments, find_run(output_dir, arguments.run))


def _options(arguments: argparse.Namespace, excludes: tuple[str, ...] = ()) -> TransferOptions:
    try:
        return TransferOptions(
            excludes=excludes,
            bandwidth_limit_kib_per_s=arguments.bwlimit,
            is_compressed=not arguments.no_compress,
            is_dry_run=arguments.dry_run,
            is_checksummed=arguments.checksum,
        )
    except ValueError as error:
        raise UserError(f"--exclude: {error}") from error


def _sync(arguments: argparse.Namespace) -> int:
    usual = () if arguments.all else USUAL_EXCLUDES
    options = _options(arguments, (*usual, *arguments.exclude))
    place = open_place(arguments.host, arguments.site)
    _tell_copies(send(place, arguments.paths, arguments.to, options, _tell), arguments)
    return 0


def _fetch(arguments: argparse.Namespace, run: RunDir) -> int:
    kinds = FETCHED if arguments.only == "all" else (arguments.only,)
    brought = fetch(run, kinds, _options(arguments), _tell, can_ask())
    if not brought:
        _tell("Nothing of this run lies on another machine.")
    _tell_copies(brought, arguments)
    return 0


def _tell_copies(copies: Sequence[Sent], arguments: argparse.Namespace) -> None:
    n_files = sum(len(copy.transfer.files) for copy in copies)
    n_bytes = sum(copy.transfer.n_bytes for copy in copies)
    if arguments.json:
        listed = [
            {
                "source": copy.source,
                "target": copy.target,
                "files": list(copy.transfer.files),
                "bytes": copy.transfer.n_bytes,
                "method": copy.transfer.method,
            }
            for copy in copies
        ]
        _print_json({"dry_run": arguments.dry_run, "copies": listed, "files": n_files, "bytes": n_bytes})
        return
    for copy in copies if arguments.dry_run else ():
        for name in copy.transfer.files:
            _print(copy.target if Path(copy.target).name == name else f"{copy.target}/{name}")
    what = "would be copied" if arguments.dry_run else "copied"
    _print(f"{n_files} files, {size_text(n_bytes)} {what}; the rest was there already.")


def _du(arguments: argparse.Namespace, output_dir: Path) -> int:
    usage = _usage_there(arguments) if arguments.host else _usage_here(arguments, output_dir)
    if arguments.json:
        _print_json(usage_json(usage))
    else:
        show_usage(usage, Console(markup=False))
    return 0


def _usage_here(arguments: argparse.Namespace, output_dir: Path) -> Usage:
    here, output = LocalTransport(), output_dir.absolute()
    cache = cache_here(arguments.site, PROJECT)
    is_inside = output.resolve() in cache.resolve().parents
    others: dict[str, Tree] = {} if is_inside else {"caches": measure(here, str(cache), 0)}
    names = {run.root.name for run in iter_runs(output)}
    return usage_of(measure(here, str(output)), names, str(output), others)


def _usage_there(arguments: argparse.Namespace) -> Usage:
    place = open_place(arguments.host, arguments.site)
    base, runs = measure(place.transport, place.base, 1), measure(place.transport, place.runs)
    names = {name for name in runs.folders() if not is_doomed(name)}
    inside = {name: Tree({"": size}) for name, size in base.folders().items() if name != "runs"}
    rest = base.total - sum(base.folders().values())
    others = {"caches" if name == "cache" else name: tree for name, tree in inside.items()}
    if not place.cache.startswith(f"{place.base}/"):
        others["caches"] = measure(place.transport, place.cache, 0)
    return usage_of(runs, names, f"{place.name}:{place.base}", {**others, "base_dir itself": Tree({"": rest})})


def _clean(arguments: argparse.Namespace, output_dir: Path) -> int:
    cleaners = _cleaners(arguments, output_dir)
    looked = [(cleaner, cleaner.look()) for cleaner in cleaners]
    items = [item for _, found in looked for item in found]
    going = [item for item in items if not item.why_left]
    if not arguments.json:
        show_items(items, Console(markup=False))
        _print(f"{len(going)} to delete, {size_text(sum(item.n_bytes for item in going))}.")
    if arguments.dry_run or not going:
        if arguments.json:
            _print_clean(arguments, [], items)
        return 0
    if not arguments.yes and not _agrees(arguments):
        _tell("Nothing was deleted.")
        return 0
    return _delete(looked, arguments)


def _cleaners(arguments: argparse.Namespace, output_dir: Path) -> list[_Cleaner]:
    filters = Filters(arguments.older_than, arguments.failed, arguments.keep_last)
    if filters.is_empty and not arguments.checkpoints and not arguments.caches:
        raise UserError(
            "clean: which runs?\nSay --older-than 30d, --failed or --keep-last N; or --checkpoints, --caches."
        )
    only_caches = arguments.caches and not arguments.checkpoints
    if only_caches and (arguments.failed or arguments.keep_last is not None):
        raise UserError("clean: --caches goes by age alone (--older-than); clean runs with a call of its own.")
    unused_s = arguments.older_than if arguments.older_than is not None else caches.DEFAULT_UNUSED_S
    cleaners: list[_Cleaner] = []
    if arguments.host:
        place = open_place(arguments.host, arguments.site)
        cleaners += [] if only_caches else [RunsThere(place, output_dir, filters, arguments.checkpoints)]
        return [*cleaners, *([CachesThere(place, unused_s)] if arguments.caches else [])]
    cleaners += [] if only_caches else [RunsHere(output_dir, filters, arguments.checkpoints)]
    cache = cache_here(arguments.site, PROJECT)
    return [*cleaners, *([CachesHere(cache, output_dir, unused_s)] if arguments.caches else [])]


def _agrees(arguments: argparse.Namespace) -> bool:
    """Ask on the terminal.

    Raises:
        UserError: there is none to ask on.
    """
    if arguments.json or not can_ask():
        raise UserError("clean: there is no terminal to ask on.\nLook with --dry-run, then say --yes.")
    sys.stderr.write("Delete them? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def _delete(looked: Sequence[tuple[_Cleaner, list[Item]]], arguments: argparse.Namespace) -> int:
    """Delete what was listed; what fails keeps nothing else from being deleted."""
    deleted: list[Item] = []
    left: list[Item] = []
    exit_code = 0
    for cleaner, items in looked:
        for item in items:
            why = item.why_left
            try:
                why = why or cleaner.delete(item)
            except OrchError as error:
                why, exit_code = str(error).splitlines()[0], error.exit_code
            (left if why else deleted).append(Item(**{**vars(item), "why_left": why}))
            if why and not item.why_left:
                _tell(f"left: {item.name}: {why}")
        cleaner.finish()
    if arguments.json:
        _print_clean(arguments, deleted, left)
    else:
        _print(f"Deleted: {len(deleted)}, {size_text(sum(item.n_bytes for item in deleted))}.")
    return exit_code


def _print_clean(arguments: argparse.Namespace, deleted: Sequence[Item], others: Sequence[Item]) -> None:
    listed = [item_json(item) for item in others]
    _print_json(
        {
            "dry_run": arguments.dry_run,
            "deleted": [item_json(item) for item in deleted],
            "would_delete": [item for item in listed if item["why_left"] is None],
            "left": [item for item in listed if item["why_left"] is not None],
        }
    )


def _archive(arguments: argparse.Namespace, run: RunDir) -> int:
    target = Path(os.path.abspath((arguments.output or default_path(run)).expanduser()))  # noqa: PTH100 — links stay
    check_target(run, target)
    with away_from(run) as why:
        if why:
            raise UserError(f"{run.root.name}: {why}.\nArchive it when it has ended.")
        verdict = judge_run(run, Queues())
        if verdict.fate in _LIVING or (arguments.remove and verdict.fate != Fate.ENDED):
            raise UserError(
                f"{run.root.name} cannot be {'removed' if arguments.remove else 'archived'}: {verdict.why}."
            )
        if verdict.why:
            _tell(f"note: {verdict.why}")
        make_private_dir(target.parent)
        archived = make_archive(run, target, arguments.without_checkpoints)
        left = delete_run(run) if arguments.remove else ""
    if arguments.remove:
        mend_latest(run.root.parent)
    if left:
        raise OrchError(f"{archived.path} was made, and the run stays: {left}")
    _tell_archive(archived, arguments)
    return 0


def _tell_archive(archived: Archived, arguments: argparse.Namespace) -> None:
    if arguments.json:
        _print_json(
            {
                "archive": str(archived.path),
                "files": archived.n_files,
                "bytes": archived.n_bytes,
                "archive_bytes": archived.size,
                "left_out": list(archived.left_out),
                "removed": arguments.remove,
            }
        )
        return
    for name in archived.left_out:
        _tell(f"left out: {name} is no file, folder or link")
    sizes = f"{archived.n_files} files, {size_text(archived.n_bytes)} in {size_text(archived.size)}, read back"
    _print(f"{archived.path}\n{sizes}." + (" The run was deleted." if arguments.remove else ""))


def _tell(text: str) -> None:
    print(text, file=sys.stderr)  # noqa: T201


def _print(text: str) -> None:
    print(text)  # noqa: T201


def _print_json(value: Any) -> None:
    _print(json.dumps(value, indent=2))
