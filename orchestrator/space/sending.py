"""Code and data to a host, and results back from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.compose import saved_recipe
from orchestrator.errors import TransportError, UserError
from orchestrator.hosts import Host, open_hosts
from orchestrator.recipe.hosts import HERE
from orchestrator.rundir import RunDir
from orchestrator.space.places import Place
from orchestrator.transports import Transfer, TransferOptions

# A large data set on a slow line takes days (poll(2) takes 24 at most); one that stands still ends by stall_timeout_s.
COPY_TIMEOUT_S = 14 * 86400.0
DEFAULT_TO = "data"
USUAL_EXCLUDES = (".git/", ".venv/", "__pycache__/", "*.pyc", ".mypy_cache/", ".pytest_cache/", ".ruff_cache/")
_LOOK_S = 60.0
# Of a run's folders. The trials' own logs and checkpoints belong to those kinds.
_PARTS: Mapping[str, Sequence[tuple[str, tuple[str, ...]]]] = {
    "benchmark": [("benchmark", ())],
    "trials": [("trials", ("/*/checkpoints/", "/*/logs/"))],
    "logs": [("logs", ("/orch.log",))],
    "checkpoints": [("checkpoints", ())],
}
FETCHED = tuple(_PARTS)
_INNER = ("logs", "checkpoints")


@dataclass(frozen=True)
class Sent:
    """One copy that was made, or would be.

    Attributes:
        source: What was copied.
        target: Where it lies now.
    """

    source: str
    target: str
    transfer: Transfer


def folder_there(place: Place, to: str) -> str:
    """Return the folder on a host that ``--to`` names.

    Raises:
        UserError: it is not below base_dir, or is that of runs.
    """
    parts = to.strip("/").split("/")
    if to.startswith("/") or any(part in {"", ".", ".."} for part in parts):
        raise UserError(f"--to = {to!r}: give a folder below {place.base}, without / in front, `.` and `..`.")
    if parts[0] == "runs":
        raise UserError(f"--to = {to!r}: runs/ belongs to the runs themselves.\nName another folder, such as data.")
    return f"{place.base}/{'/'.join(parts)}"


def send(
    place: Place, paths: Sequence[Path], to: str, options: TransferOptions, tell: Callable[[str], None]
) -> list[Sent]:
    """Copy files and folders to a host, each under its own name; what is there and the same is not sent again.

    Args:
        place: The host.
        paths: What to send.
        to: Folder below the host's base_dir.
        options: How.
        tell: Told of each copy before it is made.

    Raises:
        UserError: a path is not there, or two have one name.
        TransportError: a copy failed; what was sent so far stays, and the next call goes on from there.
    """
    sources = [path.expanduser().resolve() for path in paths]
    names = [path.name for path in sources]
    for path, name in zip(sources, names, strict=True):
        if not path.exists():
            raise UserError(f"{path}: there is no such file or folder.")
        if not name or names.count(name) > 1:
            raise UserError(f"{path}: {'it has no name' if not name else 'two paths have this name'}.")
    folder = folder_there(place, to)
    options = replace(options, timeout_s=COPY_TIMEOUT_S)
    sent = []
    for path in sources:
        target = f"{folder}/{path.name}"
        tell(f"{path} -> {place.name}:{target}")
        sent.append(Sent(str(path), target, place.transport.push(path, target, options)))
    return sent


def fetch(
    run: RunDir, kinds: Sequence[str], options: TransferOptions, tell: Callable[[str], None], interactive: bool
) -> list[Sent]:
    """Bring results of a run here from all hosts where its jobs ran, whether or not its orchestrator lives.

    Args:
        run: The orchestrator's copy.
        kinds: Some of FETCHED.
        options: How.
        tell: Told of each copy before it is made.
        interactive: Whether passwords may be asked for on the terminal.

    Raises:
        RunNotFoundError: the run's recipe cannot be read.
        TransportError: a host cannot be reached, or a copy failed; what was brought stays.
    """
    options = replace(options, timeout_s=COPY_TIMEOUT_S)
    brought = []
    for host in open_hosts(saved_recipe(run), run):
        if host.name == HERE:
            continue
        host.transport.open(interactive=interactive)
        for part, excludes in _parts_there(host, kinds):
            source, target = f"{host.run.root}/{part}", run.root / part
            tell(f"{host.name}:{source} -> {target}")
            transfer = host.transport.pull(source, target, replace(options, excludes=excludes))
            brought.append(Sent(f"{host.name}:{source}", str(target), transfer))
    return brought


def _parts_there(host: Host, kinds: Sequence[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield what of a run lies on a host and is wanted, with what is left out of each.

    Raises:
        TransportError: the host cannot be asked.
    """
    wanted = {part: excludes for kind in kinds for part, excludes in _PARTS[kind]}
    script = 'cd -- "$1" 2>/dev/null || exit 0; find . -mindepth 1 -maxdepth 3 -type d -printf "%P\\0"'
    answer = host.transport.run(["sh", "-c", script, "sh", str(host.run.root)], _LOOK_S)
    if answer.returncode != 0:
        raise TransportError(host.name, f"cannot look into {host.run.root}: {answer.stderr.strip()}")
    for folder in sorted(answer.stdout.split("\0")[:-1]):
        parts = folder.split("/")
        if folder in wanted:
            yield folder, wanted[folder]
        elif len(parts) == 3 and parts[0] == "trials" and parts[2] in _INNER and parts[2] in kinds:
            yield folder, ()
